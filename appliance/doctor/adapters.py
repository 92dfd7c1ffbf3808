"""Adapters: each file, what the store knows of it, and the link to the one in service."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

from appliance.adapters.file import SUFFIX, Adapter, read_adapter
from appliance.adapters.registry import Registry
from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.errors import AdapterInvalid, ShammahError
from appliance.model.bundle import Manifest, list_bundles
from appliance.store.adapters import AdapterRow

BACK = "`shammah adapters rollback` puts the one before back, `shammah adapters promote base` the base model."
_OF_ANOTHER = "was trained on another base model"


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """`current` first: it decides what is served. A quick look reads no other file."""
    bundle = box.bundle
    if bundle is None:
        if any(box.home.adapters.glob(f"*{SUFFIX}")):
            yield note("Adapters cannot be checked without the model that they belong to.")
        return
    registry = Registry(box.home, bundle.manifest)
    rows = {row.name: row for row in box.store.adapters.list(reports=False)} if box.store else None
    current = yield from _current(box, registry, rows)
    names = registry.list() if box.home.adapters.is_dir() else []
    yield from _missing(rows or {}, names)
    if box.quick:
        return
    manifests = [bundle.manifest, *(other.manifest for other in list_bundles(box.home))]
    whole, aside = 0, 0
    for number, name in enumerate(names):
        tell(number / len(names))
        path = registry.directory / f"{name}{SUFFIX}"
        row = (rows or {}).get(name)
        if row is not None and row.state == "rejected":
            continue  # it never serves, whatever is in it
        try:
            adapter = _read(path, manifests)
        except AdapterInvalid as problem:
            if _OF_ANOTHER in problem.message:
                aside += 1
            elif name != current:
                yield warning(problem.message, f"It cannot serve. Delete it: `rm {path}`.")
            continue
        whole += 1
        if row is not None and row.sha256 != adapter.sha256 and name != current:
            yield warning(
                f"{path.name} is not the file that the checks saw.",
                f"It will not be put in service. Delete it, or take it from a backup: `rm {path}`.",
            )
    if whole:
        yield ok(f"{_count(whole)} read and whole.")
    if aside:
        yield note(
            f"{_count(aside)} belong{'s' if aside == 1 else ''} to a model that is not on this box.",
            "They stay aside until that model is imported again; delete them when it never will be.",
        )


def _current(
    box: Box, registry: Registry, rows: dict[str, AdapterRow] | None
) -> Generator[Finding, None, str | None]:
    """What `current` says, whether that may serve, and whether it does. Returns its name."""
    try:
        name = registry.target()
        adapter = None if name is None else registry.load(name)
    except ShammahError as problem:
        yield error(f"The adapter in service cannot be used: {problem.message}", BACK)
        return None
    if adapter is None:
        yield ok("The base model is in service.")
    elif rows is not None:
        yield from _accepted(adapter, rows.get(adapter.name))
    else:
        yield note(f"{adapter.name} is whole; without the store nobody knows whether it passed the checks.")
    answering = box.standing
    if answering is not None and answering.ready and answering.adapter != name:
        yield warning(
            f"The daemon answers with {answering.adapter or 'the base model'}, but the next start would with "
            f"{name or 'the base model'}.",
            f"Say which it shall be: `shammah adapters promote {answering.adapter or 'base'}`.",
        )
    return name


def _accepted(adapter: Adapter, row: AdapterRow | None) -> Iterator[Finding]:
    if row is None or row.state != "accepted":
        yield error(f"{adapter.name} is in service, but did not pass the gate.", BACK)
    elif row.sha256 != adapter.sha256:
        yield error(f"{adapter.name} is in service, but its file is not the one that passed the gate.", BACK)
    elif row.withdrawn is not None:
        yield error(f"{adapter.name} is in service, but was withdrawn: {row.withdrawn}", BACK)
    else:
        yield ok(f"{adapter.name} is in service: whole, of this model, and passed the gate.")


def _missing(rows: dict[str, AdapterRow], names: list[str]) -> Iterator[Finding]:
    gone = [row.name for row in rows.values() if row.state == "accepted" and row.name not in names]
    if gone:
        yield warning(
            f"{_count(len(gone))} that passed the gate {'has' if len(gone) == 1 else 'have'} no file: "
            f"{', '.join(gone[:3])}{', …' if len(gone) > 3 else ''}.",
            "Nothing can go back to them. A backup has them: `shammah restore FILE`.",
        )


def _read(path: Path, manifests: list[Manifest]) -> Adapter:
    """The adapter, read for whichever of the models it fits."""
    problem: AdapterInvalid | None = None
    for manifest in manifests:
        try:
            return read_adapter(path, manifest)
        except AdapterInvalid as error:
            problem = problem or error
            if _OF_ANOTHER not in error.message:
                raise
    assert problem is not None
    raise problem


def _count(number: int) -> str:
    return "1 adapter" if number == 1 else f"{number} adapters"
