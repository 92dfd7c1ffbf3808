"""Model bundles: whether their files are still what their manifests say."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.doctor.box import Box, Tell
from appliance.doctor.finding import Finding, error, note, ok, warning
from appliance.errors import BundleError
from appliance.model.bundle import MANIFEST, NAME, load_bundle, verify_bundle
from appliance.model.source import DEFAULT_NAME


def look(box: Box, tell: Tell) -> Iterator[Finding]:
    """The model to serve must be whole; another that is broken is only of no use."""
    served = box.config.model.name
    places = [box.home.models / served]
    if box.home.models.is_dir():
        others = sorted(path for path in box.home.models.iterdir() if NAME.fullmatch(path.name))
        places += [path for path in others if path.is_dir() and path.name != served]
    if not places[0].exists() and served == DEFAULT_NAME and box.standing is None:
        yield note(
            f"The default model, {served}, is not here yet.",
            "The first start imports it, which takes a minute; `shammah model import` does so now.",
        )
        places = places[1:]
    for number, path in enumerate(places):
        try:
            bundle = load_bundle(path)
            if bundle.manifest.name != path.name:
                raise BundleError(f"The {MANIFEST} in {path} is that of {bundle.manifest.name}.")
            if not box.quick:
                verify_bundle(bundle, _part(tell, number, len(places)))
        except BundleError as problem:
            seen = problem.message.partition(" Import ")[0]
            if path.name == served:
                yield error(seen, again(path.name))
            else:
                yield warning(
                    f"{seen} It is not the one that is served.",
                    f"Import it again, or delete it: `rm -r {path}`.",
                )
            continue
        for said in bundle.manifest.notes if path.name == served else ():
            yield note(f"{path.name}: {said}")
        how = "all files have their size" if box.quick else "all files have their hash"
        yield ok(f"{path.name}{', which is served' if path.name == served else ''}: {how}.")


def _part(tell: Tell, number: int, count: int) -> Tell:
    """Tells of one of several parts."""
    return lambda done: tell((number + done) / count)


def again(name: str) -> str:
    """How the model to serve is brought back."""
    if name == DEFAULT_NAME:
        return "`shammah model import` makes it anew; adapters fit it as before."
    return (
        f"Import it again: `shammah model import SOURCE --name {name}`; or serve another: `shammah model "
        f"list`, "
        "`shammah model use NAME`."
    )
