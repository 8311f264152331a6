"""Epoll beside select.epoll, and what it has of its own: wait_into, its array, its threads."""

import array
import errno
import os
import pickle
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from itertools import chain
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLONESHOT, EPOLLOUT, EPOLLPRI

import numpy
import pytest
from conftest import environment

import fastsock

CLOSED = "I/O operation on closed epoll object"


@pytest.fixture(params=[select.epoll, fastsock.Epoll], ids=["select", "fastsock"])
def make(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture
def epoll(make) -> Iterator[object]:
    with make() as made:
        yield made


@pytest.fixture
def ours() -> Iterator[fastsock.Epoll]:
    with fastsock.Epoll() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


# --- beside select.epoll: construction, descriptor, end --------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"sizehint": 0}, ValueError("negative sizehint")),
        ({"sizehint": -2}, ValueError("negative sizehint")),
        ({"flags": 1}, OSError("invalid flags")),
        ({"sizehint": 1.5}, TypeError("'float' object cannot be interpreted as an integer")),
        ({"flags": None}, TypeError("'NoneType' object cannot be interpreted as an integer")),
        ({"sizehint": 2**40}, OverflowError()),
    ],
)
def test_constructor_refuses(make, arguments, error):
    with pytest.raises(type(error)) as caught:
        make(**arguments)
    assert str(caught.value).endswith(str(error))
    assert type(caught.value) is type(error)


@pytest.mark.parametrize("arguments", [(), (-1,), (1,), (1, 0), (1000, select.EPOLL_CLOEXEC), (True,)])
def test_constructor(make, arguments):
    with make(*arguments) as epoll:
        assert not epoll.closed
        assert epoll.fileno() > 2
        assert not os.get_inheritable(epoll.fileno())
        assert epoll.poll(0) == []


def test_close(make):
    epoll = make()
    fd = epoll.fileno()
    epoll.close()
    epoll.close()
    assert epoll.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for call in (
        epoll.fileno,
        lambda: epoll.register(0),
        lambda: epoll.modify(0, 0),
        lambda: epoll.unregister(0),
        epoll.poll,
        lambda: epoll.poll("x", 0),
        epoll.__enter__,
    ):
        with pytest.raises(ValueError, match=CLOSED):
            call()
    epoll.__exit__(None, None, None)


def test_a_descriptor_closed_elsewhere_ends_silently(make):
    epoll = make()
    os.close(epoll.fileno())
    epoll.close()
    assert epoll.closed
    epoll = make()
    os.close(epoll.fileno())
    del epoll  # pytest makes an error of what cannot be raised


def test_with_closes(make):
    epoll = make()
    with suppress(ZeroDivisionError), epoll as same:
        assert same is epoll
        assert not epoll.closed
        raise ZeroDivisionError
    assert epoll.closed


def test_fromfd(make, ready):
    (fd,) = ready(1)
    with make() as first:
        second = make.fromfd(os.dup(first.fileno()))
        assert type(second) is make
        second.register(fd, EPOLLIN)
        assert first.poll(0) == second.poll(0) == [(fd, EPOLLIN)]
        second.close()
        assert first.poll(0) == [(fd, EPOLLIN)]


@pytest.mark.parametrize("fd", ["3", 3.0, None])
def test_fromfd_refuses(make, fd):
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        make.fromfd(fd)


def test_pickle(epoll):
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(epoll)


# --- beside select.epoll: interest -------------------------------------------------------------


def test_default_mask(epoll, pair):
    epoll.register(pair[0])
    assert epoll.poll(0) == [(pair[0].fileno(), EPOLLOUT)]
    pair[1].send(b"x")
    assert epoll.poll(0) == [(pair[0].fileno(), EPOLLOUT | EPOLLIN)]
    pair[1].close()
    assert epoll.poll(0) == [(pair[0].fileno(), EPOLLOUT | EPOLLIN | EPOLLHUP)]


