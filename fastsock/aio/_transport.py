"""The transport of a datagram endpoint: batches below, asyncio's protocol interface above.

Needs of a loop ``add_reader``, ``add_writer``, ``call_soon`` and ``call_exception_handler``. May import
fastsock's classes and asyncio.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket as _stdlib
import warnings
from collections.abc import Iterator
from operator import length_hint
from time import perf_counter_ns
from typing import Any

from fastsock._errqueue import ErrorRecord
from fastsock._outbox import OVERHEAD, Outbox
from fastsock._recvbatch import RecvBatch
from fastsock._sock import Socket

READ_DATAGRAMS = 1024
READ_US = 1000
FEW = 16
MANY = 64
"""Messages per receive: few as long as they are joined by GRO, or that many are seldom there; each takes memory."""
FIRST_SLICE = 8
LONGEST_SLICE = 16
"""Datagrams that a protocol is given between two looks at the clock; fewer where it is slow."""
MOST_SENT = 1024
"""Datagrams that are handed over at once: what sendmmsg takes."""
SINGLY = 64
"""Datagrams that are sent one by one behind one that was refused: the next may be, too."""


class DatagramTransport(asyncio.Transport, asyncio.DatagramTransport):
    """The transport that ``create_datagram_endpoint`` makes: see there and ``asyncio.DatagramTransport``.

    What ``sendto`` is given leaves together, in one sendmmsg and with GSO where it can, when the callbacks that
    are ready now have run; ``flush`` sends it at once.
    """

    __module__ = "fastsock.aio"

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: Socket,
        protocol: Any,
        address: Any = None,
        made: asyncio.Future[None] | None = None,
        *,
        owner: Any = None,
        read_datagrams: int = READ_DATAGRAMS,
        read_us: int = READ_US,
    ) -> None:
        if read_datagrams < 1 or read_us < 1:
            raise ValueError("read_datagrams and read_us must be at least 1")
        super().__init__()
        self._loop = loop
        self._sock: Socket | None = sock
        self._fd = sock.fileno()
        self._owner_keeps = False  # where the endpoint came to nothing
        self._owner = owner  # what the caller gave as sock=; its descriptor may be ours to share only
        self._address = address
        self._read_datagrams = read_datagrams
        self._read_ns = read_us * 1000
        self._extra = {"socket": sock if owner is None else owner, "sockname": sock.getsockname()}
        try:
            self._extra["peername"] = sock.getpeername()
        except OSError:
            self._extra["peername"] = None
        self._connected = self._extra["peername"] is not None
        # What was queued before connect() may be of anybody: until the queue was empty once, addresses are received.
        self._peer_alone = False
        # What is longest over UDP; AF_UNIX takes more, and asyncio receives as much of it.
        self._bufsize = 65535 if sock.family in (_stdlib.AF_INET, _stdlib.AF_INET6) else 256 * 1024

        # What was received and is not yet delivered: what the slice that is being delivered has left, then
        # `_arrived` from `_next` on. Between two passes it is more than nothing only where the protocol is slow
        # or has paused. Whether it is one batch, or a list of datagrams, goes with it.
        self._arrived: list[Any] = []
        self._next = 0
        self._slice: Iterator[Any] = iter(())
        self._slice_size = FIRST_SLICE
        self._deadline = 0  # of the pass; on the clock of perf_counter_ns
        self._arrived_as_batch = self._arrived_addressed = False
        self._batch: RecvBatch | None = None
        self._vlen = FEW
        self._reading = False  # whether the loop watches for datagrams
        self._continuing = False  # whether _read_ready is called soon for what has arrived
        self._paused = False

        # What is queued, in order: payloads, and the peers unless there is one for all.
        self._out = Outbox(0 if self._connected else 1 if address is None else -1, self._queue)
        self.sendto = self._out.put  # type: ignore[method-assign]
        self._flushing = False
        self._blocked = False  # whether the loop waits for room to send

        # libuv stops watching a descriptor at the first POLLERR, which is an ICMP error here.
        self._goes_deaf = not isinstance(loop, asyncio.BaseEventLoop)
        self._write_paused = False
        self._closing = False
        self._lost = 0  # not 0 once connection_lost is scheduled
        self._set_limits(None, None)
        self.set_protocol(protocol)
        loop.call_soon(self._start, made)

    def _start(self, made: asyncio.Future[None] | None) -> None:
        self._call(self._protocol.connection_made, self)
        try:
            if not self._paused:
                self._watch()
        except Exception as error:
            self._owner_keeps = self._owner is not None
            self._fail(error)
            if made is None or made.done():
                raise
            made.set_exception(error)
        if made is not None and not made.done():
            made.set_result(None)

    def __repr__(self) -> str:
        state = "closed" if self._sock is None else "closing" if self._closing else "open"
        return f"<fastsock.aio.DatagramTransport {state} fd={self._fd} queued={self._out.queued}>"

    def __del__(self) -> None:
        if getattr(self, "_sock", None) is not None:
            try:
                warnings.warn(f"unclosed transport {self!r}", ResourceWarning, stacklevel=1, source=self)
            finally:
                self._close_socket()

    # --- what asyncio.BaseTransport has -------------------------------------------------------

    def set_protocol(self, protocol: Any) -> None:
        """Set the protocol, from the next datagram on."""
        self._protocol: Any = protocol
        self._in_batches = hasattr(protocol, "datagrams_received")
        arrived = self._take_undelivered()
        if self._arrived_as_batch and not self._in_batches:
            self._arrived_as_batch = False
            if self._arrived_addressed:
                arrived = [(bytes(datagram), datagram.address) for batch in arrived for datagram in batch]
            else:
                arrived = [bytes(datagram) for batch in arrived for datagram in batch]
        elif arrived and self._in_batches and not self._arrived_as_batch:
            arrived = [self._make_batch(arrived)]
            self._arrived_as_batch = True
        self._set_arrived(arrived)

    def _make_batch(self, items: list[Any]) -> RecvBatch:
        """What was received for a protocol of single datagrams, for one that takes batches."""
        assert self._sock is not None
        payloads = [item[0] for item in items] if self._arrived_addressed else items
        batch = RecvBatch(len(items), max(1, *map(len, payloads)), addresses=self._arrived_addressed)
        batch.load(items, self._sock.family)
        return batch

    def get_protocol(self) -> Any:
        """Return the protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether the transport is closed or about to be."""
        return self._closing

    def close(self) -> None:
        """Stop receiving, send what is queued, then call ``connection_lost(None)``."""
        if self._closing:
            return
        self._stop_receiving()
        if self._out.payloads and not self._blocked:
            self._flush()
        elif not self._out.payloads:
            self._lose(None)

    def abort(self) -> None:
        """Close at once; what is queued is sent as far as there is room now."""
        self._stop_receiving()
        self.flush()
        self._fail(None)

    def _stop_receiving(self) -> None:
        """Begin to close: what has arrived and is not delivered is dropped."""
        self._closing = True
        self._unwatch()
        self._take_undelivered()
        self._set_arrived([])

    # --- receiving ------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        """Whether datagrams are received."""
        return not self._closing and not self._paused

    def pause_reading(self) -> None:
        """Give the protocol nothing until ``resume_reading``; what is there waits, at most one batch of it here."""
        if not self.is_reading():
            return
        self._paused = True
        self._unwatch()
        self._set_arrived(self._take_undelivered())

    def resume_reading(self) -> None:
        """Go on giving the protocol what arrived and what arrives."""
        if self._closing or not self._paused:
            return
        self._paused = False
        if self._arrived:
            self._continue_soon()
        self._watch()

    @property
    def undelivered(self) -> int:
        """Datagrams, or batches, that were received and wait for the protocol to have time or to resume."""
        return length_hint(self._slice) + max(0, len(self._arrived) - self._next)

    def _watch(self) -> None:
        if not self._reading and not self._closing:
            self._loop.add_reader(self._fd, self._read_ready)
            self._reading = True

    def _unwatch(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _rearm_soon(self) -> None:
        if self._goes_deaf:
            self._loop.call_soon(self._rearm)

    def _rearm(self) -> None:
        """Watch again, from outside of the reader's callback: uvloop ends the old watch behind it."""
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._loop.add_reader(self._fd, self._read_ready)
        if self._blocked:
            self._loop.remove_writer(self._fd)
            self._loop.add_writer(self._fd, self._write_ready)

    def _continue_soon(self) -> None:
        if not self._continuing:
            self._continuing = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._continuing = False
        if self.is_reading():
            self._read_ready()

    def _set_arrived(self, items: list[Any]) -> None:
        self._arrived, self._next, self._slice = items, 0, iter(())

    def _take_undelivered(self) -> list[Any]:
        """Empties the slice under the hands of _deliver, which so finds its end."""
        return [*self._slice, *self._arrived[self._next :]]

    def _read_ready(self) -> None:
        """Receive and deliver, up to the limits of one pass."""
        if self._continuing:
            self._rearm_soon()  # it may have been called for an error
            return  # _go_on has this pass
        if self._is_robbed():
            return
        now = perf_counter_ns()
        if now >= self._deadline:  # else _go_on has begun with the time of this pass
            self._deadline = now + self._read_ns
        deadline = self._deadline
        left = self._read_datagrams
        if not self._deliver(deadline):
            return
        while left > 0 and perf_counter_ns() < deadline:
            assert self._sock is not None
            try:
                count, more = self._receive(self._sock, left)
            except (BlockingIOError, InterruptedError):
                self._note_empty()
                if left == self._read_datagrams:
                    self._report_records()  # an error queue keeps the socket ready until it is empty
                    self._rearm_soon()
                return
            except OSError as error:
                self._report_records(error)
                self._rearm_soon()
                return
            if not self._deliver(deadline):
                break
            left -= count
            if not more or (self._in_batches and left < self._vlen):
                break
        if self._goes_deaf and self._sock is not None and self._sock._has_error_queue:
            if self._report_records():
                self._rearm_soon()  # a record beside a datagram has made it deaf, too
        else:
            self._report_kept()

    def _receive(self, sock: Socket, most: int) -> tuple[int, bool]:
        """Take one batch; how many datagrams it has, and whether there may be more."""
        if self._in_batches:
            batch = self._batch
            if batch is None:
                batch = self._batch = RecvBatch(self._vlen, self._bufsize, addresses=not self._peer_alone)
            vlen = batch.vlen
            count = sock.recv_batch(batch)
            self._set_arrived([batch])
            self._arrived_as_batch = True
        else:
            vlen = min(self._vlen, most)
            receive = sock.recv_many if self._peer_alone else sock.recvfrom_many
            items: list[Any] = receive(vlen, self._bufsize)
            count = len(items)
            self._set_arrived(items)
            self._arrived_as_batch = False
        self._arrived_addressed = not self._peer_alone
        if self._vlen == vlen <= count < 2 * vlen < MANY:
            self._vlen, self._batch = MANY, None  # a queue of single datagrams
        if count < vlen:
            self._note_empty()
        return count, count >= vlen

    def _is_robbed(self) -> bool:
        """Whether the owner of a `sock` has closed it: its number may be another's by now."""
        if self._owner is None or self._owner is self._sock or self._owner.fileno() == self._fd:
            return False
        self._fail(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        return True

    def _note_empty(self) -> None:
        if self._connected and not self._peer_alone:
            self._peer_alone, self._batch = True, None

    def _deliver(self, deadline: int) -> bool:
        """Give the protocol what has arrived; whether all of it, and it still wants more.

        What pause_reading, close and set_protocol leave of a slice is nothing: so nothing need be asked
        for each datagram.
        """
        began = 0
        while True:
            try:
                self._deliver_slice(self._protocol)
            except (SystemExit, KeyboardInterrupt):
                if self.is_reading():
                    self._set_arrived(self._take_undelivered())
                    self._continue_soon()
                raise
            except BaseException as error:
                self._tell("the protocol failed at a datagram", error)
                if self.is_reading():
                    continue  # with the datagram behind it
            if not self.is_reading():
                return False
            if self._next >= len(self._arrived):
                self._arrived = []  # nobody holds the payloads from here on: recv_many may use them again
                return True
            now = perf_counter_ns()
            if began:
                # So many that the clock is looked at about four times in a pass.
                self._slice_size = min(LONGEST_SLICE, self._slice_size * self._read_ns // (4 * (now - began + 1)) + 1)
            if now >= deadline:
                self._continue_soon()
                return False
            began = now
            self._slice = iter(self._arrived[self._next : self._next + self._slice_size])
            self._next += self._slice_size

    def _deliver_slice(self, protocol: Any) -> None:
        if self._arrived_as_batch:
            for batch in self._slice:
                protocol.datagrams_received(batch)
            return
        try:
            received = protocol.datagram_received
        except AttributeError:
            if next(self._slice, None) is not None:  # it goes behind this datagram, as behind any that fails
                raise
            return
        if not self._arrived_addressed:
            peer = self._extra["peername"] or None  # that of a socketpair has no name
            for payload in self._slice:
                received(payload, peer)
        else:
            for payload, address in self._slice:
                received(payload, address)

    # --- sending --------------------------------------------------------------------------------

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Queue a datagram, which leaves in this pass of the loop, together with the others.

        What cannot be sent is told to ``error_received``, and the rest goes on.

        Raises:
            TypeError: ``data`` is no bytes-like object, or there is no address to send to.
            ValueError: ``addr`` is not the peer of an endpoint that has one.
        """
        self._queue(data, addr)  # an open transport has the faster Outbox.put in the place of this

    def _queue(self, data: Any, addr: Any) -> None:
        """What ``sendto`` does where it does not simply queue."""
        if type(data) is not bytes:
            data = to_bytes(data)
        if self._connected or self._address is not None:
            if addr is not None and addr not in (self._address, self._extra["peername"]):
                raise ValueError(f"Invalid address: must be None or {self._address or self._extra['peername']}")
            addr = self._address
        elif addr is None:
            raise TypeError("sendto() needs an address: the endpoint has no peer")
        if self._lost:
            self._lost += 1
            return
        out = self._out
        out.payloads.append(data)
        if not self._connected:
            out.peers.append(addr)
        out.queued += len(data) + OVERHEAD
        if out.queued > out.limit and not self._flushing:
            self.flush()
            self._pause_writing()
        elif not out.scheduled:
            self._schedule_flush()

    def flush(self) -> None:
        """Send what is queued now, without waiting for the end of this pass; never blocks."""
        if self._out.payloads and not self._blocked:
            self._flush()

    def _schedule_flush(self) -> None:
        if not self._out.scheduled:
            self._loop.call_soon(self._flush_queued)
            self._out.scheduled = True

    def _flush_queued(self) -> None:
        self._out.scheduled = False
        self.flush()

    def _flush(self) -> None:
        """Send what is queued until there is no room."""
        if self._flushing or self._is_robbed():
            return  # the protocol was told of an error, and sends again: it joins the queue
        self._flushing = True
        try:
            self._send_queued()
        finally:
            self._flushing = False
            if self._out.payloads and not self._blocked and not self._lost:
                self._schedule_flush()  # what the protocol sent meanwhile, in the next pass
            if not self._out.payloads and self._blocked:
                self._blocked = False
                self._out.limit = self._high_water
                self._loop.remove_writer(self._fd)
            if not self._out.payloads and self._closing:
                self._lose(None)
        self._resume_writing()
        self._report_kept()

    def _send_queued(self) -> None:
        """Send what is in the queue now, and not what the protocol adds when it is told of errors."""
        left = len(self._out.payloads)
        while left > 0 and self._out.payloads:
            assert self._sock is not None
            try:
                payloads, peers = self._out.payloads, self._out.peers
                if left > MOST_SENT:
                    payloads, peers = payloads[:MOST_SENT], peers[:MOST_SENT]
                sent = self._sock.send_many(payloads) if self._connected else self._sock.sendto_many(payloads, peers)
                self._out.forget(sent)
            except (BlockingIOError, InterruptedError):
                self._wait_for_room()
                return
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                sent = 0
                if isinstance(error, OSError) and not isinstance(error, _stdlib.gaierror):
                    self._refuse(error)  # the first of them
                    sent = 1
                # Else one of them has an address that is none. Where one was refused others may be, too.
                sent += self._send_singly(min(left, SINGLY) - sent)
                if self._blocked:
                    return
            left -= sent

    def _send_singly(self, most: int) -> int:
        """Send up to `most` one by one, past those that are refused; returns how many, stops where there is no room."""
        for count in range(most):
            if not self._out.payloads or self._sock is None:
                return count
            try:
                if self._connected:
                    self._sock.send(self._out.payloads[0])
                else:
                    self._sock.sendto(self._out.payloads[0], self._out.peers[0])
                self._out.forget(1)
            except (BlockingIOError, InterruptedError):
                self._wait_for_room()
                return count
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._refuse(error)
        return most

    def _refuse(self, error: BaseException) -> None:
        """Drop the first of the queue, which the kernel refused or which goes to no address."""
        self._out.forget(1)
        if isinstance(error, OSError):
            self._report_records(error)
            self._rearm_soon()
        else:
            self._tell("a datagram could not be sent", error)

    def _wait_for_room(self) -> None:
        if not self._blocked:
            self._loop.add_writer(self._fd, self._write_ready)
            self._blocked = True
            self._out.limit = -1

    def _write_ready(self) -> None:
        self._flush()

    # --- the limits of the queue ----------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        """Bytes that are queued; each datagram counts 8 more than its payload, as in asyncio."""
        return self._out.queued

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return ``(low, high)``."""
        return self._low_water, self._high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set at how many queued bytes the protocol is told to pause writing, and to resume."""
        self._set_limits(high, low)
        if self._blocked:
            self._pause_writing()

    def _set_limits(self, high: int | None, low: int | None) -> None:
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._low_water, self._high_water = low, high
        # At how many queued bytes sendto does more than queue: at every one where there is no room.
        self._out.limit = -1 if self._blocked else high

    def _pause_writing(self) -> None:
        if not self._write_paused and self._out.queued > self._high_water:
            self._write_paused = True
            self._call(self._protocol.pause_writing)

    def _resume_writing(self) -> None:
        if self._write_paused and self._out.queued <= self._low_water:
            self._write_paused = False
            self._call(self._protocol.resume_writing)

    # --- errors and the end ---------------------------------------------------------------------

    def _report(self, error: OSError) -> None:
        if self._protocol is not None:
            self._call(self._protocol.error_received, error)

    def _report_kept(self) -> None:
        """Records that a call came upon: the socket is not ready for them any more."""
        if self._sock is not None and self._sock._errors_kept:
            self._report_records()
            self._rearm_soon()

    def _report_records(self, met: OSError | None = None) -> bool:
        """Empty the error queue: what is an error goes to error_received, and so does what a call met.

        It met what the kernel also queued, where there is such a record: that says more. Returns whether
        there was a record.
        """
        records = self._sock.recv_errors() if self._sock is not None else []
        errors = [to_error(record) for record in records if record.errno]
        received = getattr(self._protocol, "record_received", None)
        if received is not None:
            for record in records:
                if not record.errno:
                    self._call(received, record)
        if met is not None and all(error.errno != met.errno for error in errors):
            self._report(met)
        for error in errors:
            self._report(error)
        return bool(records)

    def _call(self, callback: Any, *arguments: Any) -> None:
        """Call the protocol; what it raises goes to the loop's exception handler."""
        try:
            callback(*arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._tell(f"{callback!r} failed", error)

    def _tell(self, message: str, error: BaseException) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )

    def _fail(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._out.forget(len(self._out.payloads))
        self._stop_receiving()
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._lost = 1
        self._out.limit = -1
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._fd)
        self._loop.call_soon(self._end, error)

    def _end(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._close_socket()
            self._protocol = None
            # Not to need the garbage collector.
            del self.sendto
            self._out.otherwise = ignore

    def _close_socket(self) -> None:
        sock, self._sock = self._sock, None
        assert sock is not None
        self._batch = None
        if self._owner is not None and self._owner is not sock:
            sock.detach()
            if not self._owner_keeps:
                self._owner.close()
        elif not self._owner_keeps:
            sock.close()


def to_error(record: ErrorRecord) -> OSError:
    """What a record of the error queue says, as an exception with the record on it."""
    error = OSError(record.errno, f"{os.strerror(record.errno)}: {record.address!r}")
    error.record = record  # type: ignore[attr-defined]
    return error


def ignore(data: Any, addr: Any) -> None:
    """What is sent to a closed transport goes nowhere, as in asyncio."""


def to_bytes(data: Any) -> bytes:
    """A copy of what may be changed before it leaves."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
    return bytes(data)
