"""fastsock.selectors beside the standard module, which it stands in for."""

import asyncio
import gc
import os
import selectors
import socket
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey

import pytest

import fastsock.selectors

BOTH = EVENT_READ | EVENT_WRITE


@pytest.fixture(params=[selectors.EpollSelector, fastsock.selectors.EpollSelector], ids=["selectors", "fastsock"])
def make(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture
def selector(make) -> Iterator[object]:
    with make() as made:
        yield made


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


# --- the module -------------------------------------------------------------------------------


def test_every_public_name():
    theirs = {
        name
        for name, value in vars(selectors).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", "selectors") == "selectors"
    }
    assert {"EVENT_READ", "EVENT_WRITE", "SelectorKey", "DefaultSelector"} <= theirs
    assert theirs == set(fastsock.selectors.__all__)
    for name in theirs - {"EpollSelector", "DefaultSelector"}:
        assert getattr(fastsock.selectors, name) is getattr(selectors, name)
    assert fastsock.selectors.DefaultSelector is fastsock.selectors.EpollSelector


def test_every_public_attribute():
    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    theirs, ours = selectors.EpollSelector, fastsock.selectors.EpollSelector
    assert public(ours) == public(theirs)
    for name in public(ours):
        assert getattr(ours, name).__doc__, name
    assert issubclass(ours, selectors.BaseSelector)
    assert ours().get_map().keys() == set()


# --- registering --------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [EVENT_READ, EVENT_WRITE, BOTH])
def test_register(selector, pair, events):
    data = object()
    key = selector.register(pair[0], events, data)
    assert type(key) is SelectorKey
    assert key == SelectorKey(pair[0], pair[0].fileno(), events, data)
    assert selector.get_key(pair[0]) is selector.get_key(pair[0].fileno()) is key
    assert selector.register(pair[1].fileno(), events=events).data is None


@pytest.mark.parametrize("events", [0, None, 4, 7, -1, BOTH | 1 << 40])
def test_events_that_cannot_be(selector, pair, events):
    with pytest.raises(ValueError, match=f"^Invalid events: {events}$"):
        selector.register(pair[0], events)
    assert not selector.get_map()


def test_events_that_are_no_number(selector, pair):
    with pytest.raises(TypeError, match="unsupported operand"):
        selector.register(pair[0], "1")


class Unusable:
    """No number, and no fileno() that gives one."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer

    def fileno(self) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("fileobj", "error", "text"),
    [
        ("0", ValueError, "Invalid file object: '0'"),
        (0.0, ValueError, "Invalid file object: 0.0"),
        (Unusable(), ValueError, "Invalid file object: <"),
        (Unusable("x"), ValueError, "Invalid file object: <"),
        (Unusable(ValueError()), ValueError, "Invalid file object: <"),
        (Unusable(OSError("no")), OSError, "no"),
        (-1, ValueError, "Invalid file descriptor: -1"),
        (Unusable(-7), ValueError, "Invalid file descriptor: -7"),
    ],
)
def test_no_file_object(selector, fileobj, error, text):
    for call in (
        lambda: selector.register(fileobj, EVENT_READ),
        lambda: selector.unregister(fileobj),
        lambda: selector.modify(fileobj, EVENT_READ),
        lambda: selector.get_map()[fileobj],
        lambda: selector.get_map().get(fileobj),
        lambda: fileobj in selector.get_map(),
    ):
        with pytest.raises(error, match=text):
            call()
    assert not selector.get_map()


def test_what_is_not_registered(selector, pair):
    for call in (selector.unregister, lambda one: selector.modify(one, EVENT_READ), selector.get_key):
        for fileobj in (pair[0], pair[0].fileno(), 2**40):
            with pytest.raises(KeyError) as caught:
                call(fileobj)
            assert caught.value.args == (f"{fileobj!r} is not registered",)
    with pytest.raises(OverflowError, match=" int"):
        selector.register(2**40, EVENT_READ)
    assert selector.get_map().get(2**40) is selector.get_map().get(pair[0]) is None
    assert not selector.get_map()


def test_registered_twice(selector, pair):
    key = selector.register(pair[0], EVENT_READ)
    for fileobj in (pair[0], pair[0].fileno()):
        with pytest.raises(KeyError) as caught:
            selector.register(fileobj, EVENT_WRITE)
        assert caught.value.args == (f"{fileobj!r} (FD {key.fd}) is already registered",)
    assert list(selector.get_map().values()) == [key]


def test_what_the_kernel_refuses(selector, pair, tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
        selector.register(file, EVENT_READ)
    fd = pair[0].fileno()
    pair[0].close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        selector.register(fd, EVENT_READ)
    assert not selector.get_map()
    assert selector.select(0) == []


def test_unregister(selector, pair):
    key = selector.register(pair[0], EVENT_WRITE)
    assert selector.unregister(pair[0]) is key
    assert not selector.get_map()
    assert selector.select(0) == []
    selector.register(pair[0], EVENT_WRITE)
    assert selector.unregister(pair[0].fileno()) == key


def test_unregister_what_is_closed(selector, pair):
    """Found by search; the kernel has forgotten it."""
    keys = [selector.register(end, EVENT_READ, index) for index, end in enumerate(pair)]
    for end in reversed(pair):
        end.close()
    assert selector.get_key(pair[1]) is selector.get_map()[pair[1]] is keys[1]
    assert pair[1] in selector.get_map()
    assert [selector.unregister(end) for end in pair] == keys
    with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
        selector.unregister(pair[0])


# --- modifying -----------------------------------------------------------------------------------


def test_modify(selector, pair):
    first = selector.register(pair[0], EVENT_READ, "a")
    assert selector.modify(pair[0], EVENT_READ, "a") is first
    second = selector.modify(pair[0], EVENT_WRITE, "b")
    assert second == SelectorKey(pair[0], first.fd, EVENT_WRITE, "b")
    assert first.events == EVENT_READ
    assert selector.get_key(pair[0]) is second
    assert selector.select(0) == [(second, EVENT_WRITE)]
    third = selector.modify(first.fd, events=EVENT_WRITE, data="c")
    assert third == SelectorKey(pair[0], first.fd, EVENT_WRITE, "c")
    assert selector.select(0) == [(third, EVENT_WRITE)]
    assert selector.modify(pair[0], 0) == SelectorKey(pair[0], first.fd, 0, None)
    assert selector.select(0) == []


def test_modify_refused(selector, pair):
    """Then it is no longer registered."""
    selector.register(pair[0], EVENT_READ)
    fd = pair[0].fileno()
    pair[0].close()
    assert selector.get_map()
    with pytest.raises(OSError, match="Bad file descriptor"):
        selector.modify(fd, EVENT_WRITE)
    assert not selector.get_map()


def test_modify_to_what_is_no_number(selector, pair):
    selector.register(pair[0], EVENT_READ)
    with pytest.raises(TypeError, match="unsupported operand"):
        selector.modify(pair[0], "1")
    assert pair[0].fileno() in selector.get_map()


# --- the map -------------------------------------------------------------------------------------


def test_the_map_is_live(selector, ready):
    fds = ready(5)
    keys = selector.get_map()
    assert isinstance(keys, Mapping)
    assert keys is selector.get_map()
    assert not keys
    for fd in fds:
        selector.register(fd, EVENT_READ, fd * 2)
    assert list(keys) == list(keys.keys()) == fds
    assert [key.data for key in keys.values()] == [fd * 2 for fd in fds]
    assert dict(keys) == dict(keys.items()) == {fd: selector.get_key(fd) for fd in fds}
    selector.unregister(fds[2])
    assert len(keys) == 4
    assert fds[2] not in keys
    assert keys.get(fds[2]) is None
    assert keys.get(fds[2], default="none") == "none"
    assert keys.get(fds[1]).data == keys[fds[1]].data == fds[1] * 2
    with pytest.raises(KeyError, match=f"{fds[2]} is not registered"):
        keys[fds[2]]
    with pytest.raises(TypeError, match="item assignment"):
        keys[fds[2]] = None
    iterator = iter(keys)
    selector.unregister(next(iterator))
    with pytest.raises(RuntimeError, match="changed size during iteration"):
        next(iterator)


def test_close(make, pair):
    selector = make()
    keys = selector.get_map()
    selector.register(pair[0], EVENT_READ)
    fd = selector.fileno()
    selector.close()
    selector.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert selector.get_map() is None
    assert len(keys) == 0
    with pytest.raises(RuntimeError, match="Selector is closed"):
        selector.get_key(pair[0])
    for call in (selector.fileno, selector.select, lambda: selector.register(pair[0], EVENT_READ)):
        with pytest.raises(ValueError, match="I/O operation on closed epoll object"):
            call()
    for call in (lambda: selector.modify(pair[0], EVENT_READ), lambda: selector.unregister(pair[0])):
        with pytest.raises(KeyError, match="is not registered"):
            call()


def test_fileno(selector, ready):
    with selectors.PollSelector() as outer:
        key = outer.register(selector, EVENT_READ)
        assert key.fd == selector.fileno()
        assert outer.select(0) == []
        selector.register(ready(1)[0], EVENT_READ)
        assert outer.select(0) == [(key, EVENT_READ)]


def test_it_takes_no_arguments(make):
    with pytest.raises(TypeError):
        make(1)


# --- selecting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "written", "closed", "reported"),
    [
        (EVENT_READ, False, False, None),
        (EVENT_READ, True, False, EVENT_READ),
        (EVENT_READ, False, True, EVENT_READ),
        (EVENT_READ, True, True, EVENT_READ),
        (EVENT_WRITE, True, False, EVENT_WRITE),
        (EVENT_WRITE, False, True, EVENT_WRITE),
        (BOTH, False, False, EVENT_WRITE),
        (BOTH, True, False, BOTH),
        (BOTH, False, True, BOTH),
    ],
)
def test_select(selector, pair, asked, written, closed, reported):
    key = selector.register(pair[0], asked)
    if written:
        pair[1].send(b"x")
    if closed:
        pair[1].close()
    expected = [] if reported is None else [(key, reported)]
    for _ in range(2):
        assert selector.select(0) == expected
    for found, _ in expected:
        assert selector.select(0)[0][0] is found


@pytest.mark.parametrize(("asked", "reported"), [(EVENT_READ, EVENT_READ), (EVENT_WRITE, EVENT_WRITE), (BOTH, BOTH)])
def test_an_error_is_all_that_was_asked_for(selector, asked, reported):
    reader, writer = os.pipe()
    key = selector.register(writer, asked)
    os.close(reader)
    assert selector.select(0) == [(key, reported)]
    selector.unregister(writer)
    os.close(writer)


def test_readiness_that_changes(selector, pair):
    """What was reported before must not be reported again."""
    key = selector.register(pair[0], BOTH)
    for _ in range(3):
        before = selector.select(0)
        assert before == [(key, EVENT_WRITE)]
        pair[1].send(b"x")
        assert selector.select(0) == [(key, BOTH)]
        pair[0].recv(1)
        assert before == [(key, EVENT_WRITE)]
    key = selector.modify(pair[0], EVENT_READ, "new")
    pair[1].send(b"x")
    assert selector.select(0) == [(key, EVENT_READ)]
    key = selector.modify(pair[0], EVENT_READ, "newer")
    assert selector.select(0)[0][0] is key


def test_many(selector, ready):
    fds = ready(500)
    keys = [selector.register(fd, EVENT_READ, object()) for fd in fds]
    found = selector.select()
    assert sorted(found) == [(key, EVENT_READ) for key in keys]
    for key in keys[::2]:
        selector.unregister(key.fd)
    assert sorted(selector.select()) == [(key, EVENT_READ) for key in keys[1::2]]


def test_as_many_as_are_registered(selector, ready):
    """Those that others put into the interest set are not counted, and not returned."""
    fds = ready(9)
    keys = [selector.register(fd, EVENT_READ) for fd in fds[:3]]
    with fastsock.Epoll.fromfd(os.dup(selector.fileno())) as epoll:
        for fd in fds[3:]:
            epoll.register(fd, 1)
        seen = [selector.select(0) for _ in range(9)]
    assert all(len(part) <= 3 for part in seen)
    assert sorted(key.fd for part in seen for key, _ in part) == sorted([key.fd for key in keys] * 3)


def test_descriptor_used_again(selector, pair):
    """The key of one that was closed without being unregistered stays until it is."""
    fd = pair[0].fileno()
    old = selector.register(pair[0], EVENT_WRITE, "old")
    pair[0].close()
    again = os.eventfd(1)
    if again != fd:
        os.dup2(again, fd, inheritable=False)
        os.close(again)
    assert selector.select(0) == []
    with pytest.raises(KeyError, match="is already registered"):
        selector.register(fd, EVENT_READ)
    assert selector.unregister(fd) is old
    new = selector.register(fd, EVENT_READ, "new")
    assert selector.select(0) == [(new, EVENT_READ)]
    os.close(fd)


def test_unregistered_between_select_and_use(selector, ready):
    fds = ready(3)
    keys = {fd: selector.register(fd, EVENT_READ) for fd in fds}
    found = selector.select(0)
    for fd in fds:
        selector.unregister(fd)
    assert {key.fd: (key, events) for key, events in found} == {fd: (keys[fd], EVENT_READ) for fd in fds}
    assert selector.select(0) == []


@pytest.mark.parametrize("timeout", [0, 0.0, -1, -0.5, -1e300, Fraction(-1), False])
def test_it_does_not_wait(selector, pair, timeout):
    selector.register(pair[0], EVENT_READ)
    assert selector.select(timeout) == []


@pytest.mark.parametrize("timeout", [1e-9, 0.0011, 0.02, Fraction(1, 50)])
def test_a_timeout_is_never_short(selector, timeout):
    begin = time.monotonic()
    assert selector.select(timeout) == []
    assert time.monotonic() - begin >= timeout


@pytest.mark.parametrize("timeout", [None, 30, 30.0, 2147483, True, Fraction(30)])
def test_it_waits(selector, pair, timeout):
    key = selector.register(pair[0], EVENT_READ)
    waker = threading.Timer(0.02, pair[1].send, [b"x"])
    waker.start()
    assert selector.select(timeout) == [(key, EVENT_READ)]
    waker.join()


@pytest.mark.parametrize(
    ("timeout", "error", "text"),
    [
        (float("nan"), ValueError, "cannot convert float NaN to integer"),
        (float("inf"), OverflowError, "cannot convert float infinity to integer"),
        (2147484, OverflowError, "timeout is too large"),
        (1e10, OverflowError, "timestamp out of range for platform time_t"),
        ("1", TypeError, "not supported between instances of 'str' and 'int'"),
    ],
)
def test_timeouts_that_cannot_be(selector, ready, timeout, error, text):
    selector.register(ready(1)[0], EVENT_READ)
    with pytest.raises(error, match=text):
        selector.select(timeout)


# --- signals ----------------------------------------------------------------------------------------


def test_eintr(selector, on_signal):
    heard: list[int] = []

    def hear() -> None:
        heard.append(1)
        assert len(heard) < 200, "the time-out begins anew with every signal"

    on_signal(hear)
    begin = time.monotonic()
    assert selector.select(0.1) == []
    assert time.monotonic() - begin >= 0.1
    assert heard


def test_a_handler_that_raises(selector, on_signal):
    on_signal(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        selector.select()


def test_a_handler_that_raises_interrupted_error(selector, on_signal):
    def interrupt() -> None:
        raise InterruptedError

    on_signal(interrupt)
    assert selector.select() == []


def test_a_handler_that_closes(make, pair, on_signal):
    selector = make()
    selector.register(pair[0], EVENT_READ)
    on_signal(selector.close)
    with pytest.raises(OSError, match="Bad file descriptor"):
        selector.select()


def test_a_handler_that_selects_and_unregisters(selector, pair, on_signal):
    inner: list[object] = []
    key = selector.register(pair[0], EVENT_READ)
    other = selector.register(pair[1], EVENT_READ)

    def handle() -> None:
        if not inner:
            inner.append(selector.select(0))
            pair[0].send(b"x")
            pair[1].send(b"x")
            inner.append({found.fd: events for found, events in selector.select(0)})
            selector.unregister(pair[1])

    on_signal(handle)
    assert selector.select() == [(key, EVENT_READ)]
    assert inner == [[], {key.fd: EVENT_READ, other.fd: EVENT_READ}]


# --- threads, life, subclasses ---------------------------------------------------------------------------


def test_changes_while_others_select(selector):
    """Nothing but keys may come of it, and no crash."""
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
            selector.register(fd, EVENT_READ, fd)
            selector.modify(fd, BOTH, fd)
            selector.unregister(fd)

    def select() -> None:
        while any(thread.is_alive() for thread in changers):
            for key, events in selector.select(0.001):
                assert key.fileobj in own
                assert key.fd == key.data
                assert events & BOTH

    changers += [guarded(lambda fd=fd: change(fd)) for fd in own]
    others = [guarded(select) for _ in range(2)]
    for thread in [*changers, *others]:
        thread.start()
    for thread in [*changers, *others]:
        thread.join(30)
    for fd in own:
        os.close(fd)
    assert not failures
    assert not selector.get_map()


def test_two_threads_select_at_once(selector, pair):
    key = selector.register(pair[0], EVENT_READ)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(selector.select(30))) for _ in range(2)]
    for thread in threads:
        thread.start()
    pair[1].send(b"x")  # which stays there
    for thread in threads:
        thread.join(30)
    assert found == [[(key, EVENT_READ)]] * 2


def test_what_is_forgotten_is_freed(make, ready):
    class Data:
        pass

    (fd,) = ready(1)
    data = [Data() for _ in range(4)]
    refs = [weakref.ref(one) for one in data]
    selector = make()
    selector.register(fd, EVENT_READ, data.pop(0))
    selector.select(0)
    assert refs[0]() is not None
    selector.modify(fd, EVENT_READ, data.pop(0))
    assert refs[0]() is None
    selector.select(0)
    selector.unregister(fd)
    assert refs[1]() is None
    selector.register(fd, EVENT_READ, data.pop(0))
    selector.select(0)
    selector.close()
    assert refs[2]() is None


def test_a_cycle_is_collected(make, ready):
    """A selector that its own data leads to, as an event loop's does; its descriptor goes with it."""
    (fd,) = ready(1)
    selector = make()
    ref = weakref.ref(selector)
    number = selector.fileno()
    selector.register(fd, EVENT_READ, [selector, selector.get_map()])
    selector.select(0)
    del selector
    gc.collect()
    assert ref() is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_data_that_is_freed_in_select(make, ready):
    """Replaced keys go with what reported them, and their finalizer may change the selector."""
    fds = ready(20)
    with make() as selector:

        class Finalized:
            def __del__(self) -> None:
                with suppress(KeyError):
                    selector.unregister(fds[1])
                with suppress(ValueError):  # closed, at the end
                    selector.select(0)

        for fd in fds:
            selector.register(fd, EVENT_READ, Finalized())
        selector.select(0)
        selector.modify(fds[0], EVENT_READ, None)
        assert fds[1] not in selector.get_map()
        assert len(selector.select(0)) == 19
        gc.collect()


class Counting:
    """What a subclass may add: its methods are called, and reach the compiled ones."""

    def register(self, fileobj, events, data=None):
        self.registered = [*getattr(self, "registered", []), fileobj]
        return super().register(fileobj, events, data)

    def select(self, timeout=None):
        return [(key, events | 8) for key, events in super().select(timeout)]


def test_a_subclass(make, pair):
    cls = type("Subclass", (Counting, make), {})
    with cls() as selector:
        key = selector.register(pair[0], EVENT_WRITE)
        assert selector.registered == [pair[0]]
        assert selector.select(0) == [(key, EVENT_WRITE | 8)]


def test_a_subclass_without_its_constructor(pair):
    class Careless(fastsock.selectors.EpollSelector):
        def __init__(self) -> None:
            pass

    with Careless() as selector:
        key = selector.register(pair[0], EVENT_WRITE)
        assert selector.select() == [(key, EVENT_WRITE)]


# --- asyncio ----------------------------------------------------------------------------------------------


async def echo() -> bytes:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1 << 20))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        sent = os.urandom(1 << 20)
        writer.write(sent)
        received = await reader.readexactly(len(sent))
        writer.close()
        await writer.wait_closed()
    return received == sent


def test_asyncio(make):
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(make())) as runner:
        assert runner.run(echo())
        assert runner.run(asyncio.wait_for(asyncio.to_thread(time.sleep, 0.01), 30)) is None


def test_asyncio_readers_that_remove_each_other(make):
    """Both are reported by one select(); the first to run closes the other."""
    loop = asyncio.SelectorEventLoop(make())
    ends = [socket.socketpair() for _ in range(2)]
    ran = []

    def on_read(index: int) -> None:
        ran.append(index)
        for ours, _ in ends:
            loop.remove_reader(ours)
            ours.close()
        loop.stop()

    for index, (ours, theirs) in enumerate(ends):
        ours.setblocking(False)
        loop.add_reader(ours, on_read, index)
        theirs.send(b"x")
    loop.run_forever()
    loop.close()
    for _, theirs in ends:
        theirs.close()
    assert len(ran) == 1


def test_default_selector_of_a_loop(monkeypatch):
    monkeypatch.setattr(selectors, "DefaultSelector", fastsock.selectors.DefaultSelector)
    loop = asyncio.SelectorEventLoop()
    assert isinstance(loop._selector, fastsock.selectors.EpollSelector)  # type: ignore[attr-defined]
    assert loop.run_until_complete(echo())
    loop.close()
