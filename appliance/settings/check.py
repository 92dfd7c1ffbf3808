"""What the models cannot know: whether this box would start, and train, with changed settings.

A value that is fine by itself can still lock its owner out: the daemon would not come up again, and with it
the page to correct that. So the console refuses it.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from appliance.config import Config
from appliance.errors import BundleError, InvalidRequest, Unavailable
from appliance.home import Home
from appliance.learning.backend import trainer_program
from appliance.model.bundle import load_bundle
from appliance.model.source import DEFAULT_NAME
from appliance.network.certificates import load_supplied
from appliance.network.listening import listen, split_bind
from appliance.store import Store


def problems(config: Config, changed: Collection[str], home: Home, store: Store) -> dict[str, str]:
    """What speaks against starting with `config`, by key. Only what was changed is looked at."""
    found: dict[str, str] = {}
    if "server.bind" in changed and (problem := _address(config.server.bind)):
        found["server.bind"] = problem
    if "tls.bind" in changed and ":" in config.tls.bind and (problem := _address(config.tls.bind)):
        found["tls.bind"] = problem
    if {"tls.certificate", "tls.key"} & set(changed) and config.tls.certificate:
        try:
            load_supplied(config.tls)
        except InvalidRequest as error:
            found[error.param or "tls.certificate"] = error.message
    # The default model is imported when it is not there.
    if "model.name" in changed and config.model.name != DEFAULT_NAME:
        try:
            load_bundle(home.models / config.model.name)
        except BundleError as error:
            found["model.name"] = error.message
    # What `auto` stands for is decided by each run.
    if {"train.backend", "train.ort_python"} & set(changed) and config.train.backend != "auto":
        try:
            trainer_program(config.train)
        except Unavailable as error:
            found[error.param or "train.backend"] = error.message
    return found


def _address(bind: str) -> str | None:
    for place in split_bind(bind):
        try:
            for sock in listen(place):
                sock.close()
        except Unavailable as error:
            cause = error.__cause__
            # In use: most likely by this very daemon.
            if not (isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE):
                return error.message
    return None
