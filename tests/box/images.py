"""The box's images, built from this checkout; the layers of an earlier build are used again."""

from __future__ import annotations

from pathlib import Path

from box.podman import Podman

CHECKOUT = Path(__file__).parents[2]
_built: dict[str, str] = {}


def build_image(podman: Podman, target: str = "full", context: Path = CHECKOUT, name: str = "test") -> str:
    """Build a target, once a session, and print what its layers weigh; the image's name."""
    tag = f"localhost/shammah:{name}-{target}"
    if tag not in _built:
        # The machine's own pip settings say where packages come from, torch as well.
        podman.build(context, tag, "--layers", "--target", target, "--build-arg", "TORCH_INDEX=")
        history = podman.run("history", "--format", "{{.Size}}\t{{.CreatedBy}}", tag).stdout
        shown = [line[:150] for line in history.splitlines() if not line.startswith("0 B")]
        size = podman.inspect(tag)["Size"]
        assert isinstance(size, int)
        print(f"\n{tag}: {size / 1e6:.0f} MB", *shown, sep="\n  ")
        _built[tag] = tag
    return tag
