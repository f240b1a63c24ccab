"""An event loop in a thread of its own, on which connections live whatever the user's threads do."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Thread, current_thread
from typing import Any, TypeVar

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop for Dask's connections, which need this kind on Windows, too. What fails in the background, mostly because
    the other side is gone, is told where it matters, and not on the terminal."""
    loop = asyncio.SelectorEventLoop()
    loop.set_exception_handler(lambda _, context: _log.debug("%s", context))
    return loop


class LoopThread:
    """A thread that runs coroutines."""

    def __init__(self, name: str) -> None:
        self._pid = os.getpid()
        self._loop = new_loop()
        self._thread = Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def start(self, coroutine: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Run a coroutine, from any thread; coroutines begin in the order in which they were given."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine, and wait for it."""
        future = self.start(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def finish(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a last coroutine, cancel what is left, and end the thread."""
        if current_thread() is self._thread:  # the garbage was collected there
            Thread(target=self.finish, args=(last,), name=self._thread.name).start()
            return
        if self._loop.is_closed() or os.getpid() != self._pid:  # a fork of this process has no such thread
            return
        try:
            self.run(last())
        finally:
            self.run(self._cancel_others())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _cancel_others(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()