def test_fd_is_a_number_or_has_fileno(epoll, pair):
    epoll.register(fd=pair[0].fileno(), eventmask=EPOLLIN)
    epoll.modify(fd=pair[0], eventmask=EPOLLOUT)
    assert epoll.poll(timeout=0, maxevents=1) == [(pair[0].fileno(), EPOLLOUT)]
    epoll.unregister(fd=pair[0])
    assert epoll.poll(0) == []


@pytest.mark.parametrize(
    ("fd", "error", "text"),
    [
        ("0", TypeError, "argument must be an int, or have a fileno"),
        (0.0, TypeError, "argument must be an int, or have a fileno"),
        (-1, ValueError, "file descriptor cannot be a negative integer"),
        (2**40, OverflowError, " int"),
    ],
)
def test_no_descriptor(epoll, fd, error, text):
    for call in (epoll.register, lambda fd: epoll.modify(fd, EPOLLIN), epoll.unregister):
        with pytest.raises(error, match=text):
            call(fd)
    epoll.close()
    with pytest.raises(error, match=text):
        epoll.register(fd)


def test_what_the_kernel_refuses(epoll, pair, tmp_path):
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file, pytest.raises(PermissionError):
        epoll.register(file)
    with pytest.raises(FileNotFoundError):
        epoll.modify(pair[0], EPOLLIN)
    with pytest.raises(FileNotFoundError):
        epoll.unregister(pair[0])
    epoll.register(pair[0])
    with pytest.raises(FileExistsError):
        epoll.register(pair[0])
    with pytest.raises(OSError, match="Invalid argument"):
        epoll.register(epoll)
    fd = pair[0].fileno()
    pair[0].close()
    for call in (lambda: epoll.unregister(fd), lambda: epoll.modify(fd, 0), lambda: epoll.register(fd)):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            call()
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize("mask", ["1", 1.0, None])
def test_a_mask_is_an_integer(epoll, pair, mask):
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        epoll.register(pair[0], mask)
    assert epoll.poll(0) == []


def test_a_mask_is_cut_to_32_bits(epoll, pair):
    epoll.register(pair[0], (1 << 40) | EPOLLOUT)
    assert epoll.poll(0) == [(pair[0].fileno(), EPOLLOUT)]
    epoll.modify(pair[0], EPOLLET | EPOLLOUT)
    assert epoll.poll(0) == [(pair[0].fileno(), EPOLLOUT)]
    assert epoll.poll(0) == []


def test_one_shot(epoll, ready):
    (fd,) = ready(1)
    epoll.register(fd, EPOLLIN | EPOLLONESHOT)
    assert epoll.poll(0) == [(fd, EPOLLIN)]
    assert epoll.poll(0) == []
    epoll.modify(fd, EPOLLIN)
    assert epoll.poll(0) == epoll.poll(0) == [(fd, EPOLLIN)]


def test_error_and_hang_up_come_unasked(epoll):
    reader, writer = os.pipe()
    epoll.register(writer, 0)
    assert epoll.poll(0) == []
    os.close(reader)
    assert epoll.poll(0) == [(writer, EPOLLERR)]
    os.close(writer)
    assert epoll.poll(0) == []


def test_one_epoll_in_another(make, ready):
    (fd,) = ready(1)
    with make() as inner, make() as outer:
        outer.register(inner, EPOLLIN | EPOLLPRI)
        assert outer.poll(0) == []
        inner.register(fd, EPOLLIN)
        assert outer.poll(0) == [(inner.fileno(), EPOLLIN)]


# --- beside select.epoll: time-outs --------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "error", "text"),
    [
        ("1", TypeError, "timeout must be an integer or None"),
        (Decimal(0), TypeError, "timeout must be an integer or None"),
        (float("nan"), ValueError, r"Invalid value NaN \(not a number\)"),
        (float("inf"), OverflowError, "timestamp out of range for platform time_t"),
        (1e10, OverflowError, "timestamp out of range for platform time_t"),
        (-1e10, OverflowError, "timestamp out of range for platform time_t"),
        (10**10, OverflowError, "timestamp too large to convert to C _?PyTime_t"),
        (-(10**10), OverflowError, "timestamp too large to convert to C _?PyTime_t"),
        (10**30, OverflowError, "timestamp too large to convert to C _?PyTime_t"),
        (2147484, OverflowError, "timeout is too large"),
        (2147483.6471, OverflowError, "timeout is too large"),
        (-2147484, OverflowError, "timeout is too large"),
        (-2147483.649, OverflowError, "timeout is too large"),
    ],
)
def test_timeouts_that_cannot_be(epoll, ready, timeout, error, text):
    epoll.register(ready(1)[0])
    with pytest.raises(error, match=text):
        epoll.poll(timeout)
    with pytest.raises(error, match=text):
        epoll.poll(timeout, 0)  # before maxevents
    if isinstance(epoll, fastsock.Epoll):
        with pytest.raises(error, match=text):
            epoll.wait_into(array.array("i", [0]), array.array("i", [0]), timeout)


