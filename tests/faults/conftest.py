"""Trials, and the table of what was survived at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon, accept_adapter, install_bundle
from faults.acts import ADAPTERS
from faults.trial import CONFIG, Trial, serving

from appliance.home import Home
from appliance.model.bundle import Bundle

MakeTrial = Callable[..., Trial]


@pytest.fixture
def trial(bundle: Bundle, tmp_path: Path) -> Iterator[MakeTrial]:
    """`trial(config, home=…, start=…, model=…)` -> a daemon with failpoints, ended with the test."""
    made: list[Trial] = []

    def make(
        config: str = CONFIG, home: Home | None = None, start: bool = True, model: Bundle = bundle
    ) -> Trial:
        home = home or Home(tmp_path / f"home{len(made)}").ensure()
        install_bundle(home, model)
        home.config.write_text(serving(model, config))
        one = Trial(Daemon(home), model)
        made.append(one)
        if start:
            one.daemon.start()
        return one

    yield make
    for one in made:
        one.daemon.kill()


@pytest.fixture(scope="session")
def tally() -> Iterator[Callable[[str, int, int], None]]:
    """`tally(what, tried, survived)`: counted, and printed when all is done."""
    tried: Counter[str] = Counter()
    survived: Counter[str] = Counter()

    def count(what: str, of: int, good: int) -> None:
        tried[what] += of
        survived[what] += good

    yield count
    if tried:
        width = max(map(len, tried))
        print(f"\n\n{'faults':{width}}  tried  survived")
        for what in tried:
            print(f"{what:{width}}  {tried[what]:5}  {survived[what]:8}")
        print(f"{'all':{width}}  {tried.total():5}  {survived.total():8}")


@pytest.fixture(scope="module")
def box(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """A daemon that does not train, with two adapters that may serve."""
    home = Home(tmp_path_factory.mktemp("faults") / "home").ensure()
    install_bundle(home, bundle)
    home.config.write_text(CONFIG)
    for seed, name in enumerate(ADAPTERS):
        accept_adapter(home, bundle, name, seed, only="down_proj")
    box = Trial(Daemon(home), bundle)
    box.daemon.start()
    yield box
    box.daemon.kill()
