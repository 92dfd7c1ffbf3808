"""Real parts, each built once: the default model's bundle, its tokenizer, a home of one's own."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Beside another worker a second thread mostly waits for the first: more work for the same answers.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from daemons import daemon, start_daemon  # noqa: F401  (fixtures)
from hypothesis import HealthCheck, settings

from appliance import model
from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.model.importer import import_model
from appliance.model.tokenizer import Tokenizer

KEPT_SECONDS = 24 * 3600

# A busy machine is slow, which says nothing about the code: no test is timed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def cache() -> Path:
    """What is expensive to make lives here between runs; another import code means another place."""
    root = Path(os.environ.get("SHAMMAH_TEST_CACHE") or Path(__file__).parents[1] / ".cache").absolute()
    code = hashlib.sha256()
    for file in sorted(Path(model.__path__[0]).glob("*.py")):
        if file.name in ("build.py", "bundle.py", "chat.py", "convert.py", "graph.py", "quantize.py"):
            code.update(file.read_bytes())
    place = root / f"tests-{code.hexdigest()[:12]}"
    place.mkdir(parents=True, exist_ok=True)
    os.utime(place)
    for old in root.glob("tests-*"):
        if old.stat().st_mtime < time.time() - KEPT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    return place


@pytest.fixture(scope="session")
def bundle(cache: Path) -> Bundle:
    """The default model, imported for real; the import itself sees to it that two runs do not collide."""
    return import_model("default", Home(cache))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random model that is trained and judged in seconds, where what it says does not matter."""
    from checkpoints import make_checkpoint  # most tests need no torch

    place = tmp_path_factory.mktemp("small")
    made = make_checkpoint(place / "small", max_position_embeddings=2048)
    return import_model(str(made), Home(place / "home").ensure())


@pytest.fixture(scope="session")
def tokenizer(bundle: Bundle) -> Tokenizer:
    return Tokenizer(bundle)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()
