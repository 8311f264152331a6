"""Compiles native.c and wraps it as contestants. Imports fastsock's own contestants for their types only."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

from fastsock.cli.contestants import Link, Run

SOURCE = Path(__file__).with_name("native.c")
BUILD = Path(__file__).parent.parent / "build" / "bench"


@functools.cache
def library() -> ctypes.CDLL:
    """native.c, compiled with $CC or cc unless that was done before; CDLL calls release the GIL."""
    command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    target = BUILD / f"native-{digest}.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(unfinished), str(SOURCE)], check=True)
        unfinished.replace(target)
    return ctypes.CDLL(str(target))


def checked(call: Callable[..., int], fd: int, *arguments: object) -> Run:
    def run(count: int) -> int:
        moved = call(fd, count, *arguments)
        if moved < 0:
            raise OSError(-moved, os.strerror(-moved))
        return moved

    return run


def receiver(name: str) -> Callable[[Link], Run]:
    def build(link: Link) -> Run:
        if link.size > 2048:
            raise ValueError("native.c has slots of 2048 bytes")
        return checked(library()[name], link.receiver.fileno())

    return build


def c_sendto(link: Link) -> Run:
    host, port = link.address
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    payloads = b"".join(link.payloads)
    return checked(library().c_sendto, link.open_sender.fileno(), payloads, link.size, address, len(address))


def c_sendmmsg(link: Link) -> Run:
    return checked(library().c_sendmmsg, link.sender.fileno(), b"".join(link.payloads), link.size)


RECEIVERS: dict[str, Callable[[Link], Run]] = {
    "C recv": receiver("c_recv"),
    "C recvmmsg": receiver("c_recvmmsg"),
    "C recvmmsg, addresses": receiver("c_recvmmsg_named"),
    "C recvmmsg, columns": receiver("c_recvmmsg_columns"),
}

SENDERS: dict[str, Callable[[Link], Run]] = {"C sendto": c_sendto, "C sendmmsg": c_sendmmsg}
