"""What may go and what never does; a budget; cut off and begun again."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from appliance.backup.program import surplus
from appliance.cli import cli
from appliance.config import Config
from appliance.errors import Conflict
from appliance.home import Home
from appliance.learning.forget import KEY as FORGETTING
from appliance.sections import BackupConfig, StorageConfig
from appliance.storage import tidy as tidying
from appliance.storage.reserve import RESERVE_BYTES, give_up, put_by
from appliance.storage.tidy import plan, tidy
from appliance.storage.usage import measure
from appliance.store import Store
from appliance.store.adapters import AdapterRow, AdapterState
from appliance.store.examples import NewExample

DAY = 86_400.0
KB = 1000


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    opened = Store.open(home.ensure())
    yield opened
    opened.close()


def adapter(
    home: Home,
    store: Store,
    name: str,
    state: AdapterState,
    days: float,
    run: str | None = None,
    parent: str | None = None,
) -> None:
    (home.adapters / f"{name}.safetensors").write_bytes(os.urandom(50 * KB))
    made = time.time() - days * DAY
    store.adapters.upsert(AdapterRow(name, made, name, 1, "h", 8, run, parent, state, None))


def run(home: Home, store: Store, number: int, state: str = "promoted") -> str:
    """A run that has ended, with its files."""
    made = store.runs.create("person", 1)
    store.runs.update(made.id, state=state, ended=1.0)
    place = home.runs / made.id
    place.mkdir()
    for name in ("examples.jsonl", "log", "metrics.jsonl", "report.json"):
        (place / name).write_text(name * 1000)
    return made.id


def config(**storage: Any) -> Config:
    return Config(
        storage=StorageConfig(**{"min_free_mb": 0, **storage}), backup=BackupConfig(keep=3, keep_weeks=1)
    )


def names(home: Home, store: Store, wanted: Config, serving: str | None = None) -> set[str]:
    return {item.name for item in plan(home, store, wanted, serving).removed}


class Remover:
    """Deletes adapters as the switch does."""

    def __init__(self, home: Home, store: Store, needed: str = "") -> None:
        self.home, self.store, self.needed = home, store, needed

    def __call__(self, name: str) -> None:
        if name == self.needed:
            raise Conflict("It is needed.")
        (self.home.adapters / f"{name}.safetensors").unlink()
        self.store.adapters.set_state(name, "deleted")


def test_nothing_to_do(home: Home, store: Store) -> None:
    assert names(home, store, config()) == set()
    done = tidy(home, store, config(), None, Remover(home, store))
    assert (done.removed, done.short) == ((), 0)
    assert store.audit.list() == []


def test_adapters(home: Home, store: Store) -> None:
    """Old rejected ones and long replaced ones go; what serves, served, waits or is looked at stays."""
    for number in range(8):
        adapter(home, store, f"good_{number}", "accepted", days=100 - number)
    adapter(home, store, "bad_old", "rejected", days=31)
    adapter(home, store, "bad_new", "rejected", days=1)
    adapter(home, store, "unjudged", "candidate", days=400)
    for name in ("good_0", "good_1", "good_2"):
        store.adapters.record_switch(name, "learned", "appliance")
    wanted = config(keep_adapters=2)
    gone = names(home, store, wanted, serving="good_2")
    assert gone == {"bad_old", "good_0", "good_3", "good_4", "good_5"}
    # Pinned or not, what a run uses stays as well.
    made = store.runs.create("person", 1, parent="good_3")
    assert "good_3" not in names(home, store, wanted, serving="good_2")
    store.runs.update(made.id, state="failed", ended=1.0)
    remove = Remover(home, store, needed="good_4")
    done = tidy(home, store, wanted, "good_2", remove)
    assert {item.name for item in done.removed} == gone - {"good_4"}
    there = {path.name.removesuffix(".safetensors") for path in home.adapters.iterdir()}
    assert there == {"good_1", "good_2", "good_4", "good_6", "good_7", "bad_new", "unjudged"}
    assert store.adapters.get("good_0") is not None, "what is known of it stays, as history"
    (entry,) = store.audit.list()
    assert (entry.action, entry.detail["removed"]) == ("storage.tidied", {"adapter": 4})
    assert tidy(home, store, wanted, "good_2", remove).removed == ()


def test_runs(home: Home, store: Store) -> None:
    """Old files go; the input stays where an adapter learned from it, and all of it while examples wait."""
    runs = [run(home, store, number) for number in range(12)]
    adapter(home, store, "serving", "accepted", 1, run=runs[0])
    parked = store.examples.add(
        NewExample(kind="automatic", query="q", response="r", target="r", weight=1, messages=[])
    )
    store.examples.hold(runs[1], [parked.id])
    store.examples.park(runs[1])
    tidy(home, store, config(keep_runs=7), "serving", Remover(home, store))
    left = {path.name: sorted(file.name for file in path.iterdir()) for path in home.runs.iterdir()}
    whole = ["examples.jsonl", "log", "metrics.jsonl", "report.json"]
    assert left.pop(runs[0]) == ["examples.jsonl"]
    assert left.pop(runs[1]) == whole
    assert left == dict.fromkeys(runs[5:], whole)
    assert len(store.runs.list()) == 12, "what is known of them stays"
    assert tidy(home, store, config(keep_runs=7), "serving", Remover(home, store)).removed == ()


def test_scratch(home: Home, store: Store) -> None:
    ended, going = run(home, store, 1, "failed"), store.runs.create("person", 1).id
    (home.runs / going).mkdir()
    for name in (ended, going):
        for scratch in ("candidate.safetensors", "checkpoint.safetensors"):
            path = home.runs / name / scratch
            path.write_bytes(os.urandom(KB))
            os.utime(path, (1, 1))
    tidy(home, store, config(), None, Remover(home, store))
    assert not list((home.runs / ended).glob("*.safetensors"))
    assert len(list((home.runs / going).glob("*.safetensors"))) == 2


def test_which_backups_go() -> None:
    """Three newest, one of the week before; what a person made or brought never."""
    days = [f"202611{day:02}T030000Z" for day in range(1, 26)]
    own = [f"auto_{day}.tar.gz" for day in days]
    others = [f"backup_{days[0]}.tar.gz", f"brought_{days[0]}.tar.gz", "auto_x.tar.gz", "backup_old"]
    going = surplus([*own, *others], keep=3, weeks=2)
    stay = sorted(set(own) - set(going))
    assert stay[-3:] == own[-3:]
    assert len(stay) == 5
    assert going == sorted(going)
    assert surplus(own[:3], keep=3, weeks=0) == []


def test_a_budget(home: Home, store: Store) -> None:
    """The least missed first, no more than needed, and never what must stay."""
    for day in range(1, 9):
        (home.root / "backups").mkdir(exist_ok=True)
        (home.backups / f"auto_202601{day:02}T000000Z.tar.gz").write_bytes(os.urandom(100 * KB))
    (home.backups / "backup_20250101T000000Z.tar.gz").write_bytes(os.urandom(400 * KB))
    adapter(home, store, "bad", "rejected", days=1)
    adapter(home, store, "good", "accepted", days=1)
    damaged = home.root / "damaged_20250101T000000Z"
    damaged.mkdir()
    (damaged / "store.db").write_bytes(os.urandom(400 * KB))
    used = measure(home).counted
    due = plan(home, store, config(), None)
    assert {item.kind for item in due.removed} == {"backup"}, "the ones that the schedule lets go"
    # A megabyte is the budget's smallest unit.
    wanted = config(budget_mb=1)
    would = plan(home, store, wanted, "good")
    assert [item.kind for item in would.removed if not item.due][:1] == ["adapter"], (
        "a rejected one is missed least"
    )
    tidy(home, store, wanted, "good", Remover(home, store))
    there = {path.name for path in home.backups.iterdir()}
    assert "backup_20250101T000000Z.tar.gz" in there
    assert {"auto_20260107T000000Z.tar.gz", "auto_20260108T000000Z.tar.gz"} <= there
    assert (damaged / "store.db").exists()
    assert (home.adapters / "good.safetensors").exists()
    assert not (home.adapters / "bad.safetensors").exists()
    assert measure(home).counted < used
    assert plan(home, store, wanted, "good").short > 0, "and it is said that this is not enough"


def test_cut_off_it_can_be_done_again(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(home, store, number) for number in range(9)]
    real = tidying.shutil.rmtree

    def cut(path: Path, **options: Any) -> None:
        if not options:
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(tidying.shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        tidy(home, store, config(keep_runs=6), None, Remover(home, store))
    monkeypatch.undo()
    tidy(home, store, config(keep_runs=6), None, Remover(home, store))
    assert sorted(path.name for path in home.runs.iterdir()) == sorted(runs[3:])


def test_not_while_something_is_forgotten(home: Home, store: Store) -> None:
    store.settings.set(FORGETTING, "{}")
    with pytest.raises(Conflict):
        tidy(home, store, config(), None, Remover(home, store))


def test_ages_in_the_store(home: Home, store: Store) -> None:
    for number, days in enumerate((1, 40)):
        store.completions.record(
            f"c{number}", time.time() - days * DAY, None, "m", None, "q", "r", [], "stop", 1, 1
        )
    store.audit.add("owner", "login")
    done = tidy(home, store, config(answers_days=30, audit_days=30), None, Remover(home, store))
    assert (done.answers, done.audit) == (1, 0)
    assert [found.id for found in store.completions.recent()] == ["c0"]


def test_the_command(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(home.root))
    monkeypatch.setattr("appliance.commands.storage.resting_switch", lambda home, store: Resting())
    home.config.write_text("[storage]\nmin_free_mb = 0\nkeep_runs = 6\n")
    runs = [run(home, store, number) for number in range(8)]
    invoke = CliRunner().invoke
    shown = invoke(cli, ["storage"])
    assert "Files of training runs" in shown.output, shown.output
    assert "may go" in shown.output
    would = json.loads(invoke(cli, ["storage", "--prune", "--dry-run", "--json"]).output)
    assert [item["name"] for item in would["removed"]] == runs[:2]
    assert len(list(home.runs.iterdir())) == 8
    assert "Removed 2" in invoke(cli, ["storage", "--prune"]).output
    assert len(list(home.runs.iterdir())) == 6
    assert invoke(cli, ["storage", "--prune"]).output.startswith("There is nothing that may go.")
    assert invoke(cli, ["storage", "--dry-run"]).exit_code == 2


def test_a_reserve(home: Home) -> None:
    """Made once, given up once."""
    put_by(home)
    put_by(home)
    (reserve,) = home.root.glob(".reserve")
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    assert give_up(home)
    assert not reserve.exists()
    assert not give_up(home)


class Resting:
    serving = None
