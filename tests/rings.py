"""Receivers with small rings: taking until all has come. May import the standard library and fastsock."""

import contextlib
import select
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fastsock

SLOTS = 256
DEADLINE_S = 20


def take(receiver: Any, count: int, max_datagrams: int | None = None) -> list[bytes]:
    """The payloads of the next `count` datagrams."""
    found: list[bytes] = []
    while len(found) < count:
        with receiver.take(max_datagrams, timeout=DEADLINE_S) as batch:
            assert batch, f"{len(found)} of {count} came"
            found += batch.payloads()
    assert len(found) == count
    return found


def take_rest(receiver: Any) -> list[bytes]:
    """What is left in the rings of a receiver that was stopped."""
    found: list[bytes] = []
    for batch in receiver:
        found += batch.payloads()
        batch.release()
    return found


def arrived(receiver: Any) -> int:
    """How many datagrams came to its sockets."""
    stats = receiver.stats
    return stats.received + stats.ring_drops + (stats.kernel_drops or 0)


def settle(receiver: Any, count: int) -> fastsock.RingStats:
    """Wait until so many datagrams have come to its sockets, wherever they went; none may come beyond."""
    deadline = time.monotonic() + DEADLINE_S
    while (now := arrived(receiver)) < count:
        assert time.monotonic() < deadline, f"{now} of {count} came: {receiver.stats}"
        time.sleep(0.0005)
    assert now == count
    return receiver.stats


def deliver(receiver: Any, sender: Any, payloads: list[bytes]) -> fastsock.RingStats:
    """Send each to a receiver at which nothing is on its way, and wait until all have come."""
    before = arrived(receiver)
    send(sender, payloads)
    return settle(receiver, before + len(payloads))


def send(sender: Any, payloads: Iterable[bytes]) -> None:
    for payload in payloads:
        sender.send(payload)


def numbered(count: int, start: int = 0, size: int = 8) -> list[bytes]:
    """Payloads that say their place, over and over."""
    return [number.to_bytes(8, "big") * (size // 8) for number in range(start, start + count)]


def threads() -> dict[int, str]:
    """The native threads of this process that receive: their names by their numbers."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name = (task / "comm").read_text().strip()
            if name.startswith("fastsock-rx"):
                found[int(task.name)] = name
    return found


def mappings() -> int:
    """How many rings are mapped in this process."""
    return Path("/proc/self/maps").read_text().count("memfd:fastsock ring")


def is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
