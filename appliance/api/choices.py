"""Several answers to one prompt, generated side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from appliance.engine.engine import Generation
from appliance.engine.request import Delta


class Choices:
    """An async iterator of (index, delta) as they come. Goes with `contextlib.aclosing`.

    An error of one ends all: half an answer is of no use to who asked for several.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        """Begin to listen; needs a running event loop."""
        self._generations = generations
        self._open = set(range(len(generations)))
        self._deltas: asyncio.Queue[tuple[int, Delta] | Exception] = asyncio.Queue()
        # One alone needs nobody to bring it together with others.
        self._listeners = [
            asyncio.create_task(self._listen(index, generation))
            for index, generation in enumerate(generations)
            if len(generations) > 1
        ]

    def __aiter__(self) -> Choices:
        return self

    async def __anext__(self) -> tuple[int, Delta]:
        while self._open:
            index, delta = await self._next()
            if index not in self._open:
                continue  # it was on its way when the choice was ended
            if delta.finish_reason is not None:
                self._open.discard(index)
            return index, delta
        raise StopAsyncIteration

    async def end(self, index: int) -> None:
        """Stop generating one of them, of which enough is known; harmless after its end."""
        self._open.discard(index)
        await self._generations[index].aclose()

    async def aclose(self) -> None:
        """Stop generating all that has not ended; harmless after the end."""
        for listener in self._listeners:
            listener.cancel()
        for generation in self._generations:
            await generation.aclose()

    async def _next(self) -> tuple[int, Delta]:
        if not self._listeners:
            return 0, await anext(self._generations[0])
        item = await self._deltas.get()
        if isinstance(item, Exception):
            self._open.clear()
            raise item
        return item

    async def _listen(self, index: int, generation: Generation) -> None:
        try:
            async for delta in generation:
                self._deltas.put_nowait((index, delta))
        except Exception as error:
            self._deltas.put_nowait(error)
