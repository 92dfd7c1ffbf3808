"""The settings: whether the file can be used, and the box could start and learn with it."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.config import Config
from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, ok
from appliance.errors import ShammahError
from appliance.settings.check import problems

TOLD_ELSEWHERE = ("server.bind", "model.name")
"""By the checks of ports and models, which look closer."""


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """The same rules by which the console refuses a change."""
    path = box.home.config
    mend = f"Edit {path}; `shammah config check` lists every problem with its line."
    for problem in box.problems:
        yield error(problem, mend)
    if box.problems:
        return
    keys = [f"{name}.{key}" for name, section in box.config for key in type(section).model_fields]
    if box.store is not None:
        wanted = [key for key in keys if key not in TOLD_ELSEWHERE]
        try:
            found = problems(box.config, wanted, box.home, box.store)
        except ShammahError as problem:
            found = {"": problem.message}
        for key, text in found.items():
            yield error(f"{key}: {text}", mend)
        if found:
            return
    default = Config()
    changed = sum(getattr(box.config, name) != getattr(default, name) for name in Config.model_fields)
    said = (
        "every key has its default"
        if not changed
        else f"it changes {changed} of {len(Config.model_fields)} sections"
    )
    yield ok(f"{path.name} {'can be used' if path.exists() else 'does not exist'}: {said}.")
