"""What every test may use. Each test must leave the descriptors as it found them."""

import contextlib
import errno
import gc
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import fastsock
from fastsock import _constants

pytest_plugins = ["endpoints", "frameworks"]


def open_descriptors() -> set[tuple[int, str]]:
    """(fd, what it is) for every open descriptor, but the files that pytest captures into. A memfd is deleted too."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of listdir itself
            target = os.readlink(f"/proc/self/fd/{name}")
            deleted = target.endswith(" (deleted)") and not target.startswith("/memfd:")
            if not target.startswith("/dev/") and not deleted:
                found.add((int(name), target))
    return found


def drain(sock: fastsock.Socket) -> list[bytes]:
    """Everything that is queued at a socket, which no longer waits from then on."""
    sock.setblocking(False)
    found: list[bytes] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found += sock.recv_many(1000)
    return found


def is_held(payload: bytearray) -> bool:
    """Whether somebody has a buffer of it."""
    try:
        payload.append(0)
    except BufferError:
        return True
    payload.pop()
    return False


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    leaked = open_descriptors() - before
    if leaked:
        gc.collect()  # a traceback may hold a frame; its socket warns, and fails the test
        leaked = open_descriptors() - before
    assert not leaked, f"descriptors left open: {sorted(leaked)}"


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """Register anything with close() to be closed at the end; returns it."""
    with contextlib.ExitStack() as stack:
        yield lambda resource: stack.enter_context(contextlib.closing(resource))


class Family(NamedTuple):
    """An address family, and its loopback address."""

    family: int
    host: str

    def address(self, port: int = 0) -> tuple[str, int]:
        return self.host, port


V4 = Family(socket.AF_INET, "127.0.0.1")
V6 = Family(socket.AF_INET6, "::1")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")


def resolves_localhost() -> bool:
    try:
        socket.getaddrinfo("localhost", 0, socket.AF_INET)
    except socket.gaierror:
        return False
    return True


needs_localhost = pytest.mark.skipif(not resolves_localhost(), reason="localhost does not resolve")
PROBE = fastsock.probe()
NO_DROPS = 0 if PROBE.drop_counter else None
"""What `fastsock recv` reports when nothing was dropped; old kernels and emulators do not say."""
needs_large_buffers = pytest.mark.skipif(
    not PROBE.rcvbuf_force, reason="a receive buffer beyond rmem_max takes CAP_NET_ADMIN"
)


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips where the kernel, or an emulator, lacks one of these capabilities of ``probe()``."""
    missing = [f"{name}: {getattr(PROBE, name).why}" for name in names if not getattr(PROBE, name)]
    return pytest.mark.skipif(bool(missing), reason="; ".join(missing) or "nothing is missing")


needs_drop_counter = pytest.mark.skipif(NO_DROPS is None, reason="the kernel does not count a socket's drops")


def knows_options(*options: tuple[int, int]) -> bool:
    """Whether these socket options, which want a structure, are known: an emulator lacks many."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for level, option in options:
            try:
                sock.setsockopt(level, option, b"")
            except OSError as error:
                if error.errno != errno.EINVAL:
                    return False
    return True


needs_multicast = pytest.mark.skipif(
    not knows_options((socket.IPPROTO_IP, _constants.MCAST_JOIN_GROUP), (socket.IPPROTO_IP, socket.IP_MULTICAST_IF)),
    reason="groups cannot be joined here",
)


@pytest.fixture(params=[pytest.param(V4, id="v4"), pytest.param(V6, id="v6", marks=needs_ipv6)])
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(params=[socket.socket, fastsock.Socket], ids=["socket", "fastsock"])
def cls(request: pytest.FixtureRequest) -> Any:
    """The standard library's socket class, and ours."""
    return request.param


@pytest.fixture
def sock(cls: Any) -> Iterator[Any]:
    """An IPv4 datagram socket of either class."""
    with cls(socket.AF_INET, socket.SOCK_DGRAM) as made:
        yield made


class Streams(NamedTuple):
    """Makes connection-oriented sockets of one class, family and type, and closes them at the end."""

    cls: Any
    family: int
    kind: int
    new_address: Callable[[], Any]
    keep: Callable[[Any], Any]

    def make(self) -> Any:
        return self.keep(self.cls(self.family, self.kind))

    def listener(self, *backlog: int) -> Any:
        made = self.make()
        made.bind(self.new_address())
        made.listen(*backlog)
        return made

    def pair(self) -> tuple[Any, Any]:
        """The connecting end, and the accepted one; each waits 10 s at most."""
        listener, near = self.listener(), self.make()
        near.connect(listener.getsockname())
        far = self.keep(listener.accept()[0])
        near.settimeout(10)
        far.settimeout(10)
        return near, far


