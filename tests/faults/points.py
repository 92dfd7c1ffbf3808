"""Every failpoint in the code, and what has just happened when a process comes there."""

from __future__ import annotations

POINTS = {
    # An answer becomes an example, and a person's word does.
    "collect.completion": "in the transaction: the answer is recorded, its example is not",
    "collect.stored": "committed; nobody has been told",
    "feedback.added": "in the transaction: the example is there, what it supersedes is untouched",
    "feedback.stored": "committed; the client has no answer yet",
    "mirror.appended": "the line is in training_queue.jsonl, its length is not noted",
    # Any small file.
    "files.written": "the temporary file is whole and flushed, the old one is in place",
    "files.replaced": "the new file is in place, the directory is not flushed",
    "files.link": "the fresh link is made, the old one is in place",
    # A run.
    "train.recovering": "the start is about to take up what was cut off",
    "train.begun": "the run is in the store and holds its examples",
    "train.directory": "its directory is made",
    "train.frozen": "its examples are frozen, its settings are not",
    "train.prepared": "both are, the store says `queued`",
    "train.started": "the trainer runs, its process id is stored",
    "train.loaded": "in the trainer: model and examples are loaded",
    "train.stepped": "in the trainer: a step is made, no checkpoint of it",
    "train.checkpoint": "in the trainer: the checkpoint is written under its temporary name",
    "train.checkpointed": "in the trainer: the checkpoint has its name",
    "train.weights": "in the trainer: the candidate is written, nobody has been told",
    "train.trained": "the trainer has ended, the store says `training`",
    "gate.begun": "in the gate: nothing is judged",
    "gate.judged": "in the gate: the verdict is known, the report not written",
    "gate.written": "in the gate: the report is written, nobody has been told",
    "gate.reported": "the report is read, the verdict not stored",
    "gate.settled": "the verdict is stored, the candidate lies in the run's directory",
    "adapters.linked": "the candidate has two names, in the run's directory and among the adapters",
    "train.placed": "the candidate is among the adapters",
    "train.ended": "the outcome is stored; checkpoint and candidate lie about, nobody has been told",
    # A switch.
    "promote.back": "what to roll back to is chosen",
    "promote.swapped": "the engine serves the adapter; link and history say otherwise",
    "promote.stated": "in the transaction: history is written, the link is the old one",
    "promote.linked": "in the transaction: the link is the new one, history is not committed",
    "promote.recorded": "link and history are new, nobody has been told",
    # A backup, and putting one back.
    "backup.copied": "the database is copied",
    "backup.packed": "the archive is written under a temporary name",
    "backup.verified": "it was read again",
    "backup.published": "it has its name, nobody has been told",
    "restore.unpacked": "the archive is unpacked beside",
    "restore.checked": "what was unpacked is fit to serve, the note is not written",
    "restore.noted": "the note is written: the next start will restore",
    "restore.moved": "at the start: one of the old things is moved aside",
    "restore.aside": "at the start: all are",
    "restore.placed": "at the start: one of the new things is in place",
    "restore.finished": "at the start: all are, the note is still there",
    # A release with a newer schema.
    "migrate.copied": "the database is copied under a temporary name, nothing is changed",
    "migrate.begun": "in the transaction: nothing is changed",
    "migrate.applied": "in the transaction: a step is made, not committed",
    "migrate.committed": "a step is committed, others may follow",
    # What the owner does.
    "settings.recorded": "in the transaction: history tells of a change, config.toml is the old one",
    "settings.written": "in the transaction: config.toml is new, history is not committed",
    "settings.stored": "both are; the daemon goes by the old values",
    "keys.added": "in the transaction: the device is there",
    "keys.stored": "committed; the key has not been shown",
    "keys.revoked": "committed; the owner has no answer yet",
    "forget.back": "the adapters that learned it are out of service, the text is there",
    "forget.committed": "the text is out of the store, files still have it",
    "forget.cleaned": "it is out of the files of one run",
    "forget.removed": "one of the adapters that learned it is removed",
    "forget.scrubbed": "it is nowhere, the note that says what is due is still there",
    # The store's files are deleted or replaced under the box.
    "rescue.saved": "all that was stored is in a new file beside, the old one is open",
    "rescue.cleared": "nothing lies beside the old one any more, the new one has not its name",
    # What must go on turning. It is made to hang: see tests/api/test_health.py and tests/test_notify.py.
    "engine.queue": "a request is about to wait for a slot",
    "engine.step": "a step of the batch begins",
    "loop.turn": "the event loop is about to beat, or to answer",
}

IN_CHILD = frozenset(
    {
        "train.loaded", "train.stepped", "train.checkpoint", "train.checkpointed", "train.weights",
        "gate.begun", "gate.judged", "gate.written",
    }
)  # fmt: skip
"""In a child program: the daemon outlives a kill there."""
HANGS = frozenset({"engine.queue", "engine.step", "loop.turn"})
"""Passed many times a second, with nothing written: there a hang is the fault, not a kill."""
