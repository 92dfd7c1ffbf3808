"""Write the pinned lists in this directory from pyproject.toml, with pip's own resolver.

Run by `make lock`. Packages already in the lists keep their version unless `--upgrade` is given.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
HEADER = "# Made by `make lock` from pyproject.toml; edit that, not this.\n"
NOTES = {
    "serve": "# What the serving process needs, with everything it pulls in. No torch.\n",
    "train": (
        "# What importing a model and training add to serve.txt.\n"
        "# torch: any build of this release does. PyPI's Linux wheel brings gigabytes of CUDA libraries;\n"
        "# for the CPU build set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu before\n"
        "# `make run`, or install it first: pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu\n"
    ),
    "dev": "# What tests, lint and benchmarks add to train.txt.\n",
}


def resolve(wanted: list[str], constraints: list[str]) -> dict[str, str]:
    """Everything that installing `wanted` would install: name -> version."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(constraints))
        file.flush()
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", "-", "-c", file.name, *wanted]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = (item["metadata"] for item in report["install"])
    # A local version (torch's "+cpu") names a build, not a release: a pin without it takes any build.
    return {re.sub(r"[-_.]+", "-", meta["name"]).lower(): meta["version"].partition("+")[0] for meta in found}


def main() -> None:
    """Resolve the groups one on top of the other and write what each adds."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = {"serve": project["dependencies"], "train": extras["train"], "dev": extras["dev"]}
    lists = [path for path in (HERE / f"{group}.txt" for group in groups) if path.exists()]
    old = [
        line for path in lists for line in path.read_text().splitlines() if "==" in line and line[0] != "#"
    ]
    direct = {re.split(r"[=\[]", item)[0] for items in groups.values() for item in items}
    keep = [] if "--upgrade" in sys.argv else [line for line in old if line.split("==")[0] not in direct]

    wanted: list[str] = []
    below: dict[str, str] = {}
    previous = ""
    for group, items in groups.items():
        wanted += items
        found = resolve(wanted, keep + [f"{name}=={version}" for name, version in below.items()])
        added = {name: version for name, version in sorted(found.items()) if name not in below}
        text = HEADER + NOTES[group] + (f"-r {previous}.txt\n" if previous else "")
        (HERE / f"{group}.txt").write_text(text + "".join(f"{n}=={v}\n" for n, v in added.items()))
        below |= added
        previous = group


if __name__ == "__main__":
    main()
