"""Reading large things beside the event loop, few at a time.

Two threads of their own: who sends one large body after the other takes neither the event loop nor the
threads in which keys are looked up.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

LARGE = 64_000
"""Bytes or characters; with fewer a reading takes some milliseconds at most."""
_readers = ThreadPoolExecutor(2, thread_name_prefix="reader")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def beside(
    read: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """What `read` returns, read in one of the threads."""
    context = contextvars.copy_context()  # so that what is logged there knows its request
    return await asyncio.get_running_loop().run_in_executor(
        _readers, lambda: context.run(read, *arguments, **options)
    )
