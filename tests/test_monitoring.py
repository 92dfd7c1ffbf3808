"""The files in monitoring/: what they ask for exists, and Prometheus understands it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FILES = ROOT / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((FILES / "shammah.json").read_text(encoding="utf-8"))
SUFFIXES = ("_bucket", "_sum", "_count")


def _documented() -> set[str]:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    return set(re.findall(r"`((?:shammah|process)_[a-z_]+)`", text))


def _expressions() -> list[str]:
    panels = DASHBOARD["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return found + [item["expr"] for item in DASHBOARD["annotations"]["list"]]


def test_only_metrics_that_exist() -> None:
    """tests/api/test_metrics.py compares what is documented with what a box tells."""
    known = _documented()
    alerts = (FILES / "alerts.yml").read_text(encoding="utf-8")
    asked = set(re.findall(r"\b((?:shammah|process)_[a-z_]+)\b(?!=)", "\n".join([*_expressions(), alerts])))
    assert len(asked) > 30
    bare = {next((name.removesuffix(end) for end in SUFFIXES if name.endswith(end)), name) for name in asked}
    assert sorted(name for name in bare - known if name not in asked & known) == []


def test_the_dashboard_hangs_together() -> None:
    panels = DASHBOARD["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == ["Serving", "Learning", "Box"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert 'instance=~"$instance"' in target["expr"]
    assert [variable["name"] for variable in DASHBOARD["templating"]["list"]] == ["datasource", "instance"]


@pytest.mark.box
def test_prometheus_understands_them(tmp_path: Path) -> None:
    assert shutil.which("promtool"), "promtool is of Debian's package prometheus"
    queries = [
        {
            "record": f"query:{number}",
            "expr": expr.replace("$__rate_interval", "1m").replace("$instance", ".*"),
        }
        for number, expr in enumerate(_expressions())
    ]
    rules = tmp_path / "queries.yml"
    rules.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": queries}]}))
    for command in (
        ["check", "rules", rules],
        ["check", "rules", FILES / "alerts.yml"],
        ["check", "config", "--syntax-only", FILES / "prometheus.yml"],
    ):
        done = subprocess.run(["promtool", *command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
