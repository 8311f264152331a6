"""AsyncSocket, bind_udp and connect_udp: a Socket whose calls are awaited, on asyncio, uvloop, trio and anyio.

May import _waiting, fastsock's classes and asyncio.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import operator
import os
import select
import socket as _stdlib
from collections.abc import Callable, Coroutine, Generator, Iterable
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar

from fastsock import _udp
from fastsock._epoll import Epoll
from fastsock._errqueue import ErrorRecord
from fastsock._recvbatch import RecvBatch
from fastsock._sendbatch import SendBatch
from fastsock._sock import Socket, SocketStats
from fastsock.aio._waiting import Side, Turn, running_trio

if TYPE_CHECKING:
    from typing_extensions import Buffer

P = ParamSpec("P")
R = TypeVar("R")
MadeT = TypeVar("MadeT", bound="AsyncSocket")

BUSY_NS = 1_000_000
"""How long calls that never wait may follow each other before other tasks have their turn."""
SEND_DATAGRAMS = 1024
"""Datagrams that are sent between two looks at the clock: what sendmmsg takes."""
SEND_BYTES = 1 << 20
"""The same for ``send_segments``."""

# What the kernel reports once, for an earlier datagram: icmp(7), udp(7); as is_asynchronous in _send.pyx.
REPORTED_ONCE = frozenset(
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOPROTOOPT,
    )
)


class AsyncSocket:
    """A ``Socket`` whose calls are awaited: on asyncio, on any loop with ``add_reader``, on trio, and so on anyio.

    Args:
        sock: A datagram or seqpacket ``Socket``, which calls do not wait on any more (``setblocking(False)``); it
            is closed with this object.

    Raises:
        TypeError: ``sock`` is no ``fastsock.Socket``.
        ValueError: It is a stream.

    A call first tries, and only where nothing is there, or no room, waits until the socket is ready.
    Several tasks may use one object: those that have to wait do so in the order in which they came, senders and
    receivers each by themselves. One event loop at a time; no other object may wait for the same socket.

    Cancellation loses no datagram: nothing is ever received, or sent, and then waited for. A send that is
    cancelled, or fails, behind a part of its datagrams says how many the kernel took in the attribute ``sent``
    of the exception; of a ``SendBatch`` that is sent, ``unsent`` says it too.

    Calls that always find something let other tasks run once a millisecond; on trio each call is a checkpoint.
    ``close`` ends what waits with OSError (EBADF), on trio too.
    """

    __module__ = "fastsock.aio"
    __slots__ = ("__weakref__", "_alarm", "_failing", "_ran_ns", "_reading", "_refused", "_sock", "_writing")

    def __init__(self, sock: Socket) -> None:
        if not isinstance(sock, Socket):
            raise TypeError(f"a fastsock.Socket was expected, got {sock!r}; Socket.from_stdlib() makes one")
        if sock.type == _stdlib.SOCK_STREAM:
            raise ValueError(f"a datagram socket was expected, got {sock!r}")
        sock.setblocking(False)
        self._sock = sock
        self._reading = Side(writing=False)
        self._writing = Side(writing=True)
        self._failing = Side(writing=False)  # waits for _alarm
        self._alarm: Epoll | None = None  # readable while the socket has POLLERR, whatever else it has
        self._ran_ns = perf_counter_ns()  # when other tasks last had their turn
        self._refused = 0  # an errno that the kernel reports once, for the next send

    def __repr__(self) -> str:
        return f"<fastsock.aio.AsyncSocket {self._sock!r}>"

    # --- the socket -----------------------------------------------------------------------------

    @property
    def socket(self) -> Socket:
        """The ``Socket``, for its options, groups and everything else that never waits."""
        return self._sock

    @property
    def stats(self) -> SocketStats:
        """As ``Socket.stats``."""
        return self._sock.stats

    @property
    def drops(self) -> int:
        """As ``Socket.drops``."""
        return self._sock.drops

    def fileno(self) -> int:
        """Return the file descriptor, or -1 once the socket is closed."""
        return self._sock.fileno()

    def getsockname(self) -> Any:
        """Return the local address. See getsockname(2)."""
        return self._sock.getsockname()

    def close(self) -> None:
        """Close the socket; closing it again does nothing.

        Calls that wait end with OSError (EBADF); a send that is partly done returns its count. Call it in the
        thread of the event loop.
        """
        alarm, self._alarm = self._alarm, None
        try:
            for side in (self._reading, self._writing, self._failing):
                side.interrupt()
        finally:
            self._sock.close()
            if alarm is not None:
                alarm.close()

    async def aclose(self) -> None:
        """``close``, for ``contextlib.aclosing`` and the like; on trio it is a checkpoint, behind the closing."""
        self.close()
        trio = running_trio()
        if trio is not None:
            await trio.lowlevel.checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- receiving ------------------------------------------------------------------------------

    async def recv_many(self, vlen: int = 64, bufsize: int = 65535, flags: int = 0) -> list[bytes]:
        """As ``Socket.recv_many``: waits until a datagram is there, then takes up to ``vlen`` that are.

        With MSG_DONTWAIT in ``flags`` it does not wait (BlockingIOError). The loop is held for as long as it takes to
        copy ``vlen`` datagrams.
        """
        return await self._receive(flags, self._sock.recv_many, vlen, bufsize, flags)

    async def recvfrom_many(self, vlen: int = 64, bufsize: int = 65535, flags: int = 0) -> list[tuple[bytes, Any]]:
        """As ``recv_many``, but a list of ``(bytes, address)``."""
        return await self._receive(flags, self._sock.recvfrom_many, vlen, bufsize, flags)

    async def recv_batch(self, batch: RecvBatch, flags: int = 0) -> int:
        """As ``Socket.recv_batch``: returns how many datagrams ``batch`` has, at least 1.

        The batch may be used for something else while this call waits.
        """
        return await self._receive(flags, self._sock.recv_batch, batch, flags)

    def batches(
        self,
        batch: RecvBatch | None = None,
        *,
        vlen: int | None = None,
        slot_size: int | None = None,
        addresses: bool = False,
        flags: int = 0,
    ) -> Batches:
        """Iterate over what arrives, with ``async for``: one ``RecvBatch``, received into again for each step.

        Args:
            batch: The batch to use.
            vlen, slot_size, addresses: Those of a new one. 64 messages of 2048 bytes by default, with UDP GRO 16
                of 65535, which it needs.
            flags: As recvmmsg(2).

        Raises:
            TypeError: ``batch`` and the geometry of another are given.

        What the batch holds is overwritten by the next step. It goes on until ``recv_batch`` raises, as it does
        when the socket is closed; leaving the loop leaves nothing behind, and another may go on.
        """
        if batch is None:
            gro = self._sock.gro
            batch = RecvBatch(
                (16 if gro else 64) if vlen is None else vlen,
                (65535 if gro else 2048) if slot_size is None else slot_size,
                addresses=addresses,
            )
        elif addresses or (vlen, slot_size) != (None, None):
            raise TypeError("batches() takes a batch, or vlen, slot_size and addresses of a new one")
        return Batches(self, batch, flags)

    async def recv_errors(self) -> list[ErrorRecord]:
        """Wait until the error queue has a record, and take all: as ``Socket.recv_errors``, but at least one.

        It hears of those that another call came upon too. ``socket.recv_errors()`` takes what is there without
        waiting.

        Raises:
            OSError: The socket is closed (EBADF), or has an error and no record of it: ECONNREFUSED where it has
                no error queue, which the next receive or send would have raised.
        """
        trio = await self._start()
        side = self._failing
        turn = Turn(side, trio)
        await turn.queue()
        try:
            while True:
                records = self._sock.recv_errors()
                if records:
                    return records
                if turn.wakeups:
                    error = self._sock.getsockopt(_stdlib.SOL_SOCKET, _stdlib.SO_ERROR)
                    if error:
                        raise OSError(error, os.strerror(error))
                if self._alarm is None:
                    self._alarm = Epoll()
                    self._alarm.register(self._sock, 0)  # POLLERR needs no asking
                else:
                    self._alarm.modify(self._sock, 0)
                await turn.wait(self._alarm)
        finally:
            turn.end()

    async def _receive(self, flags: int, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        trio = running_trio()
        if trio is not None or perf_counter_ns() - self._ran_ns > BUSY_NS:
            await self._pass(trio)  # before the call: nothing is lost where it is cancelled
        try:
            if not self._reading.is_taken():
                try:
                    return call(*args, **kwargs)
                except BlockingIOError:
                    if flags & _stdlib.MSG_DONTWAIT:
                        raise
            turn = Turn(self._reading, trio)
            try:
                while True:
                    await turn.wait(self._sock)
                    self._ran_ns = perf_counter_ns()
                    try:
                        return call(*args, **kwargs)
                    except BlockingIOError:
                        if flags & _stdlib.MSG_DONTWAIT:
                            raise
                        self._sock._keep_errors()  # they would keep the socket ready
            finally:
                turn.end()
        finally:
            self._ring()

    # --- sending --------------------------------------------------------------------------------

    async def send_many(self, payloads: Iterable[Buffer], flags: int = 0) -> int:
        """Send each of ``payloads`` as one datagram to the connected peer; waits for room until all are sent.

        Args:
            payloads: An iterable of bytes-like objects, kept until the call ends; do not change them meanwhile.
            flags: As sendmmsg(2). With MSG_DONTWAIT it does not wait: a short count may then mean that there
                is no room.

        Returns:
            How many the kernel took: all of them, or fewer where the next one was refused. Calling again with
            the rest says why.

        Raises:
            OSError: As ``Socket.send_many``: the first was refused, and nothing was sent.

        The ``sent`` attribute of any exception, that of cancellation too, is how many the kernel took.
        """
        items = tuple(payloads)
        return await self._send(
            flags, len(items), lambda done: self._sock.send_many(items[done : done + SEND_DATAGRAMS], flags)
        )

    async def sendto_many(self, payloads: Iterable[Buffer], address: Any, flags: int = 0) -> int:
        """As ``send_many``, to one peer or, with a sequence of addresses, each to its own.

        Addresses are in digits: a name is resolved by the call, which holds the loop meanwhile.

        Raises:
            ValueError: The sequence of peers is not as long as that of the payloads.
        """
        items = tuple(payloads)
        peers = None if self._is_one_address(address) else tuple(address)
        if peers is not None and len(peers) != len(items):
            raise ValueError(f"{len(items)} payloads for {len(peers)} addresses")

        def step(done: int) -> int:
            part = slice(done, done + SEND_DATAGRAMS)
            return self._sock.sendto_many(items[part], address if peers is None else peers[part], flags)

        return await self._send(flags, len(items), step)

    async def send_batch(self, batch: SendBatch, flags: int = 0) -> int:
        """As ``Socket.send_batch``: send what is unsent in ``batch``, or all of it; waits for room as ``send_many``.

        ``batch.unsent`` is exact at any time, after cancellation too: calling again goes on behind what was sent.
        """
        total = batch.unsent or len(batch)
        return await self._send(flags, total, lambda _: self._sock.send_batch(batch, flags))

    async def send_segments(self, payload: Buffer, segment_size: int, address: Any = None, flags: int = 0) -> int:
        """Send ``payload`` as datagrams of ``segment_size`` bytes; as ``Socket.send_segments``, but waits for room.

        Returns:
            The bytes that the kernel took: all, or a multiple of ``segment_size`` where the next datagram was
            refused. The ``sent`` attribute of an exception is in bytes too.
        """
        size = operator.index(segment_size)
        step = max(1, SEND_BYTES // max(1, size)) * size
        with memoryview(payload) as given, given.cast("B") as view:

            def send(done: int) -> int:
                with view[done : done + step] as part:
                    return self._sock.send_segments(part, size, address, flags)

            return await self._send(flags, len(view), send)

    def _is_one_address(self, address: Any) -> bool:
        """As in _send.pyx: one peer, or a sequence of them."""
        if isinstance(address, tuple):
            return self._sock.family != _stdlib.AF_UNIX and not (address and isinstance(address[0], tuple))
        return isinstance(address, str | bytes | bytearray | memoryview) or not hasattr(address, "__iter__")

    async def _send(self, flags: int, total: int, step: Callable[[int], int]) -> int:
        """Send until `total` went; `step` sends what is behind the first so many, and returns how many more went."""
        done = 0
        try:
            trio = await self._start()
            turn = Turn(self._writing, trio)
            try:
                if self._writing.is_taken():
                    await turn.queue()
                self._raise_refused()
                while True:
                    try:
                        done += self._try(step, done, turn)
                        turn.wakeups = 0
                    except BlockingIOError:
                        if flags & _stdlib.MSG_DONTWAIT:
                            if done:
                                return done
                            raise
                    except Exception as error:
                        if not done:
                            raise
                        # Most refusals are met again by the next call; what is reported once is kept for it.
                        if getattr(error, "errno", 0) in REPORTED_ONCE and self._sock.family != _stdlib.AF_UNIX:
                            self._refused = error.errno  # type: ignore[attr-defined]
                        return done
                    else:
                        if done >= total:
                            return done
                        await self._start()
                        continue
                    await turn.wait(self._sock)
                    self._ran_ns = perf_counter_ns()
            finally:
                turn.end()
                self._ring()
        except BaseException as error:
            error.sent = done  # type: ignore[attr-defined]
            raise

    def _try(self, step: Callable[[int], int], done: int, turn: Turn) -> int:
        try:
            return step(done)
        except BlockingIOError:
            if turn.wakeups:
                self._sock._keep_errors()  # they would keep the socket ready
            raise

    def _raise_refused(self) -> None:
        refused, self._refused = self._refused, 0
        if refused:
            raise OSError(refused, os.strerror(refused))

    # --- other tasks ----------------------------------------------------------------------------

    async def _start(self) -> Any:
        """Begin a call: a checkpoint on trio; elsewhere only when this thread has been busy. Returns trio, or None."""
        trio = running_trio()
        if trio is not None or perf_counter_ns() - self._ran_ns > BUSY_NS:
            await self._pass(trio)
        return trio

    async def _pass(self, trio: Any) -> None:
        """Let other tasks run."""
        if trio is not None:
            await trio.lowlevel.checkpoint()
        else:
            await asyncio.sleep(0)
        self._ran_ns = perf_counter_ns()

    def _ring(self) -> None:
        """Wake recv_errors for records that a call came upon: the socket has no POLLERR any more."""
        if self._alarm is not None and self._failing.fd >= 0 and self._sock._errors_kept:
            self._alarm.modify(self._sock, select.EPOLLOUT)


class Batches:
    """What ``AsyncSocket.batches`` returns."""

    __slots__ = ("_batch", "_flags", "_sock")

    def __init__(self, sock: AsyncSocket, batch: RecvBatch, flags: int) -> None:
        self._sock = sock
        self._batch = batch
        self._flags = flags

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RecvBatch:
        await self._sock.recv_batch(self._batch, self._flags)
        return self._batch


# --- making sockets ----------------------------------------------------------------------------------


class Opening(Generic[MadeT]):
    """A socket that is being opened: to await, or to enter with ``async with``, which closes it."""

    __slots__ = ("_coroutine", "_made")

    def __init__(self, coroutine: Coroutine[Any, Any, MadeT]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, MadeT]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> MadeT:
        self._made = await self._coroutine
        return self._made

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._made.aclose()


def opening(make: Callable[P, Socket], flags: int, text: str) -> Callable[P, Opening[AsyncSocket]]:
    """Make of a function that opens a socket one with the same arguments, which resolves names off the loop first."""

    @functools.wraps(make)
    def opened(*args: P.args, **options: P.kwargs) -> Opening[AsyncSocket]:
        return Opening(open_socket(make, flags, args, options))

    opened.__doc__ = text
    opened.__module__ = "fastsock.aio"
    opened.__signature__ = inspect.signature(make).replace(return_annotation="AsyncSocket")  # type: ignore[attr-defined]
    return opened


async def open_socket(make: Callable[..., Socket], flags: int, args: Any, options: Any) -> AsyncSocket:
    trio = running_trio()
    if trio is not None:
        await trio.lowlevel.checkpoint()
    address, *_ = args or (options.pop("address", None),)
    local = options.get("local_address")
    if not is_name(address) and not is_name(local):
        return AsyncSocket(make(address, *args[1:], **options))
    family = _stdlib.AF_INET6 if options.get("dualstack_ipv6") else options.pop("family", None) or 0
    failure: OSError | None = None
    for candidate, resolved in await resolve(trio, address, family, flags):
        options["family"] = candidate
        try:
            if local is not None:
                options["local_address"] = (await resolve(trio, local, candidate, 0))[0][1]
            return AsyncSocket(make(resolved, *args[1:], **options))
        except OSError as error:
            failure = failure or error
    assert failure is not None, "getaddrinfo returns at least one address or raises"
    raise failure


def is_name(address: Any) -> bool:
    """Whether the host of an address has to be resolved."""
    if not isinstance(address, tuple) or not 2 <= len(address) <= 4 or not isinstance(address[0], str):
        return False
    if not address[0]:
        return False  # every address
    try:
        _stdlib.getaddrinfo(address[0], None, 0, _stdlib.SOCK_DGRAM, 0, _stdlib.AI_NUMERICHOST)
    except OSError:
        return True
    return False


async def resolve(trio: Any, address: Any, family: int, flags: int) -> list[tuple[int, Any]]:
    """What getaddrinfo says, in a thread: ``(family, address)``."""
    host, port, *rest = address
    get = trio.socket.getaddrinfo if trio is not None else asyncio.get_running_loop().getaddrinfo
    found = await get(host, None, family=family, type=_stdlib.SOCK_DGRAM, proto=_stdlib.IPPROTO_UDP, flags=flags)
    return [(entry[0], (entry[4][0], port, *rest, *entry[4][2 + len(rest) :])) for entry in found]


bind_udp = opening(
    _udp.bind_udp,
    _stdlib.AI_PASSIVE,
    """Open an ``AsyncSocket`` bound to ``address``, with the arguments and errors of ``fastsock.bind_udp``.

    ``sock = await bind_udp(...)``, or ``async with bind_udp(...) as sock``, which closes it at the end. A host
    name is resolved without holding the loop.
    """,
)
connect_udp = opening(
    _udp.connect_udp,
    0,
    """Open an ``AsyncSocket`` connected to ``address``, with the arguments and errors of ``fastsock.connect_udp``.

    To await, or to enter with ``async with``, as ``bind_udp``.
    """,
)
