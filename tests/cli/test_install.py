"""`shammah install` and `uninstall` below a directory of their own; tests/box/test_systemd.py boots it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance import units
from appliance.commands.local import become_owner
from appliance.errors import Unavailable
from appliance.home import Home

if TYPE_CHECKING:
    from conftest import Shammah

UNITS = "etc/systemd/system"


def _tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_it_writes_units_for_this_installation_once(shammah: Shammah, tmp_path: Path) -> None:
    first = shammah("install", "--root", str(tmp_path / "root"), "--bind", "0.0.0.0:8090")
    assert first.returncode == 0, first.stderr
    tree = _tree(tmp_path / "root")
    assert sorted(Path(name).name for name in tree) == sorted([*units.UNITS, "shammah.conf", "shammah"])
    service = tree[f"{UNITS}/shammah.service"]
    assert f"ExecStart={sys.executable} -P -m appliance.cli daemon --bind 0.0.0.0:8090\n" in service
    assert not re.search(r"@[A-Z_]+@", "".join(tree.values()))

    again = shammah("install", "--root", str(tmp_path / "root"), "--bind", "0.0.0.0:8090")
    assert "Nothing changed" in again.stdout
    assert _tree(tmp_path / "root") == tree
    moved = shammah("install", "--root", str(tmp_path / "root"))
    assert moved.stdout.splitlines() == [f"Wrote {tmp_path}/root/{UNITS}/shammah.service"]


def test_a_dry_run_only_says_what_it_would_do(shammah: Shammah, tmp_path: Path) -> None:
    done = shammah("install", "--dry-run", "--root", str(tmp_path / "root"))
    assert done.returncode == 0, done.stderr
    assert "WatchdogSec=" in done.stdout
    assert not (tmp_path / "root").exists()
    if not Path("/etc/systemd/system/shammah.service").exists():
        assert "$ systemctl enable --now" in shammah("install", "--dry-run").stdout


def test_the_slice_follows_the_trainers_limit(shammah: Shammah, tmp_path: Path) -> None:
    home = tmp_path / "root/var/lib/shammah"
    home.mkdir(parents=True)
    (home / "config.toml").write_text("[train]\nmemory_limit_mb = 2048\n[server]\nbind = '0.0.0.0:80'\n")
    shammah("install", "--root", str(tmp_path / "root"))
    tree = _tree(tmp_path / "root")
    assert "MemoryMax=3072M" in tree[f"{UNITS}/shammah-training.slice"]
    assert "SHAMMAH_TRAINER_MEMORY_MB=2048" in tree[f"{UNITS}/shammah.service"]
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in tree[f"{UNITS}/shammah.service"]


def test_uninstall_leaves_the_data(shammah: Shammah, tmp_path: Path) -> None:
    root = tmp_path / "root"
    kept = root / "var/lib/shammah/store.db"
    kept.parent.mkdir(parents=True)
    kept.touch()
    shammah("install", "--root", str(root))
    drop_in = root / UNITS / "shammah.service.d/override.conf"
    drop_in.parent.mkdir()
    drop_in.touch()
    would = shammah("uninstall", "--dry-run", "--root", str(root))
    assert (root / UNITS / "shammah.service").exists()
    assert "rm " in would.stdout
    done = shammah("uninstall", "--root", str(root))
    assert f"The data stays in {root}/var/lib/shammah" in done.stdout
    assert sorted(_tree(root)) == sorted(str(path.relative_to(root)) for path in (kept, drop_in))
    assert "Nothing to remove" in shammah("uninstall", "--root", str(root)).stdout


def test_another_program_of_the_name_stays(shammah: Shammah, tmp_path: Path) -> None:
    command = tmp_path / "root/usr/local/bin/shammah"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\necho mine\n")
    assert "stays" in shammah("install", "--root", str(tmp_path / "root")).stderr
    shammah("uninstall", "--root", str(tmp_path / "root"))
    assert command.read_text() == "#!/bin/sh\necho mine\n"


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="it would install for real")
def test_without_systemd_it_says_so(shammah: Shammah) -> None:
    done = shammah("install")
    assert (done.returncode, done.stdout) == (1, "")
    assert "systemd does not run this machine" in done.stderr


def test_what_home_directories_hide_is_shown(tmp_path: Path) -> None:
    here = units.this_installation(None, "127.0.0.1:8080", 1024)
    far = replace(here, places=(Path("/opt/shammah/.venv"), Path("/usr")))
    near = replace(here, places=(Path("/home/ann/box/.venv"), Path("/home/ann/box"), Path("/root/python")))
    assert "ProtectHome=yes\nBindReadOnlyPaths=\n" in units.files(far)[0].text
    shown = "ProtectHome=tmpfs\nBindReadOnlyPaths=/home/ann/box /root/python\n"
    assert shown in units.files(near)[0].text
    closed = tmp_path / "closed"
    (closed / "venv").mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(Unavailable, match=r"chmod o\+x"):
        units.check_readable(replace(here, places=(closed / "venv",)))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's own judgement takes systemd")
def test_systemd_finds_them_right_and_safe(shammah: Shammah, tmp_path: Path) -> None:
    shammah("install", "--root", str(tmp_path / "root"))
    files = sorted((tmp_path / "root" / UNITS).iterdir())
    verify = ["systemd-analyze", "verify", "--recursive-errors=yes", *map(str, files)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("shammah.service", "shammah-trainer@.service"):
        judge = ["systemd-analyze", "security", "--offline=true", str(tmp_path / "root" / UNITS / name)]
        said = subprocess.run(judge, capture_output=True, text=True, check=False).stdout
        score = re.search(r"exposure level for \S+: ([\d.]+)", said)
        assert score is not None, said
        print(name, score[1])
        assert float(score[1]) < 2.0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_root_works_as_the_user_of_the_home(shammah: Shammah, home: Home) -> None:
    home.ensure()
    os.chown(home.root, 12345, 12345)
    assert shammah("config", "check").returncode == 0
    child = os.fork()
    if not child:  # what it does cannot be undone in this process
        finish = become_owner(home)
        (home.root / "made").touch()
        finish()
        os._exit(0)
    os.waitpid(child, 0)
    assert (home.root / "made").stat().st_uid == 12345 or not os.access(home.root, os.W_OK)
