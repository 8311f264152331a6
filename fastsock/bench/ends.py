"""Processes for the ends of round trips: starting them, telling them what to do, and being rid of them.

May import echo, for what a command names. Imports only the standard library otherwise.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fastsock.bench import echo

ROOT = Path(echo.__file__).parent.parent.parent
"""Where fastsock was imported from."""
REPLY_S = 20.0
"""How much longer than it was told to may a process take before it is given up."""
STOP = b"."
STOP_S = 0.02


class End:
    """A process that carries out commands. Killed when the block ends, and by the kernel when this process dies.

    Ctrl-C does not reach it: it is in a process group of its own.
    """

    def __init__(self) -> None:
        with ExitStack() as stack:
            fd = os.memfd_create("samples", os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            os.ftruncate(fd, 2 * echo.MAX_SAMPLES * 8)
            self._memory = mmap.mmap(fd, 2 * echo.MAX_SAMPLES * 8)
            self.samples = memoryview(self._memory).cast("q")
            self.control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            kept = ExitStack()
            stack.enter_context(kept)  # what is closed where there is no process in the end
            kept.callback(self.control.close)
            stack.callback(far.close)
            path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            self.process = subprocess.Popen(
                [sys.executable, "-P", echo.__file__, *map(str, (far.fileno(), fd, os.getpid()))],
                stdin=subprocess.DEVNULL,
                pass_fds=(far.fileno(), fd),
                env={**os.environ, "PYTHONPATH": path},
                process_group=0,
            )
            kept.pop_all()

    def tell(self, socks: list[socket.socket], **spec: Any) -> None:
        socket.send_fds(self.control, [json.dumps(spec).encode()], [sock.fileno() for sock in socks])

    def hear(self, timeout_s: float = REPLY_S) -> dict[str, Any]:
        """What it answers. RuntimeError where it failed, TimeoutError where it says nothing."""
        self.control.settimeout(timeout_s)
        reply = self.control.recv(echo.CONTROL_BYTES)
        if not reply:
            raise RuntimeError(f"an end of the round trips is gone: exit status {self.process.wait()}")
        found: dict[str, Any] = json.loads(reply)
        if "error" in found:
            raise RuntimeError(f"an end of the round trips failed:\n{found['error']}")
        return found

    def call(self, socks: list[socket.socket], turn_s: float, **spec: Any) -> dict[str, Any]:
        """Have a command carried out that takes about `turn_s`."""
        self.tell(socks, **spec)
        return self.hear(REPLY_S + turn_s)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.control.close()
        self.samples.release()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Ends:
    """The processes of a run: a server and a client for each way that must not share one."""

    def __init__(self, ways: list[str]) -> None:
        self._ends: dict[tuple[str, str], End] = {}
        self._stack = ExitStack()
        try:
            for home in dict.fromkeys(["threads", *map(home_of, ways)]):
                for role in ("server", "client"):
                    self._ends[role, home] = self._stack.enter_context(End())
            for end in self._ends.values():  # they start side by side
                end.hear()
        except BaseException:
            self._stack.close()
            raise

    def server(self, way: str) -> End:
        return self._ends["server", home_of(way)]

    def client(self, way: str) -> End:
        return self._ends["client", home_of(way)]

    @property
    def generator(self) -> End:
        """The client that sends at a rate."""
        return self._ends["client", "threads"]

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def home_of(way: str) -> str:
    """An event loop has a process of its own, all other ways share one."""
    return way if way in echo.LOOPS else "threads"


@contextmanager
def connected_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two UDP sockets on 127.0.0.1, connected to each other."""
    with (
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as near,
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as far,
    ):
        for sock in (near, far):
            sock.bind(("127.0.0.1", 0))
        near.connect(far.getsockname())
        far.connect(near.getsockname())
        yield near, far


@contextmanager
def served(server: End, way: str, cpu: int | None, **spec: Any) -> Iterator[socket.socket]:
    """A socket whose peer answers in this way until the end of the block."""
    with connected_pair() as (near, far):
        server.tell([far], do="serve", way=way, cpu=cpu, **spec)
        server.hear()
        yield near
        stop(server, near)


def stop(server: End, near: socket.socket) -> dict[str, Any]:
    """End serving; what is lost is sent again. What the server tells in the end."""
    give_up_s = time.monotonic() + REPLY_S
    near.setblocking(False)
    while True:
        with suppress(BlockingIOError):
            near.send(STOP)
        try:
            return server.hear(STOP_S)
        except TimeoutError:
            if time.monotonic() > give_up_s:
                raise TimeoutError(errno.ETIMEDOUT, "a server of round trips does not stop") from None


def two_cpus() -> list[int]:
    """Two CPUs that this process may use, of different cores where there are such; fewer where it has but one."""
    allowed = sorted(os.sched_getaffinity(0))
    first = allowed[0]
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{first}/topology/thread_siblings_list").read_text()
        siblings = parse_cpus(text)
    except (OSError, ValueError):
        siblings = {first}
    others = [cpu for cpu in allowed if cpu not in siblings] or allowed[1:]
    return [first, *others[:1]]


def parse_cpus(text: str) -> set[int]:
    """The kernel's list of CPUs, such as "0-2,7"."""
    found: set[int] = set()
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found
