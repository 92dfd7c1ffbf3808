"""Lives of the real trainer, each ended by a real SIGKILL at a counted moment of it.

    python lives.py '{"lives": [["training", 90], …, null], "trainer": [its arguments]}'

Every life is a process of its own, forked from one that has imported torch and read the model but
never computed. A moment is so many calls or returns in the appliance's code within one phase: load,
start (what is computed before the first step), training, checkpoint (while one is written) or end.
`null` lives to its end. Prints one JSON line a life: the exit code, and each phase's moments.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import appliance
from appliance.learning.train import peft, program
from appliance.learning.train.checkpoint import Checkpoint
from appliance.learning.train.plan import Rehearsal
from appliance.learning.train.training import Training
from appliance.model.bundle import load_bundle

OURS = str(Path(appliance.__file__).parent)


def enter(owner: type, method: str, phase: str, then: str | None = None) -> None:
    """Let a method begin a phase, and perhaps its end another."""
    real: Callable[..., Any] = getattr(owner, method)

    def entered(*args: Any) -> Any:
        global present
        present = phase
        result = real(*args)
        present = then or phase
        return result

    setattr(owner, method, entered)


present = "load"
moments: Counter[str] = Counter()


def live(arguments: list[str], death: tuple[str, int] | None) -> int:
    def count(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename.startswith(OURS):
            moments[present] += 1
            if death is not None and moments[death[0]] >= death[1]:
                os.kill(os.getpid(), signal.SIGKILL)

    enter(Training, "run", "start", "end")
    enter(Training, "_optimise", "training")
    enter(Checkpoint, "save", "checkpoint", "training")
    enter(Training, "_settle", "end")
    sys.setprofile(count)
    try:
        return program.main(peft.build, arguments)
    finally:
        sys.setprofile(None)


def main() -> None:
    asked = json.loads(sys.argv[1])
    arguments: list[str] = asked["trainer"]
    loaded = program.load_checkpoint(load_bundle(Path(arguments[arguments.index("--bundle") + 1])))
    program.load_checkpoint = lambda bundle: loaded
    # Less to rehearse, for it is gone through again in each life.
    whole = Rehearsal.load()
    little = Rehearsal(tuple(text[:60] for text in whole.prose[:4]), whole.chats[:4])
    Rehearsal.load = classmethod(lambda cls: little)  # type: ignore[method-assign, assignment]
    for death in asked["lives"]:
        reading, writing = os.pipe()
        if (pid := os.fork()) == 0:
            code = live(arguments, death)
            os.write(writing, json.dumps(moments).encode())
            os._exit(code)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as pipe:
            counted = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"life": code, "moments": json.loads(counted or "null")}), flush=True)


if __name__ == "__main__":
    main()