class Three:
    def __index__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "timeout",
    [None, -1, -0.5, -2147483.648, 2147483, 2147483.647, 0, 0.0, -0.0, 1e-9, 1, True, Three(), numpy.float64(1)],
)
def test_timeouts_that_can_be(epoll, ready, timeout):
    (fd,) = ready(1)
    epoll.register(fd, EPOLLIN)
    assert epoll.poll(timeout) == [(fd, EPOLLIN)]


@pytest.mark.parametrize("timeout", [1e-9, 0.0001, 0.0011, 0.02])
def test_a_timeout_is_never_short(epoll, timeout):
    begin = time.monotonic()
    assert epoll.poll(timeout) == []
    assert time.monotonic() - begin >= timeout


@pytest.mark.parametrize("timeout", [None, -1, -0.5, 30])
def test_it_waits(epoll, pair, timeout):
    epoll.register(pair[0], EPOLLIN)
    waker = threading.Timer(0.02, pair[1].send, [b"x"])
    waker.start()
    assert epoll.poll(timeout) == [(pair[0].fileno(), EPOLLIN)]
    waker.join()


# --- beside select.epoll: maxevents ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maxevents", "error", "text"),
    [
        (0, ValueError, "maxevents must be greater than 0, got 0"),
        (-2, ValueError, "maxevents must be greater than 0, got -2"),
        (1.0, TypeError, "'float' object cannot be interpreted as an integer"),
        (2**40, OverflowError, " int"),
    ],
)
def test_maxevents_that_cannot_be(epoll, maxevents, error, text):
    with pytest.raises(error, match=text):
        epoll.poll(0, maxevents)


@pytest.mark.parametrize("maxevents", [1, 2, 3, 7])
def test_what_is_left_comes_with_the_next_call(epoll, ready, maxevents):
    fds = ready(7)
    for fd in fds:
        epoll.register(fd, EPOLLIN | EPOLLET)
    seen = []
    while part := epoll.poll(0, maxevents):
        assert len(part) <= maxevents
        seen += part
    assert sorted(seen) == [(fd, EPOLLIN) for fd in fds]


def test_a_level_stays_ready_in_turn(epoll, ready):
    fds = ready(5)
    for fd in fds:
        epoll.register(fd, EPOLLIN)
    seen = [epoll.poll(0, 2) for _ in range(5)]
    assert sorted(chain(*seen)) == sorted([(fd, EPOLLIN) for fd in fds] * 2)


