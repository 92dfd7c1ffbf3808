"""What is around the home is wrong: clock, memory, address, service, certificates, trainer, learning."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from appliance.doctor import unit
from appliance.doctor.box import Standing
from appliance.doctor.certificates import judge
from appliance.doctor.clock import network_time
from appliance.doctor.examine import Report
from appliance.doctor.trainer import different, start
from appliance.hardware import cpu_quota, memory_limit, read_hardware
from appliance.home import Home
from appliance.store.owner import set_password

from .conftest import example, opened

if TYPE_CHECKING:
    from .conftest import Look


# -- clock --------------------------------------------------------------------------------------


def test_a_clock_before_what_was_written(home: Home, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(home) as store:
        store.audit.add("owner", "login", {})
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86400)
    found = look("clock")[0]
    assert found.level == "error"
    assert "1 day behind the newest entry" in found.seen


def test_a_clock_before_the_program(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # as a board without a battery starts
    assert "behind the installation of this program" in " ".join(one.seen for one in look("clock"))


@pytest.mark.parametrize(("hours", "word"), [(30, "ahead"), (-30, "back")])
def test_a_clock_that_was_set_while_the_daemon_runs(
    look: Look, standing: Standing, hours: int, word: str
) -> None:
    assert not any("was set " in one.seen for one in look("clock", standing=standing))
    before = replace(standing, started=standing.started - hours * 3600)
    (found,) = [one for one in look("clock", standing=before) if "was set " in one.seen]
    assert found.level == "warning"
    assert f"1 day {word}" in found.seen


def test_the_kernel_says_whether_the_network_sets_the_clock() -> None:
    assert network_time() in (True, False, None)


# -- memory -------------------------------------------------------------------------------------


def test_memory(home: Home, look: Look) -> None:
    assert "smollm2-135m-instruct takes about" in " ".join(one.seen for one in look("memory"))
    home.config.write_text("[model]\nprefix_cache_mb = 1000000\n")
    found = look("memory")[0]
    assert found.level == "warning"
    assert "shammah model recommend" in found.fix
    home.config.write_text("[resources]\nmin_free_memory_mb = 10000000\n")
    assert "Runs are put off" in look("memory")[0].fix


def test_limits_of_the_control_group_count(tmp_path: Path) -> None:
    groups, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    # Second version: the limit of a parent holds for what is below.
    (proc / "7" / "cgroup").write_text("0::/system.slice/shammah.service\n")
    place = groups / "system.slice" / "shammah.service"
    place.mkdir(parents=True)
    (place / "memory.max").write_text("max\n")
    (place.parent / "memory.max").write_text("1000000000\n")
    (place.parent / "memory.current").write_text("400000000\n")
    (place.parent / "memory.stat").write_text("anon 1\ninactive_file 100000000\n")
    (place / "cpu.max").write_text("150000 100000\n")
    assert memory_limit(7, groups, proc) == (1_000_000_000, 300_000_000)
    assert cpu_quota(7, groups, proc) == 1.5
    # First version, in a container that is told its path on the host.
    (proc / "7" / "cgroup").write_text("4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n")
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("512000000\n")
    (groups / "memory" / "memory.usage_in_bytes").write_text("12000000\n")
    (groups / "cpu").mkdir()
    (groups / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (groups / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert memory_limit(7, groups, proc) == (512_000_000, 12_000_000)
    assert cpu_quota(7, groups, proc) == 0.5
    (proc / "7" / "cgroup").unlink()
    assert memory_limit(7, groups, proc)[0] > 2**59


def test_this_machine() -> None:
    here = read_hardware(measure=True)
    assert 0 < here.available <= here.memory
    assert here.threads >= 1
    assert here.bandwidth > 1e8


# -- address and daemon -------------------------------------------------------------------------


def test_an_address_that_is_taken(home: Home, look: Look) -> None:
    assert look("ports")[-1].seen.endswith("is free.")
    with socket.create_server(("127.0.0.1", 0)) as server:
        home.config.write_text(f'[server]\nbind = "127.0.0.1:{server.getsockname()[1]}"\n')
        found = look("ports")[0]
    assert found.level == "error"
    assert "is in use by python" in found.seen.lower()
    assert "--bind" in found.fix
    home.config.write_text('[server]\nbind = "203.0.113.7:8080"\n')
    assert "cannot listen on 203.0.113.7" in look("ports")[0].seen


def test_a_network_without_an_owner(home: Home, look: Look) -> None:
    home.config.write_text(home.config.read_text().replace("127.0.0.1", "0.0.0.0"))
    assert "until it has an owner" in look("ports")[0].seen
    with opened(home) as store:
        set_password(store, "correct horse battery")
    assert not any("owner" in one.seen for one in look("ports"))


def test_a_daemon_that_cannot_be_reached(look: Look, standing: Standing) -> None:
    found = look("ports", standing=standing)
    assert [one.level for one in found] == ["note", "note", "ok"]  # another address than config.toml's
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "cannot be reached there" in look("ports", standing=replace(standing, port=port))[0].seen


def test_what_the_daemon_says(home: Home, look: Look, standing: Standing) -> None:
    def seen(**changes: object) -> str:
        return look("daemon", standing=replace(standing, **changes))[0].seen

    assert "healthy and ready" in seen()
    assert "hangs" in seen(healthy=False)
    assert "does not answer requests" in seen(ready=False)
    assert "release 0.0.1" in seen(version="0.0.1")
    assert "does not answer: it broke" in seen(problem="it broke")
    assert look("daemon")[0].level == "note"
    home.daemon.write_text('{"pid": 9999999, "host": "127.0.0.1", "port": 1, "started": 1.0, "token": "t"}')
    assert "crashed or was killed" in look("daemon")[0].seen


def test_what_answers_and_what_the_link_says(look: Look, standing: Standing) -> None:
    found = look("adapters", standing=replace(standing, adapter="another"))[0]
    assert found.level == "warning"
    assert "answers with another" in found.seen


# -- service ------------------------------------------------------------------------------------

# As `systemctl show` prints it.
RUNNING = """Result=success
NRestarts=0
MainPID=812
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=no
WatchdogUSec=30s
"""


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "ok", "runs"),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, "note", "not installed as a service"),
        ({"LoadState": "bad-setting"}, "error", "cannot be loaded"),
        ({"ActiveState": "failed", "Result": "watchdog"}, "error", "failed (watchdog)"),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, "warning", "is starting (auto-restart)"),
        ({"ActiveState": "inactive", "MainPID": "0"}, "warning", "does not run"),
        ({"UnitFileState": "disabled"}, "warning", "not started when the machine starts"),
        ({"NRestarts": "1"}, "note", "started again once"),
        ({"NRestarts": "7"}, "warning", "started again 7 times"),
        ({"WatchdogUSec": "0"}, "note", "no watchdog"),
        ({"NeedDaemonReload": "yes"}, "warning", "was changed since systemd read it"),
    ],
    ids=str,
)
def test_the_service(changes: dict[str, str], level: str, words: str) -> None:
    found = [one for one in unit.judge({**unit.properties(RUNNING), **changes}, None) if words in one.seen]
    assert [one.level for one in found] == [level]


def test_a_service_of_another_home() -> None:
    assert "another home" in next(unit.judge(unit.properties(RUNNING), 4711)).seen
    stopped = {**unit.properties(RUNNING), "ActiveState": "inactive"}
    assert "started otherwise" in next(unit.judge(stopped, 4711)).seen


def test_where_this_runs(look: Look) -> None:
    (found,) = look("unit")
    assert found.level in ("ok", "note")


# -- certificates -------------------------------------------------------------------------------

NOW = datetime(2026, 11, 26, tzinfo=UTC)


class Authority:
    """Makes real certificates."""

    def __init__(self, name: str = "CA") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.own = self.sign(self.name, self.key, NOW - timedelta(days=100), NOW + timedelta(days=3000))

    def sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, begins: datetime, ends: datetime
    ) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .sign(self.key, SHA256())
        )


def pem(*things: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    out = b""
    for thing in things:
        if isinstance(thing, x509.Certificate):
            out += thing.public_bytes(serialization.Encoding.PEM)
        else:
            out += thing.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
    return out


@pytest.fixture
def tls(tmp_path: Path) -> Callable[..., list[tuple[str, str]]]:
    """`tls(begins, ends)`: what is said of a certificate that holds from day to day, seen from now."""
    authority, key = Authority(), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shammah.local")])
    place = tmp_path / "tls"

    def said(begins: int, ends: int, **files: bytes) -> list[tuple[str, str]]:
        place.mkdir(exist_ok=True)
        made = authority.sign(name, key, NOW + timedelta(days=begins), NOW + timedelta(days=ends))
        (place / "authority.pem").write_bytes(pem(authority.own))
        (place / "certificate.pem").write_bytes(pem(made, key))
        for file, data in files.items():
            (place / file.replace("_", ".")).write_bytes(data)
        return [(one.level, one.seen) for one in judge(place, NOW.timestamp()) if one.level != "ok"]

    return said


def test_certificates(tls: Callable[..., list[tuple[str, str]]], tmp_path: Path) -> None:
    assert list(judge(tmp_path / "absent", NOW.timestamp())) == []
    assert tls(-10, 300) == []
    ((level, seen),) = tls(-400, -3)
    assert (level, seen.endswith("expired 3 days ago: devices refuse it.")) == ("error", True)
    ((level, seen),) = tls(-300, 5)
    assert (level, "expires in 5 days" in seen) == ("warning", True)
    assert tls(-1, 5) == []  # it was made for a week
    ((level, seen),) = tls(5, 300)
    assert (level, "valid only from 1 Dec 2026 on" in seen) == ("error", True)


def test_certificates_and_keys_that_do_not_belong_together(
    tls: Callable[..., list[tuple[str, str]]],
) -> None:
    other, key = Authority(), ec.generate_private_key(ec.SECP256R1())
    made = other.sign(other.name, ec.generate_private_key(ec.SECP256R1()), NOW, NOW + timedelta(days=300))
    said = tls(-10, 300, server_crt=pem(made), server_key=pem(key))
    assert any("server.key is not the key of the certificate in server.crt" in seen for _, seen in said)
    # A new authority of the same name has not signed what the one before did.
    said = tls(-10, 300, server_crt=pem(other.own), server_key=pem(other.key), authority_pem=pem(other.own))
    assert [seen for _, seen in said] == [
        "certificate.pem was not signed by the CA that lies beside it: devices refuse it."
    ]
    said = tls(-10, 300, authority_pem=b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    assert any("authority.pem is no certificate that can be read" in seen for _, seen in said)


# -- trainer ------------------------------------------------------------------------------------


def test_a_trainer_that_does_not_start() -> None:
    (found,) = start(sys.executable)  # without onnxruntime-training
    assert found.level == "error"
    assert "is broken" in found.seen
    (found,) = start("/nowhere/python")
    assert "does not start" in found.seen
    assert "make ort" in found.fix


def test_the_trainer_of_this_machine(look: Look) -> None:
    assert look("trainer", quick=False)[-1].level == "ok"


def test_libraries_of_other_releases() -> None:
    wanted = ["click==0.0.1", "no-such-thing==1.0", "torch==0.0.1; extra == 'train'"]
    found = different(wanted)
    assert [text.split()[0] for text in found] == ["click", "no-such-thing"]


# -- learning -----------------------------------------------------------------------------------


def test_a_queue_that_is_stuck(home: Home, look: Look, standing: Standing) -> None:
    assert look("learning")[0].seen == "No example waits."
    with opened(home) as store:
        store.examples.add(example())
    assert "nothing is learned while no daemon runs" in look("learning")[0].seen
    assert look("learning", standing=standing)[0].level == "ok"
    with opened(home) as store, store.database.transaction("examples") as tx:
        tx.execute("UPDATE examples SET created = created - 86400")
    found = look("learning", standing=standing)[0]
    assert found.level == "warning"
    assert "should have begun 23 hours ago" in found.seen
    deferred = replace(standing, learning={"run": None, "deferral": {"reason": "It is too hot."}})
    found = look("learning", standing=deferred)[0]
    assert (found.level, "put off: It is too hot." in found.seen) == ("warning", True)
    going = replace(standing, learning={"run": {"id": "run_1"}, "deferral": None})
    assert look("learning", standing=going)[0].level == "ok"
    home.config.write_text("[lora]\nenabled = false\n")
    assert "switched off" in look("learning", standing=standing)[0].seen


def test_runs_that_fail_again_and_again(home: Home, look: Look, report: Callable[..., Report]) -> None:
    with opened(home) as store:
        for number in range(3):
            store.examples.add(example(f"Question {number}?"))
            run = store.runs.create("threshold", 1)
            store.examples.hold(run.id, [store.examples.list("pending", limit=1)[0].id])
            store.runs.update(run.id, state="failed", ended=time.time(), reason="It broke.")
            store.examples.park(run.id)
    found = look("learning")
    assert [one.level for one in found[:2]] == ["warning", "warning"]
    assert "3 examples are parked" in found[0].seen
    assert "The last 3 runs did not succeed; the newest was failed: It broke." in found[1].seen
    with opened(home) as store:
        run = store.runs.create("threshold", 1)
        store.runs.update(run.id, state="promoted", ended=time.time())
    assert "was promoted" in " ".join(one.seen for one in look("learning"))


def test_a_run_that_was_cut_off(home: Home, look: Look, standing: Standing) -> None:
    with opened(home) as store:
        run = store.runs.create("threshold", 1)
        store.runs.update(run.id, state="training", pid=9999999)
    (found,) = look("leftovers")
    assert (found.level, f"{run.id} was cut off" in found.seen) == ("note", True)
    assert look("leftovers", standing=standing)[0].level == "ok"  # it may be about to begin
    with opened(home) as store, store.database.transaction("runs") as tx:
        tx.execute("UPDATE runs SET created = created - 7200")
    assert look("leftovers", standing=standing)[0].level == "warning"