@pytest.fixture(params=["v4", pytest.param("v6", marks=needs_ipv6), "unix", "seqpacket"])
def streams(request: pytest.FixtureRequest, cls: Any, tmp_path: Path, closing: Callable[[Any], Any]) -> Streams:
    """Connection-oriented sockets of either class."""
    if request.param in ("v4", "v6"):
        where = V4 if request.param == "v4" else V6
        return Streams(cls, where.family, socket.SOCK_STREAM, where.address, closing)
    paths = (str(tmp_path / str(number)) for number in itertools.count())
    kind = socket.SOCK_STREAM if request.param == "unix" else socket.SOCK_SEQPACKET
    return Streams(cls, socket.AF_UNIX, kind, lambda: next(paths), closing)


byte_streams = pytest.mark.parametrize("streams", ["v4", "unix"], indirect=True)
"""For tests of what holds for SOCK_STREAM alone."""


class Pair(NamedTuple):
    receiver: fastsock.Socket
    sender: fastsock.Socket


@pytest.fixture
def udp_pair(family: Family, closing: Callable[[Any], Any]) -> Pair:
    """A bound receiver, which waits 10 s at most, and a sender connected to it."""
    receiver = closing(fastsock.bind_udp(family.address()))
    receiver.settimeout(10)
    return Pair(receiver, closing(fastsock.connect_udp(receiver.getsockname())))


@pytest.fixture
def unix_pair(closing: Callable[[Any], Any]) -> Callable[..., Pair]:
    """Make a connected pair of AF_UNIX sockets: SOCK_DGRAM, or the kind that is given."""

    def make(kind: int = socket.SOCK_DGRAM) -> Pair:
        ends = [closing(fastsock.Socket(fileno=end.detach())) for end in socket.socketpair(socket.AF_UNIX, kind)]
        ends[0].settimeout(10)
        return Pair(*ends)

    return make


@pytest.fixture
def ready() -> Iterator[Callable[[int], list[int]]]:
    """Make so many descriptors that are always readable."""
    made: list[int] = []

    def many(count: int) -> list[int]:
        made.extend(os.eventfd(1) for _ in range(count))
        return made[-count:]

    yield many
    for fd in made:
        os.close(fd)


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Have a handler run at SIGALRM, which comes every 20 ms until the handler raises."""
    before = signal.getsignal(signal.SIGALRM)

    def arm(handler: Callable[[], object]) -> None:
        def handle(number: int, frame: object) -> None:
            try:
                handler()
            except BaseException:
                signal.setitimer(signal.ITIMER_REAL, 0)
                raise

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)

    yield arm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


CANNOT = 77
"""What an isolated script exits with where it lacks something; it prints what."""


def environment() -> dict[str, str]:
    """The environment of a child process that imports what this one does; warnings are errors."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONWARNINGS": "error"}


@pytest.fixture
def isolated() -> Callable[..., str]:
    """Run a script in a process of its own, which must end well; returns its output."""

    def run(script: str, *args: object, timeout: float = 60, before: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            [*before, sys.executable, "-X", "faulthandler", "-c", script, *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
            check=False,
        )
        if done.returncode == CANNOT:
            pytest.skip(done.stdout)
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        # What goes wrong in __del__ cannot be raised, and is only printed.
        assert "Exception ignored" not in done.stderr, done.stderr
        return done.stdout

    return run


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Wait until a condition holds, at most `deadline` seconds."""

    def wait(condition: Callable[[], Any], deadline: float = 10) -> None:
        end = time.monotonic() + deadline
        while not condition():
            assert time.monotonic() < end, f"not so after {deadline} s: {condition}"
            time.sleep(0.001)

    return wait


class Namespace(NamedTuple):
    """A network namespace with a loopback device."""

    enter: tuple[str, ...]
    """A command line that runs the rest in the namespace."""
    read_counters: Callable[[], dict[str, int]]
    """The Udp line of /proc/net/snmp."""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    for user in ((), ("-r",)):
        holder = subprocess.Popen(
            ["unshare", *user, "-n", "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with holder:  # closes its stdin, which ends it, and waits
            assert holder.stdin is not None
            assert holder.stdout is not None
            if holder.stdout.readline() != b"up\n":
                continue

            def read_counters(pid: int = holder.pid) -> dict[str, int]:
                lines = [line for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines() if line[:4] == "Udp:"]
                names, values = (line.split()[1:] for line in lines)
                return dict(zip(names, map(int, values), strict=True))

            into_user = ("-U", "--preserve-credentials") if user else ()
            yield Namespace(("nsenter", "-t", str(holder.pid), *into_user, "-n", "--"), read_counters)
            return
    pytest.skip("no network namespace may be made here (unshare -n)")
