"""A full, failing or read-only disk: the box serves, refuses in words, and leaves nothing half-written."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from daemons import Daemon, accept_adapter, install_bundle
from faults.acts import ACTS, ADAPTERS, ASK, BACK_UP, PROMOTE, SAVE
from faults.trial import Trial, opened, serving, until

from appliance.home import Home
from appliance.model.bundle import Bundle

Tally = Callable[[str, int, int], None]
KINDS = ("enospc", "eio", "erofs")
NOTHING_FOLLOWS = frozenset(
    {
        "collect.stored", "feedback.stored", "settings.stored", "keys.stored", "keys.revoked",
        "promote.back", "promote.recorded", "backup.published",
    }
)  # fmt: skip
"""After these nothing is written that could fail."""
WRITES = [point for point in ACTS if point not in NOTHING_FOLLOWS]
QUIET = ("collect.completion", "mirror.appended", "files.replaced")
"""There the act succeeds all the same: what fails is done again by the box itself, or was done."""

RUN = (
    "train.directory", "train.frozen", "train.prepared", "train.started", "train.loaded", "train.stepped",
    "train.checkpoint", "train.checkpointed", "train.weights", "train.trained", "gate.begun", "gate.judged",
    "gate.written", "gate.reported", "gate.settled", "adapters.linked", "promote.swapped", "promote.linked",
    "train.ended",
)  # fmt: skip
MOMENTS = (
    "train.directory",
    "train.started",
    "train.checkpoint",
    "gate.judged",
    "gate.reported",
    "promote.stated",
)


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", WRITES)
def test_a_write_fails(box: Trial, point: str, kind: str, tally: Tally) -> None:
    """At each step: the act fails in words or succeeds, the box serves meanwhile, the next one succeeds."""
    act = ACTS[point]
    tally(f"disk: {kind}", 1, 0)
    box.arm(f"{point}={kind}")
    status = act.do(box)
    assert box.daemon.ask("Say hello.", max_tokens=2, store=False)
    box.arm()
    words = (507,) if kind == "enospc" else (503, 507)
    assert status in words or point in QUIET, (point, kind, status, box.daemon.log[-3000:])
    assert act.do(box) == 200, (point, kind)
    until(lambda: act.done(box), f"the second try after {kind} at {point}", 30)
    box.check(f"{kind} at {point}")
    tally(f"disk: {kind}", 0, 1)


@pytest.mark.faults
def test_nothing_is_left_over(box: Trial) -> None:
    box.check_tidy()


@pytest.mark.faults
def test_a_run_meets_a_full_disk_everywhere(small: Bundle, tmp_path: Path, tally: Tally) -> None:
    """Each time it fails or goes on, and is tried again until it succeeds."""
    home = Home(tmp_path / "home").ensure()
    install_bundle(home, small)
    home.config.write_text(serving(small))
    box = Trial(Daemon(home), small)
    box.daemon.start()
    try:
        for _ in range(3):
            assert box.teach().status_code == 200
        box.arm(f"{RUN[0]}=enospc")
        assert box.daemon.post("/v1/training/run").status_code == 202
        for point, following in zip(RUN, (*RUN[1:], None), strict=True):
            tally("disk: enospc", 1, 0)
            box.reaches(point)
            # The next attempt waits until this one has been looked at; one that goes on meets the next fault.
            fault = f"{following}=enospc" if following else ""
            box.arm("train.begun=hang", fault)
            box.check(point)
            box.arm(fault)
            tally("disk: enospc", 0, 1)
        run = box.settled()
        assert run.state == "promoted", run
        box.check("the run")
        with opened(home) as store:
            assert {store.examples.get(example).state for example in box.acknowledged} == {"used"}
        # What could not be removed then goes with the next start.
        box.daemon.stop()
        box.daemon.start()
        box.check_tidy()
    finally:
        box.daemon.kill()


# -- real file systems ---------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert mounted.returncode == 0, f"this test mounts a tmpfs and so needs root: {mounted.stderr}"
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def disk_box(disk: Path, bundle: Bundle) -> Iterator[Trial]:
    """A daemon whose home, but for the model, is on that disk."""
    home = Home(disk / "home")
    home.root.mkdir()
    home.models.symlink_to(bundle.path.parent)
    home.ensure()
    home.config.write_text(serving(bundle))
    modules = [part.module for port in bundle.manifest.ports for part in port.parts]
    *_, last = (module for module in modules if module.endswith("down_proj"))
    for seed, name in enumerate(ADAPTERS):
        accept_adapter(home, bundle, name, seed, only=last)
    box = Trial(Daemon(home), bundle)
    box.daemon.start()
    try:
        yield box
    finally:
        box.daemon.kill()


def fill(disk: Path) -> Path:
    """Leave not a byte free."""
    filler = disk / "filler"
    for size in (1 << 20, 4096, 1):
        with filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"x" * size)
                if size == 1:
                    break
    return filler


@pytest.mark.faults
def test_a_full_disk_for_each_thing(bundle: Bundle, tmp_path: Path, tally: Tally) -> None:
    """Full for real while people teach, switch, save and back up."""
    with small_disk(tmp_path / "disk", 60) as disk, disk_box(disk, bundle) as box:
        for name, act in (("teach", ACTS["feedback.added"]), ("promote", PROMOTE), ("save", SAVE)):
            assert act.do(box) == 200, name
        for name, act in {
            "teach": ACTS["feedback.added"],
            "key": ACTS["keys.added"],
            "promote": PROMOTE,
            "save": SAVE,
            "back up": BACK_UP,
            "ask": ASK,
        }.items():
            tally("disk: full for real", 1, 0)
            filler = fill(disk)
            statuses = {act.do(box) for _ in range(12)}
            assert statuses <= {200, 507}, (name, statuses)
            assert box.daemon.ask("Say hello.", max_tokens=2, store=False)
            filler.unlink()
            if act is not BACK_UP:  # 60 MB are too few for one
                assert act.do(box) == 200, name
                until(lambda act=act: act.done(box), f"{name} when there is room again", 30)
            box.check(f"a full disk: {name}")
            tally("disk: full for real", 0, 1)
        box.daemon.kill()
        box.daemon.start()
        box.check("a full disk and a kill")
        box.check_tidy()


@pytest.mark.faults
def test_a_full_disk_under_a_run(small: Bundle, tmp_path: Path, tally: Tally) -> None:
    """Full for real at each of these moments; the run ends well when there is room again."""
    with small_disk(tmp_path / "disk", 60) as disk, disk_box(disk, small) as box:
        for _ in range(3):
            assert box.teach().status_code == 200
        box.arm(f"{MOMENTS[0]}=hang")
        assert box.daemon.post("/v1/training/run").status_code == 202
        for point, following in zip(MOMENTS, (*MOMENTS[1:], None), strict=True):
            tally("disk: full under a run", 1, 0)
            box.reaches(point)
            filler = fill(disk)
            box.arm(f"{following}=hang" if following else "")
            time.sleep(3)
            box.daemon.ask("Say hello.", max_tokens=2, store=False)
            filler.unlink()
            box.check(f"a full disk at {point}")
            tally("disk: full under a run", 0, 1)
        run = box.settled()
        assert run.state == "promoted", run
        box.check("a full disk under a run")
        box.daemon.stop()
        box.daemon.start()
        box.check("a full disk under a run, and a restart")
        box.check_tidy()


@contextmanager
def real_disk(place: Path) -> Iterator[str]:
    """An ext4 of 64 MB, mounted there, that turns read-only when it meets an error; the device's name."""
    place.mkdir()
    image = place.with_name(f"{place.name}.img")
    with image.open("wb") as file:
        file.truncate(64 << 20)
    make = ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-e", "remount-ro", str(image)]
    subprocess.run(make, check=True)
    mount_image(image, place)
    try:
        found = subprocess.run(
            ["findmnt", "-n", "-o", "SOURCE", str(place)], check=True, capture_output=True, text=True
        )
        yield Path(found.stdout.strip()).name
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def mount_image(image: Path, place: Path) -> None:
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(place)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"this test mounts an ext4 and so needs root: {done.stderr}"


