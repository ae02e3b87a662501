"""Work that no server waits for when it ends: loading, which takes long and cannot be cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

Result = TypeVar("Result")


async def in_thread_of_its_own(work: Callable[[], Result]) -> Result:
    """What ``work`` returns. Nothing waits for the thread when the caller is cancelled, nor when the process ends."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            with suppress(Exception):  # nobody waits any more
                future.set_exception(error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await asyncio.wrap_future(future)
