"""Receiver: native threads that receive, so that no datagram is lost while Python is busy.

A compiled Feeder for each socket has the ring and the thread; here is what makes one of several. Teaches
multiprocessing to pass rings on. May import _feeder, _ring, _epoll, _sock and the standard library.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import operator
import os
import select
import socket as _stdlib
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing import reduction
from types import TracebackType
from typing import Any, Self

from fastsock._epoll import Epoll
from fastsock._feeder import Feeder
from fastsock._ring import Ring, RingBatch, RingStats
from fastsock._sock import Socket

AnySocket = Socket | _stdlib.socket


class Receiver:
    """Receive on native threads, whatever Python does meanwhile.

    Each socket has a thread that never holds the GIL, and a ring in shared memory that it fills with whole
    batches, UDP GRO included. ``take`` and iteration hand them over without a copy. Where a ring is full, new
    datagrams are received and discarded, and counted; what Python still sees is never overwritten.

    Args:
        sock_or_socks: A bound datagram socket, or several, such as ``bind_udp_group`` makes. The receiver has
            duplicates of its own: closing a socket does not end it. Set options before, because what they make
            the kernel tell of each datagram is recorded (``bind_udp``), and receive from the sockets no more;
            only an error queue is still read there, with ``recv_errors``, because it takes room in the buffer.
        slots: Datagrams for which each ring has room, rounded up to whole blocks. With UDP GRO they lie side
            by side in ``slots * slot_size`` bytes, and more of them have room where they are short.
        slot_size: Bytes of each datagram that are kept; what is longer is cut and marked ``truncated``.
        vlen: Messages per receive, 1 to 1024; None for the fastest: 64, or 8 with UDP GRO.
        addresses: Record the peer of every datagram.
        cpus: The CPU that each socket's thread stays on, and from whose memory its ring is; None leaves it to the
            kernel.
        priority: 1 to 99 for real-time threads (SCHED_FIFO), which run before all that are not, so that other
            load on the machine costs no datagrams. It takes CAP_SYS_NICE or RLIMIT_RTPRIO. 0 for none.
        spin_us: Look for datagrams so long, up to 1,000,000, before sleeping, in the threads and in ``take``.
            It burns a CPU, and spares the time that it takes to wake up. With one socket, ``take`` receives
            on the caller's own thread while it waits.
        coalesce_us: After a wake-up sleep so long, up to 1,000,000, before receiving: larger batches, less CPU
            time. The socket's buffer must hold what comes meanwhile.

    Raises:
        OSError: A stream (EOPNOTSUPP); a closed socket (EBADF); a CPU that there is not (EINVAL); a ``priority``
            that is not allowed (EPERM); no memory or thread to be had (ENOMEM, EAGAIN).
        ValueError: An argument is out of its range.

    All memory is there from the start: ``slots * slot_size`` bytes and the columns, for each socket. A
    receiver belongs to its process: a forked child has no threads, but may take where the parent does not.
    """

    __module__ = "fastsock"

    def __init__(
        self,
        sock_or_socks: AnySocket | Iterable[AnySocket],
        *,
        slots: int = 65536,
        slot_size: int = 2048,
        vlen: int | None = None,
        addresses: bool = False,
        cpus: Sequence[int] | None = None,
        priority: int = 0,
        spin_us: float = 0,
        coalesce_us: float = 0,
    ) -> None:
        self._feeders: tuple[Feeder, ...] = ()
        self._epoll: Epoll | None = None  # of several
        self._wake = -1
        self._waiters = 0
        self._waiting = threading.RLock()  # a signal handler may close the receiver inside of take
        self._pid = os.getpid()
        self._closed = True  # until there is something to close
        socks = [sock_or_socks] if isinstance(sock_or_socks, AnySocket) else list(sock_or_socks)
        if not socks:
            raise ValueError("a receiver needs a socket")
        if cpus is not None and len(cpus) != len(socks):
            raise ValueError(f"{len(cpus)} CPUs for {len(socks)} sockets")
        try:
            for number, sock in enumerate(socks):
                self._feeders += (
                    start(
                        sock,
                        slots=slots,
                        slot_size=slot_size,
                        vlen=vlen,
                        addresses=addresses,
                        cpu=-1 if cpus is None else check_cpu(cpus[number]),
                        priority=priority,
                        spin_us=spin_us,
                        coalesce_us=coalesce_us,
                        name=f"fastsock-rx{number}",
                    ),
                )
            if len(socks) > 1:
                self._epoll = Epoll()
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                self._epoll.register(self._wake, select.EPOLLIN)
                for feeder in self._feeders:
                    self._epoll.register(feeder, select.EPOLLIN)
        except BaseException:
            self.close()
            raise
        # Those of several whose ring has not ended, by descriptor; and those that were seen to be readable.
        self._active: dict[int, Feeder] = {}
        if self._epoll is not None:
            self._active = {feeder.fileno(): feeder for feeder in self._feeders}
        self._ready: deque[Feeder] = deque()
        self._closed = False
        running.add(self)

    # --- taking ---------------------------------------------------------------------------------

    def take(self, max_datagrams: int | None = None, timeout: float | None = None) -> RingBatch:
        """Take datagrams that were received, without copying them.

        Waits until one is there, then returns what is, and never waits for more. A batch is of one socket, in
        the order of arrival, and of one block of its ring at most (about a megabyte); several sockets take turns.

        Args:
            max_datagrams: The most to take, at least 1; None for no limit.
            timeout: Seconds to wait for the first; None waits without end, 0 not at all.

        Returns:
            A ``RingBatch``; an empty one, which is false, when nothing came in time. Its slots go back
            to the ring when the batch and every view of it are gone, or are told to with ``release()``.

        Raises:
            EOFError: The receiver was stopped, and everything was taken.
            OSError: A socket failed, and everything of it was taken: with its errno, and once for each of
                several; the receiver is closed (EBADF).
            RuntimeError: Another process takes from these rings.
            ValueError: ``max_datagrams`` is below 1, or ``timeout`` negative.

        Any number of threads may take, each datagram once. Holds the GIL while it takes, releases it to wait.
        Restarts on EINTR (PEP 475).
        """
        if self._epoll is None:
            (feeder,) = self._feeders
            return feeder.take(max_datagrams, timeout)
        if max_datagrams is not None and max_datagrams < 1:
            raise ValueError(f"max_datagrams must be at least 1, not {max_datagrams}")
        if timeout is not None and not timeout >= 0:
            raise ValueError("Timeout value out of range")
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while True:
            batch = self._take_ready(max_datagrams)
            if batch:
                return batch
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            events = self._wait(self._epoll, left_s)
            if events or left_s != 0:
                for fd, _ in events:
                    if known := self._active.get(fd):
                        self._ready.append(known)
                    elif fd == self._wake:  # a child of a fork shares the epoll, and may have left out rings that ended
                        self._ready.extend(list(self._active.values()))
            elif batch is not None:
                return batch
            else:
                self._ready.extend(list(self._active.values())[:1])  # for an empty batch

    def _take_ready(self, max_datagrams: int | None) -> RingBatch | None:
        """What the first of the rings that were ready and have something holds; an empty batch or None if none has."""
        batch = None
        while True:
            try:
                feeder = self._ready.popleft()
            except IndexError:
                break
            try:
                batch = feeder.take(max_datagrams, 0)
            except EOFError:
                self._leave_out(feeder)
            except OSError:
                if self._closed or self._leave_out(feeder):
                    raise
            else:
                if batch:
                    return batch
        self._check_open()
        if all(feeder.closed for feeder in list(self._active.values())):
            raise EOFError("the receiver was stopped, and everything was taken")
        return batch

    def _wait(self, epoll: Epoll, timeout_s: float | None) -> list[tuple[int, int]]:
        """Wait until a ring is ready, or the receiver closed: the descriptors stay until nobody waits."""
        with self._waiting:
            self._check_open()
            self._waiters += 1
        try:
            return epoll.poll(timeout_s)
        finally:
            with self._waiting:
                self._waiters = max(0, self._waiters - 1)  # 0 in a child of a fork that a signal handler made
                if self._closed:
                    self._free_epoll()

    def _leave_out(self, feeder: Feeder) -> bool:
        """Look no more at a ring that has ended; whether it was looked at before."""
        with self._waiting:
            for fd, known in list(self._active.items()):
                if known is feeder:
                    del self._active[fd]
                    if self._epoll is not None and not self._closed:
                        if not self._active:
                            os.eventfd_write(self._wake, 1)  # readable from now on, and nobody waits
                        with contextlib.suppress(OSError):  # where somebody closes the ring meanwhile
                            self._epoll.unregister(fd)
                    return True
        return False

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RingBatch:
        try:
            return self.take()
        except EOFError:
            raise StopIteration from None

    def fileno(self) -> int:
        """Return a descriptor that is readable while there is something to take, and once everything has ended.

        For epoll, asyncio's ``add_reader``, trio's ``wait_readable`` and their like: only wait for it, and
        call ``take(timeout=0)`` then, which may find nothing after all.

        Raises OSError where the receiver is closed (EBADF).
        """
        self._check_open()
        return self._feeders[0].fileno() if self._epoll is None else self._epoll.fileno()

    # --- what it is made of, and what it did ---------------------------------------------------------

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The ring of each socket, in their order: to take from one of them, here or in another process.

        A ring can be an argument to a process of ``multiprocessing``, and has ``take``, iteration, ``fileno``
        and ``stats`` of its own. One process at a time takes from it, and not through the receiver then.
        """
        return self._feeders

    @property
    def stats(self) -> RingStats:
        """The counts of all rings together, as ``RingStats``; ``rings[i].stats`` has one's. They stay after close."""
        return total([ring.stats for ring in self._feeders])

    # --- the end --------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Receive what is queued at the sockets, then no more; stopping again does nothing.

        Returns once the threads are gone. What is in the rings can still be taken; then iteration ends.
        """
        for feeder in self._feeders:
            feeder.ask_to_stop()
        for feeder in self._feeders:
            feeder.stop()

    def close(self) -> None:
        """Stop, and free the rings; closing again does nothing. Batches that were taken stay valid.

        What was not taken is lost: to have it, ``stop`` first and take until EOFError.
        """
        self._closed = True
        for feeder in self._feeders:
            feeder.ask_to_close()
        with contextlib.ExitStack() as stack:  # all of it, whatever fails
            stack.callback(self._close_epoll)
            for feeder in self._feeders:
                stack.callback(feeder.close)

    def _close_epoll(self) -> None:
        with self._waiting:
            if self._waiters and self._wake >= 0:
                os.eventfd_write(self._wake, 1)
            self._free_epoll()

    def _free_epoll(self) -> None:
        """Free the descriptors that threads wait for, where none does any more."""
        if self._waiters == 0:
            if self._epoll is not None:
                self._epoll.close()
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1

    @property
    def closed(self) -> bool:
        """Whether the receiver is closed."""
        return self._closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            if self._pid == os.getpid():
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __getstate__(self) -> Any:
        raise TypeError("cannot copy or pickle a receiver: its rings can be passed on")

    def __repr__(self) -> str:
        if self._closed:
            return "<fastsock.Receiver, closed>"
        count = len(self._feeders)
        return f"<fastsock.Receiver of {count} socket{'s' if count != 1 else ''}>"


MOST_CPUS = 1 << 16  # no kernel has so many: EINVAL
running: weakref.WeakSet[Receiver] = weakref.WeakSet()


def forget_threads() -> None:
    """In the child of a fork no other thread waits, or holds a lock."""
    for receiver in list(running):
        receiver._waiting = threading.RLock()
        receiver._waiters = 0


os.register_at_fork(after_in_child=forget_threads)


@atexit.register
def stop_all() -> None:
    """No thread is left when the interpreter ends."""
    for receiver in list(running):
        receiver.stop()


def start(sock: AnySocket, **options: Any) -> Feeder:
    """A ring that a new thread fills from a duplicate of `sock`."""
    fd = os.dup(sock.fileno())
    try:
        duplicate = Socket(fileno=fd)
    except BaseException:
        os.close(fd)
        raise
    try:
        return Feeder(duplicate, **options)
    except BaseException:
        duplicate.close()
        raise


def check_cpu(cpu: int) -> int:
    number = operator.index(cpu)
    if number < 0:
        raise ValueError(f"a CPU is 0 or more, not {number}")
    return min(number, MOST_CPUS)


def total(stats: Sequence[RingStats]) -> RingStats:
    """The counts of several rings as one."""
    found = RingStats._make(map(sum_known, zip(*stats, strict=True)))
    return found._replace(
        largest_batch=max(one.largest_batch for one in stats),
        last_error=next((one.last_error for one in stats if one.last_error), 0),
    )


def sum_known(counts: tuple[int | None, ...]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


# --- rings as arguments to processes -----------------------------------------------------------------


def reduce_ring(ring: Ring) -> tuple[Any, ...]:
    return rebuild_ring, tuple(map(reduction.DupFd, ring._descriptors()))


def rebuild_ring(*duplicates: Any) -> Ring:
    return Ring._attach(*(duplicate.detach() for duplicate in duplicates))


for kind in (Ring, Feeder):
    reduction.register(kind, reduce_ring)
