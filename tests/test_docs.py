"""What exists is documented: endpoints, routes, commands, config keys, events, metrics, rooms, links."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from sanic import Blueprint, Sanic

from appliance.api import completions, health, learning, models, openapi, storage
from appliance.cli import cli
from appliance.console import blueprint as console
from appliance.doctor.examine import CHECKS

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "appliance").rglob("*.py"))
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]


def _doc(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def _routes(name: str, *blueprints: Blueprint) -> set[str]:
    app: Sanic = Sanic(name)
    for blueprint in blueprints:
        app.blueprint(blueprint)
    found = set()
    for route in app.router.routes:
        path = "/" + re.sub(r"<(\w+)[^>]*>", r"{\1}", route.path)
        found |= {f"{method} {path}" for method in route.methods if method not in ("HEAD", "OPTIONS")}
    return found


def test_endpoints() -> None:
    api = (completions, models, learning, health, storage, openapi)
    routes = _routes("docs-api", *(module.blueprint for module in api))
    assert len(routes) >= 16
    assert [route for route in sorted(routes) if f"`{route}`" not in _doc("api")] == []


def test_console_routes() -> None:
    routes = _routes("docs-console", console)
    assert "POST /runs/train" in routes
    assert [route for route in sorted(routes) if f"`{route}`" not in _doc("console")] == []


def _commands(command: click.Command, path: str) -> list[str]:
    if isinstance(command, click.Group):
        return [found for name, sub in command.commands.items() for found in _commands(sub, f"{path} {name}")]
    return [path]


def test_commands() -> None:
    assert [verb for verb in _commands(cli, "shammah") if f"`{verb}`" not in _doc("operate")] == []


def test_config_reference_is_up_to_date() -> None:
    printed = CliRunner().invoke(cli, ["config", "docs"]).output
    assert printed == _doc("config"), "run `make docs`"


def test_events() -> None:
    names = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "publish":
                names |= {
                    constant.value
                    for constant in ast.walk(node.args[0])
                    if isinstance(constant, ast.Constant) and re.fullmatch(r"\w+\.\w+", str(constant.value))
                }
    assert "example.collected" in names
    assert [name for name in sorted(names) if f"`{name}`" not in _doc("observability")] == []


def test_metrics() -> None:
    """Those named whole in the code; what a scrape tells is compared in tests/api/test_metrics.py."""
    names = {
        name
        for source in SOURCES
        for name in re.findall(r'"(shammah_[a-z_]+)"', source.read_text(encoding="utf-8"))
    } - {"shammah_flash", "shammah_known", "shammah_session"}  # cookies
    assert len(names) > 10
    shown = _doc("observability")
    assert [name for name in sorted(names) if not re.search(rf"`{name}(_total)?`", shown)] == []


def test_checks_of_the_doctor() -> None:
    assert [check.id for check in CHECKS if f"| `{check.id}` |" not in _doc("operate")] == []


def test_rooms() -> None:
    rooms = [path.parent.name for path in (ROOT / "appliance").glob("*/__init__.py")]
    assert [room for room in rooms if f"`{room}/`" not in _doc("architecture")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http:", "https:", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"
