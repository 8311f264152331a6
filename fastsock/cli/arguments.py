"""What people type: addresses, numbers with suffixes, and Ctrl-C.

Pure parsers for argparse, which shows the text of an ArgumentTypeError, and the flag that
signals set. May import fastsock's parser of multicast groups.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import re
import signal
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from fastsock._multicast import Membership, parse_group

NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([kmg]?)", re.IGNORECASE)
SUFFIXES = ("", "k", "m", "g")
CPU_MAX = 0xFFFF


class UsageError(Exception):
    """Arguments that do not go together; shown as argparse shows its own errors."""


class Endpoint(NamedTuple):
    """HOST:PORT. An empty host means every address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_endpoint(text: str) -> Endpoint:
    """Parse 127.0.0.1:9995, [::1]:9995, :9995 or name:9995."""
    host, colon, port = text.rpartition(":")
    if not colon or host.startswith("[") != host.endswith("]"):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9995 or [::1]:9995")
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{host!r} in {text!r} is not an IPv6 address") from None
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"{text!r}: an IPv6 address goes in brackets, as in [::1]:9995")
    if not (port.isascii() and port.isdigit()):
        raise argparse.ArgumentTypeError(f"{port!r} in {text!r} is not a port number")
    if int(port) > 0xFFFF:
        raise argparse.ArgumentTypeError(f"port {port} is out of range: 0 to 65535")
    return Endpoint(host, int(port))


def parse_scaled(text: str, base: int) -> float:
    """Parse 200, 200k, 1.5M or 2G; `base` is 1000 or 1024."""
    match = NUMBER.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, such as 200, 200k or 1.5M")
    return float(match[1]) * float(base) ** SUFFIXES.index(match[2].lower())


def parse_rate(text: str) -> float:
    """Parse datagrams per second; 0 and max mean unpaced, and give 0."""
    return 0.0 if text == "max" else parse_scaled(text, 1000)


def parse_count(text: str) -> int:
    """Parse a number of datagrams, at least 1; suffixes are powers of 1000."""
    return whole(text, parse_scaled(text, 1000), 1, 1 << 62)


def size_between(low: int, high: int) -> Callable[[str], int]:
    """A parser of bytes from `low` to `high`; suffixes are powers of 1024."""

    def parse_size(text: str) -> int:
        return whole(text, parse_scaled(text, 1024), low, high)

    return parse_size


def number_between(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`; suffixes are powers of 1000."""

    def parse_number(text: str) -> int:
        return whole(text, parse_scaled(text, 1000), low, high)

    return parse_number


def parse_cpus(text: str) -> list[int]:
    """Parse 0, 0,2 or 0,4-6, as taskset does."""
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not (text.isascii() and first.isdigit() and (last.isdigit() or not dash)):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of CPUs, such as 0,2 or 0-3")
        low = whole(text, int(first), 0, CPU_MAX)
        cpus += range(low, whole(text, int(last or first), low, CPU_MAX) + 1)
    return cpus


def parse_membership(text: str) -> Membership:
    """Parse 239.1.1.1, 239.1.1.1@eth0 or 232.1.1.1@eth0,192.0.2.5."""
    try:
        return parse_group(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def whole(text: str, value: float, low: int, high: int) -> int:
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text} is out of range: {low} to {high}")
    return int(value)


def parse_microseconds(text: str) -> float:
    """Parse a time of 0 to 1,000,000."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of microseconds, 0 to 1000000")
    return value


def parse_seconds(text: str) -> float:
    """Parse a time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


class Stop:
    """While entered, SIGINT and SIGTERM set ``requested`` and do nothing else.

    Nothing is raised: an exception between the kernel's handing over a batch and its being
    counted would lose the batch. Loops look at the flag at least every TICK_S instead,
    because system calls are restarted after a signal (PEP 475).
    """

    TICK_S = 0.05

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, lambda *_: self._request())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self) -> None:
        self.requested = True
