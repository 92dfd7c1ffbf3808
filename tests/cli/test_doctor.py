"""`shammah doctor` and `shammah model recommend`, beside a real daemon and without one."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import pytest
from click.testing import CliRunner
from daemons import Daemon, free_port, install_bundle

from appliance.cli import cli
from appliance.commands import doctor
from appliance.doctor.examine import CHECKS
from appliance.home import Home
from appliance.model.bundle import Bundle

if TYPE_CHECKING:
    from conftest import Shammah


@pytest.fixture(scope="module")
def box(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    bind = f'[server]\nbind = "127.0.0.1:{free_port()}"\n'
    home.config.write_text(f"{bind}[lora]\nenabled = false\n[model]\nslots = 2\nprefix_cache_mb = 0\n")
    running = Daemon(home).start()
    yield running
    running.kill()


def ask(box: Daemon, *words: str) -> tuple[int, str]:
    done = CliRunner(env={"SHAMMAH_HOME": str(box.home.root), "COLUMNS": "100"}).invoke(cli, words)
    return done.exit_code, done.stdout


def test_an_empty_home(shammah: Shammah, home: Home) -> None:
    done = shammah("doctor", "--quick", "--json")
    told = json.loads(done.stdout)
    # Somebody else may listen on the default port of the machine that tests.
    assert {one["check"] for one in told["findings"] if one["level"] == "error"} <= {"ports"}
    assert (done.returncode == 0, told["home"]) == (told["healthy"], str(home.root))
    assert not home.root.exists()


def test_an_error_is_exit_code_1_with_its_fix(shammah: Shammah, home: Home, bundle: Bundle) -> None:
    install_bundle(home, bundle)
    home.config.write_text(f'[server]\nbind = "127.0.0.1:{free_port()}"\n')
    home.current.symlink_to("gone.safetensors")
    done = shammah("doctor")
    assert done.returncode == 1
    assert "ERROR  Adapters" in done.stdout
    assert "shammah adapters rollback" in done.stdout
    assert "a look at everything: 1 error, " in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr
    told = json.loads(shammah("doctor", "--json").stdout)
    (error,) = [one for one in told["findings"] if one["level"] == "error"]
    assert error["check"] == "adapters"
    assert told["counts"]["error"] == 1


def test_beside_a_daemon(box: Daemon) -> None:
    assert box.ask("Are you there?")
    code, said = ask(box, "doctor", "--json")
    told = json.loads(said)
    errors = [one for one in told["findings"] if one["level"] == "error"]
    assert (code, errors) == (0, [])
    seen = {one["check"]: one["seen"] for one in reversed(told["findings"])}
    assert f"Process {box.pid} serves 127.0.0.1 port {box.port}, healthy and ready" in seen["daemon"]
    assert set(seen) <= {check.id for check in CHECKS}
    assert f"127.0.0.1 port {box.port} can be reached" in seen["ports"]
    assert "have their hash" in seen["models"]


def test_recommend_by_what_is_measured(box: Daemon, bundle: Bundle) -> None:
    code, said = ask(box, "model", "recommend", "--json")
    told = json.loads(said)
    assert code == 0
    assert told["measured"]["model"] == bundle.name
    assert 1 < told["measured"]["tokens_per_second"] < 10_000
    assert told["measured"]["now"] is True
    mine = next(model for model in told["models"] if model["installed"])
    assert mine["fits"]["serve"]
    # What it says of the model that serves is what that takes, to a quarter.
    resident = psutil.Process(box.pid).memory_info().rss / 1e6
    assert mine["memory_mb"]["start"] == pytest.approx(resident, rel=0.25)
    assert mine["weights_mb"] == pytest.approx(
        (box.home.models / mine["installed"] / "model.onnx.data").stat().st_size / 1e6, rel=0.01
    )
    # Larger models take more and are slower.
    others = [model for model in told["models"] if not model["installed"]]
    assert len(others) >= 8
    speeds = [model["tokens_per_second"]["expected"] for model in others]
    assert speeds == sorted(speeds, reverse=True)
    for model in told["models"]:
        speed = model["tokens_per_second"]
        assert speed["least"] <= speed["expected"] <= speed["most"]
    code, said = ask(box, "model", "recommend")
    assert code == 0
    assert "tokens/s now" in said


def test_a_daemon_that_hangs_and_one_that_was_killed(box: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 1.0)
    assert box.process is not None
    box.process.send_signal(signal.SIGSTOP)
    code, said = ask(box, "doctor", "--quick")
    assert code == 1
    assert "does not answer" in said
    box.kill()
    code, said = ask(box, "doctor", "--quick", "--json")
    assert "crashed or was killed" in said
    assert code == 0
