"""The gate's general questions, asked again of the very session that serves.

The gate judged a file; this looks at what has become of it in memory, on the path that answers devices.
Computing is exact (see `engine/session.py`), so the answers should be the gate's to the letter. They
are held to less: an update of the runtime may round otherwise and change a word.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from appliance.engine.engine import Engine
from appliance.engine.offline import PROBE_PROMPT, PROBE_TOKENS
from appliance.engine.request import GenerationRequest
from appliance.engine.sampling import SamplingParams
from appliance.engine.session import Session
from appliance.learning.probes import ANSWER_TOKENS, load_probes

GREEDY = SamplingParams(temperature=0)
CLIENT = "probation"


async def find_lost(
    engine: Engine, weights: Session, report: dict[str, Any], idle: Callable[[], Awaitable[None]]
) -> list[str]:
    """What the gate saw and is not so any more; questions, for a person.

    Args:
        engine: the engine that serves.
        weights: the session to ask.
        report: the gate's report on the same adapter.
        idle: awaited before each question, so that devices come first.

    Raises:
        Unavailable: the engine cannot answer.
        Busy: it has no place.
    """
    lost = []
    tokenizer = engine.tokenizer
    seen = tuple(report.get("fingerprint") or ())
    if seen:
        await idle()
        # The engine ends an answer at an end of turn; the gate's tokens go on behind it.
        ends = [place for place, token in enumerate(seen) if token in tokenizer.eos_ids]
        expected = tokenizer.decode(list(seen[: ends[0]] if ends else seen))
        text = await _ask(engine, weights, tokenizer.encode(PROBE_PROMPT), PROBE_TOKENS)
        if text != expected:
            lost.append(f'"{PROBE_PROMPT}" goes on as "{text.strip()}", not "{expected.strip()}".')
    answered = set(report.get("answered") or ())
    for probe in load_probes():
        if probe.question in answered:
            await idle()
            prompt = tokenizer.encode_chat([{"role": "user", "content": probe.question}])
            if not probe.passes(await _ask(engine, weights, prompt, ANSWER_TOKENS)):
                lost.append(probe.question)
    return lost


async def _ask(engine: Engine, weights: Session, prompt: list[int], tokens: int) -> str:
    request = GenerationRequest(tuple(prompt), tokens, GREEDY, client=CLIENT)
    async with aclosing(engine.generate(request, weights)) as deltas:
        return "".join([delta.text async for delta in deltas])
