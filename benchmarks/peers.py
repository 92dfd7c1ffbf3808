"""The peers that `serve.py` compares with: what they are, and how they are set up.

    python benchmarks/peers.py setup     # or: make peers

Puts everything under `.cache/bench` of the checkout (about 3 GB with the wheels' contents; some minutes):

* `venv/`: an environment of its own with the packages of `requirements/bench.txt`;
* `llama-server`: llama.cpp's server, built for this processor from the sources in the PyPI package
  llama-cpp-python (whose own Python server answers one request at a time). Needs a C++ compiler;
* `checkpoint/`: the default model's weights in fp32, for transformers;
* `genai-int4/`: onnxruntime-genai's own 4-bit model of them, made by its model builder. Its quality is
  lower than that of the others.

Each step is done once; delete the directory to do it again. Neither `make run` nor `make test` does any.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
REQUIREMENTS = ROOT / "requirements" / "bench.txt"
LLAMA_SOURCE = "llama-cpp-python==0.3.36"
CHECKPOINT_CODE = (
    "import sys, pathlib; from appliance.model.convert import gguf_to_checkpoint; "
    "from appliance.model.source import DEFAULT, resolve; "
    "gguf_to_checkpoint(resolve(DEFAULT).path, pathlib.Path(sys.argv[1]))"
)
# A server for this very processor, without a web page, TLS or anything fetched from the network.
LLAMA_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_SERVER": "ON",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


@dataclass(frozen=True)
class Peers:
    """Where the peers are, in a cache directory."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "venv" / "bin" / "python"

    @property
    def llama_server(self) -> Path:
        return self.root / "llama-server"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def genai(self) -> Path:
        return self.root / "genai-int4"


def peers(cache: Path = CACHE) -> Peers:
    """The peers kept in `cache`."""
    return Peers(cache.absolute() / "bench")


def setup(to: Peers) -> None:
    """Do the steps that are not done yet; each appears under its name only when it is whole."""
    to.root.mkdir(parents=True, exist_ok=True)
    steps: list[tuple[Path, Callable[[Peers, Path], None]]] = [
        (to.root / "venv" / "ready", _environment),
        (to.llama_server, _llama),
        (to.checkpoint, _checkpoint),
        (to.genai, _genai),
    ]
    for target, step in steps:
        if target.exists():
            print(f"{target.relative_to(to.root)}: done already")
            continue
        print(f"{target.relative_to(to.root)}: working ...", flush=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=to.root) as work:
            step(to, Path(work))


def _environment(to: Peers, work: Path) -> None:
    place = to.python.parents[1]
    shutil.rmtree(place, ignore_errors=True)
    _run(sys.executable, "-m", "venv", place)
    _run(to.python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS)
    (place / "ready").touch()


def _llama(to: Peers, work: Path) -> None:
    package = LLAMA_SOURCE.partition("=")[0]
    _run(
        *(to.python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package),
        *("--dest", work, LLAMA_SOURCE),
    )
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(work, filter="data")
    (source,) = work.glob("*/vendor/llama.cpp")
    build, tools = work / "build", to.python.parent
    # PyPI's ninja and cmake, so that a compiler is all the machine must have.
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    options = [f"-D{name}={value}" for name, value in LLAMA_OPTIONS.items()]
    _run(tools / "cmake", "-G", "Ninja", "-S", source, "-B", build, *options, env=environment)
    _run(tools / "cmake", "--build", build, "--target", "llama-server", env=environment)
    (build / "bin" / "llama-server").rename(to.llama_server)


def _checkpoint(to: Peers, work: Path) -> None:
    _run(sys.executable, "-c", CHECKPOINT_CODE, work / "made", env=_offline())
    (work / "made").rename(to.checkpoint)


def _genai(to: Peers, work: Path) -> None:
    _run(
        *(sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "", "-i", to.checkpoint),
        *("-o", work / "made", "-p", "int4", "-e", "cpu", "-c", work / "cache"),
        env=_offline(),
    )
    shutil.copy(to.checkpoint / "chat_template.jinja", work / "made")
    (work / "made").rename(to.genai)


def _offline() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def _run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    """Run a step; its chatter is shown when it fails."""
    with tempfile.TemporaryFile() as chatter:
        done = subprocess.run(
            [str(part) for part in command], env=env, stdout=chatter, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            chatter.seek(0)
            tail = chatter.read().decode(errors="replace")[-4000:]
            sys.exit(f"{tail}\nThis failed: {' '.join(str(part) for part in command)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["setup"])
    parser.add_argument("--cache", type=Path, default=CACHE, help="where they go")
    setup(peers(parser.parse_args().cache))


if __name__ == "__main__":
    main()
