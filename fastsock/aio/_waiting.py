"""Waiting for a descriptor on asyncio, uvloop, trio and anyio: by one task at a time, in order.

Of the framework that runs this needs readiness and a lock. trio is never imported here, only found where it runs.
May import asyncio.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsock._epoll import Epoll
    from fastsock._sock import Socket

# Readiness may be false for good: an unconnected AF_UNIX socket is writable whatever its peer's queue. As in _sys,
# after so many futile wake-ups a call tries again every millisecond.
FUTILE_WAKEUPS = 4
RETRY_S = 0.001


def running_trio() -> Any:
    """The trio module where the caller is a task of trio; else None: then it is asyncio, or a loop like it."""
    in_trio_task = getattr(sys.modules.get("trio.lowlevel"), "in_trio_task", None)
    return sys.modules["trio"] if in_trio_task is not None and in_trio_task() else None


class Side:
    """Who waits for one descriptor in one direction: a task for the kernel, and the others behind it in order.

    A loop's ``add_reader`` would forget the first of two waiters, and trio refuse the second.
    """

    __slots__ = ("fd", "future", "lock", "loop", "runner", "writing")

    def __init__(self, writing: bool) -> None:
        self.writing = writing
        self.lock: Any = None  # asyncio.Lock or trio.Lock, once anybody waits
        self.runner: Any = None  # the loop, or the trio run, that it belongs to
        self.fd = -1  # what a task waits for
        self.loop: Any = None  # where it does; None on trio
        self.future: Any = None

    def is_taken(self) -> bool:
        """Whether a call waits, or sends the rest of something."""
        return self.lock is not None and bool(self.lock.locked())

    async def acquire(self, trio: Any) -> None:
        runner = asyncio.get_running_loop() if trio is None else trio.lowlevel.current_trio_token()
        if self.runner is not runner:
            if self.is_taken():
                raise RuntimeError("a task of another event loop waits for this socket")
            self.lock = asyncio.Lock() if trio is None else trio.Lock()
            self.runner = runner
        if trio is not None and not self.lock.locked():
            self.lock.acquire_nowait()  # acquire() would be a checkpoint too many
        else:
            await self.lock.acquire()

    def release(self) -> None:
        self.lock.release()

    async def wait(self, fd: int, trio: Any) -> None:
        """Wait until ``fd`` is ready, or ``interrupt`` is called. The caller has acquired."""
        if trio is not None:
            self.fd = fd
            try:
                await (trio.lowlevel.wait_writable if self.writing else trio.lowlevel.wait_readable)(fd)
            except trio.ClosedResourceError:
                pass  # the call that is tried now says that the socket is closed
            finally:
                self.fd = -1
            return
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        (loop.add_writer if self.writing else loop.add_reader)(fd, self.wake)
        self.fd, self.loop, self.future = fd, loop, future
        try:
            await future
        finally:
            self.unwatch()
            self.future = None

    def wake(self) -> None:
        self.unwatch()
        if not self.future.done():
            self.future.set_result(None)

    def unwatch(self) -> None:
        """Watch no more; only once, because the number may be another descriptor's by then."""
        loop, fd = self.loop, self.fd
        self.loop, self.fd = None, -1
        if loop is not None:
            (loop.remove_writer if self.writing else loop.remove_reader)(fd)

    def interrupt(self) -> None:
        """Wake the task that waits for the descriptor, which is about to be closed."""
        if self.loop is not None:
            if not self.loop.is_closed():
                self.wake()
        elif self.fd >= 0:
            sys.modules["trio"].lowlevel.notify_closing(self.fd)


class Turn:
    """How one call has waited so far."""

    __slots__ = ("held", "side", "trio", "wakeups")

    def __init__(self, side: Side, trio: Any) -> None:
        self.side = side
        self.trio = trio
        self.held = False  # whether this call may wait for the descriptor
        self.wakeups = 0  # how often it was ready; none of them has led to success

    async def queue(self) -> None:
        """Wait for the calls that came before."""
        await self.side.acquire(self.trio)
        self.held = True

    async def wait(self, waited: Socket | Epoll) -> None:
        """Wait until it is worth trying again: until ``waited`` is ready, closed, or free for this call."""
        if not self.held:
            behind = self.side.is_taken()
            await self.queue()
            if behind:
                return
        fd = waited.fileno()
        if fd < 0:
            return
        if self.wakeups < FUTILE_WAKEUPS:
            await self.side.wait(fd, self.trio)
            self.wakeups += 1
        elif self.trio is None:
            await asyncio.sleep(RETRY_S)
        else:
            await self.trio.sleep(RETRY_S)

    def end(self) -> None:
        if self.held:
            self.held = False
            self.side.release()
