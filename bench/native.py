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
from dataclasses import replace
from pathlib import Path

from fastsock.cli.contestants import KINDS, Kind, Link, Run, Side, receive_batch, receivers

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


def check(moved: int) -> int:
    if moved < 0:
        raise OSError(-moved, os.strerror(-moved))
    return moved


def checked(call: Callable[..., int], fd: int, *arguments: object) -> Run:
    return lambda count: check(call(fd, count, *arguments))


def receiver(name: str) -> Callable[[Link], Run]:
    def build(link: Link) -> Run:
        if link.size > 2048:
            raise ValueError("native.c has slots of 2048 bytes")
        return checked(library()[name], link.receiver.fileno())

    return build


def gro_receiver(name: str) -> Callable[[Link], Run]:
    def build(link: Link) -> Run:
        call = library()[name]
        fd = link.receiver.fileno()

        return lambda count: check(call(fd, count, link.messages(count)))

    return build


def c_sendto(link: Link) -> Run:
    host, port = link.address
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)
    payloads = b"".join(link.payloads)
    return checked(library().c_sendto, link.open_sender.fileno(), payloads, link.size, address, len(address))


def sender(name: str, *, gso: bool) -> Callable[[Link], Run]:
    def build(link: Link) -> Run:
        sock = link.gso_sender if gso else link.sender
        return checked(library()[name], sock.fileno(), b"".join(link.payloads), link.size)

    return build


RECEIVERS: dict[str, Callable[[Link], Run]] = {
    "C recv": receiver("c_recv"),
    "C recvmmsg": receiver("c_recvmmsg"),
    "C recvmmsg, addresses": receiver("c_recvmmsg_named"),
    "C recvmmsg, columns": receiver("c_recvmmsg_columns"),
}

GRO_RECEIVERS: dict[str, Callable[[Link], Run]] = {
    "C GRO": gro_receiver("c_gro"),
    "C GRO, columns": gro_receiver("c_gro_columns"),
}

SENDERS: dict[str, Callable[[Link], Run]] = {"C sendto": c_sendto, "C sendmmsg": sender("c_sendmmsg", gso=False)}

GSO_SENDERS: dict[str, Callable[[Link], Run]] = {
    "C GSO": sender("c_gso", gso=True),
    "C GSO, gather": sender("c_gso_gather", gso=True),
}


def extended(kind: str, *tables: dict[str, Callable[[Link], Run]]) -> Kind:
    """A kind of `fastsock bench` with contestants from C: one table for each side."""
    found = KINDS[kind]
    sides = [Side({**side.table, **table}, side.options) for side, table in zip(found.sides, tables, strict=True)]
    return replace(found, sides=sides)


STAMPED = "recv_batch, peer and time"
C_STAMPED = "C recvmmsg, peer and time"

ALL_KINDS = {
    "receive": extended("receive", RECEIVERS),
    "receive-gro": extended("receive-gro", {"C recvmmsg": RECEIVERS["C recvmmsg"]}, GRO_RECEIVERS),
    "send": extended("send", {**SENDERS, **GSO_SENDERS}),
    "send-gro": extended("send-gro", GSO_SENDERS),
    "metadata": Kind(
        "receive, metadata",
        receivers,
        [
            Side({"recv_batch": receive_batch, "C recvmmsg, columns": RECEIVERS["C recvmmsg, columns"]}),
            Side(
                {
                    STAMPED: lambda link: receive_batch(link, addresses=True),
                    C_STAMPED: receiver("c_recvmmsg_timestamps"),
                },
                {"timestamps": True},
            ),
        ],
    ),
}
