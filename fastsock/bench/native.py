"""Compiles native.c where there is a compiler, and wraps it as contestants.

Without one every table here is empty, and `missing` says why. May import contestants, for their types.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastsock.bench.contestants import VLEN, Link, Run

SOURCES = Path(__file__).parent
FLAGS = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC"]
MAX_VLEN = 1024
ARENA_SIZE = 4 << 20

Table = dict[str, Callable[[Link], Run]]


def compiler() -> list[str]:
    """$CC, which may have arguments, or cc."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def cache_directory() -> Path:
    """The user's cache, or a directory that is gone with this process."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = caches / "fastsock"
        for path in (caches, directory):
            path.mkdir(mode=0o700, exist_ok=True)
        found = directory.stat()
        # What is loaded from there runs as this user.
        if found.st_uid == os.geteuid() and not found.st_mode & 0o022 and os.access(directory, os.W_OK):
            return directory
    except (OSError, RuntimeError):  # RuntimeError: no home
        pass
    temporary = tempfile.mkdtemp(prefix="fastsock-")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return Path(temporary)


@functools.cache
def built(name: str = "native.c") -> ctypes.CDLL | str:
    """A library of C, or why there is none; compiled once, and again where the source or the compiler changed."""
    command = [*compiler(), *FLAGS]
    source = SOURCES / name
    digest = hashlib.sha256(source.read_bytes() + " ".join([*command, os.uname().machine]).encode()).hexdigest()[:16]
    directory = cache_directory()
    target = directory / f"{source.stem}-{digest}.so"
    try:
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}")
            done = subprocess.run(
                [*command, "-o", str(unfinished), str(source)], stderr=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                return f"{command[0]} could not compile it: {(done.stderr.splitlines() or ['no message'])[0]}"
            unfinished.replace(target)
        return ctypes.CDLL(str(target))
    except FileNotFoundError:
        return f"there is no compiler: {command[0]} was not found"
    except OSError as error:
        return f"it could not be built: {error}"


def missing() -> str:
    """Why there is no C to compare with; empty where there is."""
    found = built()
    return found if isinstance(found, str) else ""


def library() -> ctypes.CDLL:
    """native.c; its calls release the GIL. OSError where it cannot be had."""
    found = built()
    if isinstance(found, str):
        raise OSError(found)
    return found


def where_built(table: Table) -> Table:
    """The table, or an empty one where there is no C."""
    return {} if missing() else dict(table)


def check(moved: int) -> int:
    if moved < 0:
        raise OSError(-moved, os.strerror(-moved))
    return moved


def checked(call: Callable[..., int], fd: int, *arguments: object) -> Run:
    return lambda count: check(call(fd, count, *arguments))


def receiver(name: str, *arguments: object) -> Callable[[Link], Run]:
    return lambda link: checked(library()[name], link.receiver.fileno(), link.bufsize, *arguments)


def gro_receiver(name: str) -> Callable[[Link], Run]:
    def build(link: Link) -> Run:
        call = library()[name]
        fd = link.receiver.fileno()

        return lambda count: check(call(fd, count, link.messages(count)))

    return build


def pack_address(address: Any) -> bytes:
    """A struct sockaddr_in."""
    host, port = address
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def c_sendto(link: Link) -> Run:
    address = pack_address(link.address)
    payloads = b"".join(link.payloads)
    return checked(library().c_sendto, link.open_sender.fileno(), payloads, link.size, address, len(address))


def c_send(link: Link) -> Run:
    return checked(library().c_sendto, link.sender.fileno(), b"".join(link.payloads), link.size, None, 0)


def sender(name: str, *, gso: bool) -> Callable[[Link], Run]:
    def build(link: Link) -> Run:
        sock = link.gso_sender if gso else link.sender
        return checked(library()[name], sock.fileno(), b"".join(link.payloads), link.size)

    return build


RECEIVERS: Table = {
    "C recv": receiver("c_recv"),
    "C recvmmsg": receiver("c_recvmmsg", VLEN),
    "C recvmmsg, addresses": receiver("c_recvmmsg_named", VLEN),
    "C recvmmsg, columns": receiver("c_recvmmsg_columns", VLEN),
}

GRO_RECEIVERS: Table = {
    "C GRO": gro_receiver("c_gro"),
    "C GRO, columns": gro_receiver("c_gro_columns"),
}

SENDERS: Table = {
    "C sendto": c_sendto,
    "C send": c_send,
    "C sendmmsg": sender("c_sendmmsg", gso=False),
}

GSO_SENDERS: Table = {
    "C GSO": sender("c_gso", gso=True),
    "C GSO, gather": sender("c_gso_gather", gso=True),
}
