"""The default model as it comes with an image: imported where that was built, put into the home at start.

It is copied and not linked. What an adapter has learned belongs to one base, so a home keeps the base it has
when a newer image brings another, and is whole when it is moved to another box.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from appliance.errors import StorageFull
from appliance.files import fsync_dir, storage_errors
from appliance.model.bundle import MANIFEST, Bundle, load_bundle

VARIABLE = "SHAMMAH_SEED"
_SPARE = 64 * 2**20


def find_seed(name: str) -> Bundle | None:
    """The bundle `name` among those in the directory that `SHAMMAH_SEED` names; None when there is none.

    Raises:
        BundleError: it is there, but incomplete.
    """
    root = os.environ.get(VARIABLE)
    if not root or not (Path(root) / name / MANIFEST).exists():
        return None
    return load_bundle(Path(root) / name)


def copy_seed(seed: Bundle, target: Path) -> None:
    """Copy a bundle's files to the new directory `target`, durably and compared by hash.

    Raises:
        StorageFull: there is no room.
        BundleError: a file arrived damaged, or was in the image.
    """
    size = sum(entry.size for entry in seed.manifest.files.values()) + _SPARE
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise StorageFull(
            f"The default model needs {size / 1e6:.0f} MB of disk; {target.parent} has {free / 1e6:.0f} MB. "
            "Free some space and start again."
        )
    target.mkdir(mode=0o700)
    with storage_errors(f"the model {seed.name}"):
        for name in (*seed.manifest.files, MANIFEST):
            copy = target / name
            shutil.copyfile(seed.path / name, copy)
            copy.chmod(0o600)
            with copy.open("rb") as written:
                os.fsync(written.fileno())
        fsync_dir(target)
    load_bundle(target, verify=True)
