"""Files over a socket, and files sent through one: makefile and sendfile of either class."""

import io
import os
import socket
import threading

import pytest
from conftest import byte_streams

pytestmark = byte_streams


@pytest.mark.parametrize(
    ("mode", "buffering", "kind"),
    [
        ("r", None, io.TextIOWrapper),
        ("w", None, io.TextIOWrapper),
        ("rw", -1, io.TextIOWrapper),
        ("rb", None, io.BufferedReader),
        ("wb", 100, io.BufferedWriter),
        ("rwb", None, io.BufferedRWPair),
        ("rb", 0, socket.SocketIO),
        ("wb", 0, socket.SocketIO),
        ("rwb", 0, socket.SocketIO),
    ],
)
def test_modes(streams, mode, buffering, kind):
    near, far = streams.pair()
    with near.makefile(mode, buffering) as file:
        assert type(file) is kind
        assert (file.readable(), file.writable(), file.seekable()) == ("r" in mode, "w" in mode, False)
        text = "b" not in mode
        if "w" in mode:
            file.write("out\n" if text else b"out\n")
            file.flush()
            assert far.recv(10) == b"out\n"
        if "r" in mode:
            far.sendall(b"in\n")
            assert file.readline() == ("in\n" if text else b"in\n")
    assert near.fileno() >= 0


@pytest.mark.parametrize(
    ("arguments", "error"), [(("x",), ValueError), (("a",), ValueError), (("r", 0), ValueError), ((5,), TypeError)]
)
def test_bad_modes_leave_nothing_open(streams, arguments, error):
    near, far = streams.pair()
    with pytest.raises(error):
        near.makefile(*arguments)
    near.close()
    assert far.recv(1) == b""


def test_text(streams):
    near, far = streams.pair()
    far.sendall("á\r\nß\n".encode("latin-1") + b"\r\n")
    near.shutdown(socket.SHUT_WR)
    far.close()
    with near.makefile("r", encoding="latin-1", newline="\r\n") as file:
        assert list(file) == ["á\r\n", "ß\n\r\n"]


@pytest.mark.parametrize("first", ["socket", "files"])
def test_the_last_of_socket_and_files_closes_the_descriptor(streams, first):
    near, far = streams.pair()
    fd = near.fileno()
    files = [near.makefile("rb"), near.makefile("wb")]
    assert near._io_refs == 2
    for resource in [near, *files] if first == "socket" else [*files, near]:
        assert near.fileno() == fd
        far.sendall(b"x")  # somebody still listens
        resource.close()
        resource.close()
    assert (near.fileno(), near._io_refs) == (-1, 0)


def test_a_file_outlives_its_socket(streams):
    near, far = streams.pair()
    file = near.makefile("rwb")
    near.close()
    assert "[closed]" in repr(near)
    with near.makefile("rb") as late:  # the descriptor is there yet
        far.sendall(b"one\n")
        assert late.readline() == b"one\n"
    file.write(b"two")
    file.close()
    assert far.recv(10) == b"two"
    assert far.recv(10) == b""


def test_files_under_a_timeout(streams):
    near, far = streams.pair()
    near.settimeout(0.02)
    with near.makefile("rb") as file:
        far.sendall(b"part")
        with pytest.raises(TimeoutError):
            file.read(10)
        with pytest.raises(OSError, match="cannot read from timed out object"):
            file.read(10)
    near.setblocking(False)
    with near.makefile("rb", 0) as file:
        assert file.read(10) is None


UNCLOSED = """
import gc, os, socket, sys, warnings
import fastsock
cls = eval(sys.argv[1])
warnings.simplefilter("always")
near, far = (cls(fileno=end.detach()) for end in socket.socketpair())
fd = near.fileno()
file = near.makefile("rb")
del near
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    del file
    gc.collect()
for warning in caught:
    print(str(warning.message)[:8], f"fd={fd}" in str(warning.message))
try:
    os.fstat(fd)
except OSError as error:
    print(error.errno)
far.close()
"""


def test_an_unclosed_socket_behind_a_file_warns(isolated, streams):
    theirs, ours = (isolated(UNCLOSED, name) for name in ("socket.socket", "fastsock.Socket"))
    assert ours == theirs
    assert ours.split()[-3:] == ["unclosed", "True", "9"]


# --- sendfile --------------------------------------------------------------------------------


@pytest.fixture
def content(tmp_path):
    """A file of 3 MiB, open, and what is in it."""
    payload = os.urandom(3 << 20)
    (tmp_path / "content").write_bytes(payload)
    with open(tmp_path / "content", "rb") as file:
        yield file, payload


def received_by(sock):
    """Read a socket to its end in a thread; the function that is returned gives the bytes."""
    received = bytearray()

    def read():
        while payload := sock.recv(1 << 16):
            received.extend(payload)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()

    def result():
        thread.join(20)
        assert not thread.is_alive()
        return received

    return result


@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize(("offset", "count"), [(0, None), (1000, None), (5, 100_000), (0, 0), (3 << 20, None)])
def test_sendfile(streams, content, offset, count, timeout):
    file, payload = content
    near, far = streams.pair()
    near.settimeout(timeout)
    result = received_by(far)
    if count == 0:
        with pytest.raises(ValueError, match="count must be a positive integer"):
            near.sendfile(file, offset, count)
        near.close()
        assert result() == b""
        return
    wanted = payload[offset : offset + count if count else None]
    assert near.sendfile(file, offset, count) == len(wanted)
    near.close()
    assert result() == wanted
    assert file.tell() == (offset + len(wanted) if wanted else 0)


def test_sendfile_of_what_is_no_regular_file(streams, content):
    _, payload = content
    near, far = streams.pair()
    result = received_by(far)
    memory = io.BytesIO(payload)
    assert near.sendfile(memory, 10, 200_000) == 200_000
    assert memory.tell() == 200_010
    near.close()
    assert result() == payload[10:200_010]


def test_sendfile_refuses(streams, content, tmp_path):
    file, _ = content
    near, _ = streams.pair()
    for offset, count, error in ((0, -1, ValueError), (0, 1.5, TypeError)):
        with pytest.raises(error):
            near.sendfile(file, offset, count)
    with open(tmp_path / "content") as text, pytest.raises(ValueError, match="binary mode"):
        near.sendfile(text)
    near.setblocking(False)
    with pytest.raises(ValueError, match="non-blocking"):
        near.sendfile(file)
    with streams.cls(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="SOCK_STREAM"):
        sock.sendfile(file)


def test_sendfile_times_out(streams, content):
    file, _ = content
    near, _ = streams.pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.settimeout(0.05)
    for _ in range(2):  # what fits in the buffers has gone after the first
        with pytest.raises(TimeoutError):
            near.sendfile(file)