def refused_in_words(box: Trial) -> None:
    for path, body in (
        ("/v1/feedback", {"query": "a?", "response": "b", "correction": "c"}),
        ("/v1/adapters/promote", {"name": ADAPTERS[0]}),
    ):
        refused = box.daemon.post(path, json=body)
        assert refused.status_code in (503, 507), refused.text
        error = refused.json()["error"]
        assert error["message"] and error["code"] not in (None, "internal_error"), error
    for path in ("/", "/queue", "/runs", "/adapters", "/settings", "/backup"):
        assert box.daemon.get(path).status_code == 200, path


@pytest.mark.faults
def test_the_kernel_makes_the_disk_read_only(bundle: Bundle, tmp_path: Path, tally: Tally) -> None:
    """As when it finds the file system damaged: only an unmount ends that. Serving goes on."""
    place = tmp_path / "disk"
    with real_disk(place) as device, disk_box(place, bundle) as box:
        tally("disk: read-only for real", 1, 0)
        assert box.teach().status_code == 200
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")
        assert box.daemon.ask("What is asked meanwhile?", max_tokens=4)
        refused_in_words(box)
        until(lambda: "Collection pauses" in box.daemon.log, "that collection pauses", 30)
        assert box.daemon.ask("Say hello.", max_tokens=2)
        # A reboot, with the check of the file system that it brings.
        box.daemon.kill()
        subprocess.run(["umount", str(place)], check=True)
        image = place.with_name(f"{place.name}.img")
        checked = subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, check=False)
        assert checked.returncode < 4, checked.stdout
        mount_image(image, place)
        box.daemon.start()
        box.check("a read-only disk and a reboot")
        assert box.teach().status_code == 200
        box.check_tidy()
        tally("disk: read-only for real", 0, 1)