def test_many_descriptors(epoll, ready):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 3000
    if hard < count + 200:
        pytest.skip(f"{hard} descriptors at the most (RLIMIT_NOFILE)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
    try:
        fds = ready(count)
        for fd in fds:
            epoll.register(fd, EPOLLIN)
        assert len(epoll.poll(0)) == 1023
        for maxevents in (count, 5, 20_000, 1 << 21):
            seen = epoll.poll(0, maxevents)
            assert len(seen) == len(set(seen)) == min(maxevents, count)
            assert set(seen) <= {(fd, EPOLLIN) for fd in fds}
        assert len(epoll.poll(30, 20_000)) == count  # so many are waited for without the GIL, at once
        if isinstance(epoll, fastsock.Epoll):
            found, masks = (array.array("i", bytes(4 * 20_000)) for _ in range(2))
            assert epoll.wait_into(found, masks) == count
            assert sorted(found[:count]) == fds
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_descriptor_used_again(epoll):
    first, other = socket.socketpair()
    epoll.register(first, EPOLLOUT)
    fd = first.fileno()
    assert epoll.poll(0) == [(fd, EPOLLOUT)]
    first.close()  # and with that out of the interest set
    other.close()
    assert epoll.poll(0) == []
    again = os.eventfd(1)
    if again != fd:
        os.dup2(again, fd, inheritable=False)
        os.close(again)
    epoll.register(fd, EPOLLIN)
    assert epoll.poll(0) == [(fd, EPOLLIN)]
    os.close(fd)


# --- signals -----------------------------------------------------------------------------------------


def test_eintr_goes_on_with_what_is_left(epoll, on_signal):
    heard: list[int] = []

    def hear() -> None:
        heard.append(1)
        assert len(heard) < 200, "the time-out begins anew with every signal"

    on_signal(hear)
    begin = time.monotonic()
    assert epoll.poll(0.1) == []
    assert time.monotonic() - begin >= 0.1
    assert heard


def test_eintr_without_end(epoll, pair, on_signal):
    epoll.register(pair[0], EPOLLIN)
    heard = []

    def third_time() -> None:
        heard.append(1)
        if len(heard) == 3:
            pair[1].send(b"x")

    on_signal(third_time)
    assert epoll.poll() == [(pair[0].fileno(), EPOLLIN)]
    assert len(heard) >= 3


@pytest.mark.parametrize("timeout", [None, 30])
def test_a_handler_that_raises(epoll, ready, on_signal, timeout):
    on_signal(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        epoll.poll(timeout)
    (fd,) = ready(1)
    epoll.register(fd, EPOLLIN)
    assert epoll.poll(0) == [(fd, EPOLLIN)]


@pytest.mark.parametrize("timeout", [None, 30])
def test_a_handler_that_closes(make, on_signal, timeout):
    epoll = make()
    taken = []

    def close() -> None:
        epoll.close()
        if not taken:
            taken.append(os.eventfd(1))  # has the number now

    on_signal(close)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        epoll.poll(timeout)
    assert caught.value.errno == errno.EBADF
    assert epoll.closed
    os.close(taken[0])


def test_a_handler_that_polls(epoll, pair, on_signal):
    """The array is taken: the inner call has one of its own."""
    inner: list[object] = []
    epoll.register(pair[0], EPOLLIN)

    def poll() -> None:
        if not inner:
            inner.append(epoll.poll(0, 5000))
            pair[1].send(b"x")
            inner.append(epoll.poll(0, 5000))

    on_signal(poll)
    assert epoll.poll(30) == [(pair[0].fileno(), EPOLLIN)]
    assert inner == [[], [(pair[0].fileno(), EPOLLIN)]]


# --- threads and processes ------------------------------------------------------------------------------


def is_asleep(thread: threading.Thread) -> bool:
    """Whether a thread sleeps, and not for want of the GIL, which is free between two looks."""
    for _ in range(5):
        with open(f"/proc/self/task/{thread.native_id}/stat") as stat:
            if stat.read().rpartition(") ")[2][0] != "S":
                return False
        time.sleep(0.001)
    return True


def test_two_threads_wait_at_once(epoll, ready):
    """Each hears of descriptors of its own, and of all of them together."""
    count = 200
    seen: list[list[tuple[int, int]]] = [[], []]
    gate = threading.Barrier(3)

    def wait(mine: list[tuple[int, int]]) -> None:
        gate.wait()
        while True:
            part = epoll.poll(30, 3)
            mine += [event for event in part if event[0] != last]
            if any(fd == last for fd, _ in part):
                return

    last = os.eventfd(0)
    epoll.register(last, EPOLLIN)
    threads = [threading.Thread(target=wait, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    gate.wait()
    fds = ready(count)
    for fd in fds:
        epoll.register(fd, EPOLLIN | EPOLLET)
    while len(seen[0]) + len(seen[1]) < count and all(thread.is_alive() for thread in threads):
        time.sleep(0.001)
    os.eventfd_write(last, 1)
    for thread in threads:
        thread.join(30)
    assert sorted(seen[0] + seen[1]) == [(fd, EPOLLIN) for fd in fds]
    os.close(last)


def test_changes_while_others_wait(epoll):
    """Nothing but readiness may come of it, and no crash."""
    own = [os.eventfd(1) for _ in range(4)]
    failures: list[BaseException] = []
    changers: list[threading.Thread] = []

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as failure:
                failures.append(failure)

        return threading.Thread(target=run)

    def change(fd: int) -> None:
        for _ in range(300):
            epoll.register(fd, EPOLLIN)
            epoll.modify(fd, EPOLLIN | EPOLLOUT)
            epoll.unregister(fd)

    def poll() -> None:
        while any(thread.is_alive() for thread in changers):
            for fd, events in epoll.poll(0.001):
                assert fd in own
                assert events in (EPOLLIN, EPOLLIN | EPOLLOUT)

    changers += [guarded(lambda fd=fd: change(fd)) for fd in own]
    pollers = [guarded(poll) for _ in range(2)]
    for thread in [*changers, *pollers]:
        thread.start()
    for thread in [*changers, *pollers]:
        thread.join(30)
    for fd in own:
        os.close(fd)
    assert not failures
    assert epoll.poll(0) == []


def test_closed_by_another_thread(make, pair, wait_for):
    """The kernel goes on waiting for what was registered; the next call says that it is closed."""
    epoll = make()
    epoll.register(pair[0], EPOLLIN)
    found = []
    thread = threading.Thread(target=lambda: found.append(epoll.poll(30)))
    thread.start()
    wait_for(lambda: is_asleep(thread))
    epoll.close()
    number = os.eventfd(1)  # the descriptor's number, most likely
    pair[1].send(b"x")
    thread.join(30)
    os.close(number)
    assert found == [[(pair[0].fileno(), EPOLLIN)]]
    with pytest.raises(ValueError, match=CLOSED):
        epoll.poll(0)


def test_an_array_of_its_own(epoll, pair, wait_for):
    """While one thread waits another polls, with more room than the first one's array has."""
    epoll.register(pair[0], EPOLLIN)
    found = []
    thread = threading.Thread(target=lambda: found.append(epoll.poll(30, 2)))
    thread.start()
    wait_for(lambda: is_asleep(thread))
    for maxevents in (1, 1000, 100_000):
        assert epoll.poll(0, maxevents) == []
    pair[1].send(b"x")
    thread.join(30)
    assert found == [[(pair[0].fileno(), EPOLLIN)]]


FORK = """
import os, select, socket, threading, time
from {module} import {name}

epoll = {name}()
ours, theirs = socket.socketpair()
epoll.register(ours, select.EPOLLIN)
found = []
thread = threading.Thread(target=lambda: found.append(epoll.poll(30)))
thread.start()
asleep = False
while not asleep:
    time.sleep(0.001)
    with open(f"/proc/self/task/{{thread.native_id}}/stat") as stat:
        asleep = stat.read().rpartition(") ")[2][0] == "S"
child = os.fork()
if child == 0:
    # What the other thread held is nobody's here, and the interest set is shared.
    for _ in range(3):
        assert epoll.poll(0, 2000) == []
    theirs.send(b"x")
    assert epoll.poll(30) == [(ours.fileno(), select.EPOLLIN)]
    epoll.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
thread.join()
assert found == [[(ours.fileno(), select.EPOLLIN)]]
assert epoll.poll(0) == found[0]
"""


@pytest.mark.parametrize(("module", "name"), [("select", "epoll"), ("fastsock", "Epoll")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork(isolated, module, name):
    isolated("import warnings; warnings.simplefilter('ignore')\n" + FORK.format(module=module, name=name))


def test_it_is_not_inherited(make):
    with make() as epoll:
        script = f"import os\ntry: os.fstat({epoll.fileno()})\nexcept OSError: print('closed')"
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), close_fds=False, capture_output=True, check=True
        )
        assert done.stdout == b"closed\n"


# --- Epoll itself ----------------------------------------------------------------------------------------


class Named(fastsock.Epoll):
    """A subclass, with a constructor of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        return super().poll(timeout, maxevents)[:1]


def test_a_subclass(ready):
    with Named("one") as epoll:
        for fd in ready(3):
            epoll.register(fd, EPOLLIN)
        assert epoll.name == "one"
        assert len(epoll.poll(0)) == 1
    assert epoll.closed


def test_without_its_constructor():
    epoll = Named.__new__(Named)
    assert epoll.closed
    for call in (epoll.poll, epoll.fileno, lambda: epoll.register(0)):
        with pytest.raises(ValueError, match=CLOSED):
            call()


def test_it_is_opened_once(ours):
    fd = ours.fileno()
    with pytest.raises(RuntimeError, match="opened once"):
        ours.__init__()  # type: ignore[misc]
    assert ours.fileno() == fd
    ours.close()
    with pytest.raises(RuntimeError, match="opened once"):
        ours.__init__()  # type: ignore[misc]
    assert ours.closed


def test_fromfd_refuses_a_negative_number():
    with pytest.raises(ValueError, match="negative file descriptor"):
        fastsock.Epoll.fromfd(-1)


def test_what_poll_returned_stays_as_it_was(ours, pair):
    """poll() gives the same pair again where nothing has changed, and a new one where something has."""
    fd = pair[0].fileno()
    ours.register(pair[0], EPOLLIN | EPOLLOUT)
    first = ours.poll(0)
    pair[1].send(b"x")
    second = ours.poll(0)
    pair[0].recv(1)
    assert ours.poll(0) == first == [(fd, EPOLLOUT)]
    assert second == [(fd, EPOLLIN | EPOLLOUT)]


LEAK = """
import array, os, resource, select, tracemalloc, fastsock
fds = [os.eventfd(1) for _ in range(300)]
found, masks = array.array("i", bytes(4 * 4096)), array.array("i", bytes(4 * 4096))

def work():
    for _ in range(40):
        with fastsock.Epoll() as epoll:
            for fd in fds:
                epoll.register(fd, select.EPOLLIN)
            for maxevents in (1, 1 << 19, 1 << 20, 1 << 21):
                epoll.poll(0, maxevents)
            for fd in fds:
                epoll.modify(fd, select.EPOLLOUT)
            assert len(epoll.poll(0)) == 300
            epoll.modify(fds[0], select.EPOLLIN | select.EPOLLET)
            assert epoll.wait_into(found, masks, 0) == 300
            for bad in (b"", b"x", bytearray(3), None):
                try:
                    epoll.wait_into(found, bad, 0)
                except (TypeError, ValueError):
                    pass

def mapped():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()

work()
before = mapped()
tracemalloc.start()
base = tracemalloc.get_traced_memory()[0]
for _ in range(5):
    work()
assert tracemalloc.get_traced_memory()[0] - base < 20_000
# 200 objects, each of which had arrays of 6, 12 and 25 MB. A sanitizer holds some back.
assert mapped() - before < 512 << 20, mapped() - before
found.append(0)     # nobody has a buffer of it
"""


def test_leak(isolated):
    isolated(LEAK)


# --- wait_into -----------------------------------------------------------------------------------------


def int32s(count: int) -> "array.array[int]":
    return array.array("i", [-7] * count)


ARRAYS: list[Callable[[int], object]] = [
    int32s,
    lambda count: array.array("I", bytes(4 * count)),
    lambda count: numpy.zeros(count, numpy.int32),
    lambda count: numpy.zeros(count, numpy.uint32),
    lambda count: memoryview(bytearray(4 * count)).cast("i"),
    lambda count: numpy.zeros((2, count), "=u4")[1],
]


@pytest.mark.parametrize("new", ARRAYS)
def test_wait_into(ours, ready, pair, new):
    fds = ready(3)
    for fd in fds:
        ours.register(fd, EPOLLIN)
    ours.register(pair[0], EPOLLOUT)
    found, masks = new(6), new(8)
    assert ours.wait_into(found, masks) == 4
    expected = [(fd, EPOLLIN) for fd in fds] + [(pair[0].fileno(), EPOLLOUT)]
    assert list(zip(found[:4], masks[:4], strict=True)) == expected == ours.poll(0)


def test_wait_into_leaves_the_rest(ours, ready):
    ours.register(ready(1)[0], EPOLLIN)
    found, masks = int32s(3), int32s(3)
    assert ours.wait_into(fds=found, events=masks, timeout=0) == 1
    assert list(found[1:]) == list(masks[1:]) == [-7, -7]


@pytest.mark.parametrize(("room", "other"), [(1, 5), (5, 1), (2, 2), (2, 3)])
def test_wait_into_the_shorter(ours, ready, room, other):
    fds = ready(4)
    for fd in fds:
        ours.register(fd, EPOLLIN | EPOLLET)
    seen = []
    while count := ours.wait_into(found := int32s(room), int32s(other), 0):
        assert count <= min(room, other)
        assert list(found[count:]) == [-7] * (room - count)
        seen += found[:count]
    assert sorted(seen) == fds


def test_wait_into_waits(ours, pair, on_signal):
    found, masks = int32s(1), int32s(1)
    begin = time.monotonic()
    assert ours.wait_into(found, masks, 0.02) == 0
    assert time.monotonic() - begin >= 0.02
    assert list(found) == list(masks) == [-7]
    ours.register(pair[0], EPOLLIN)
    on_signal(lambda: pair[1].send(b"x"))
    assert ours.wait_into(found, masks) == 1
    assert (found[0], masks[0]) == (pair[0].fileno(), EPOLLIN)


def test_wait_into_holds_the_arrays(ours, on_signal):
    found, masks = int32s(1), int32s(1)
    errors = []

    def resize() -> None:
        for one in (found, masks):
            try:
                one.append(0)
            except BufferError as error:
                errors.append(error)
        raise ZeroDivisionError

    on_signal(resize)
    with pytest.raises(ZeroDivisionError):
        ours.wait_into(found, masks, 30)
    assert len(errors) == 2
    found.append(0)
    masks.append(0)


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (array.array("i"), ValueError, "{} is empty"),
        (numpy.zeros((2, 0), numpy.int32), ValueError, "{} is empty"),
        (array.array("h", [1, 2]), TypeError, r"{} must be an array of 32-bit integers, not of 2 bytes \('h'\) each"),
        (array.array("q", [1, 2]), TypeError, r"{} must be an array of 32-bit integers, not of 8 bytes \('q'\) each"),
        (array.array("f", [1, 2]), TypeError, r"{} must be an array of 32-bit integers, not of 4 bytes \('f'\) each"),
        (numpy.zeros(2, ">i4"), TypeError, r"{} must be an array of 32-bit integers, not of 4 bytes \('>i'\) each"),
        (numpy.zeros(2, "i2,i2"), TypeError, "{} must be an array of 32-bit integers, not of 4 bytes"),
        (bytearray(8), TypeError, r"{} must be an array of 32-bit integers, not of 1 bytes \('B'\) each"),
        (bytes(8), TypeError, "{} must be a writable, contiguous array of 32-bit integers, not bytes"),
        (numpy.zeros(8, numpy.int32)[::2], TypeError, "{} must be a writable, contiguous array"),
        ([1, 2], TypeError, "{} must be a writable, contiguous array of 32-bit integers, not list"),
        (None, TypeError, "{} must be a writable, contiguous array of 32-bit integers, not NoneType"),
    ],
)
def test_wait_into_refuses(ours, ready, bad, error, text):
    ours.register(ready(1)[0])
    good = int32s(2)
    with pytest.raises(error, match=text.format("fds")):
        ours.wait_into(bad, good, 0)
    with pytest.raises(error, match=text.format("events")):
        ours.wait_into(good, bad, 0)
    assert list(good) == [-7, -7]
    for one in (good, bad):
        if isinstance(one, array.array):  # nobody has a buffer of it
            one.append(1)
            one.pop()


def test_wait_into_when_closed(ours):
    ours.close()
    with pytest.raises(ValueError, match=CLOSED):
        ours.wait_into(int32s(1), int32s(1))
