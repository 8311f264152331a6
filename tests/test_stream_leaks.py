"""Connections, moves and files by the ten thousand leave neither descriptors nor memory behind."""

import os

import pytest

LEAKS = """
import gc, os, resource, socket
import fastsock
def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def descriptors():
    return sorted(os.listdir("/proc/self/fd"))
listener = fastsock.Socket(socket.AF_UNIX)
listener.bind("\\0fastsock-leaks-%d" % os.getpid())
listener.listen(64)
address = listener.getsockname()
near, far = fastsock.socket.socketpair()
def accept():
    with fastsock.Socket(socket.AF_UNIX) as client:
        client.connect(address)
        listener.accept()[0].close()
def refuse():
    listener.setblocking(False)
    try:
        listener.accept()
    except BlockingIOError:
        pass
    listener.setblocking(True)
def move():
    global near
    std = near.to_stdlib()
    near = fastsock.Socket.from_stdlib(std)
def refuse_move():
    for wrong in (None, near):
        try:
            fastsock.Socket.from_stdlib(wrong)
        except TypeError:
            pass
def makefile():
    with near.makefile("rwb") as file:
        file.write(b"line\\n")
    far.recv(10)
def cycle():
    sock = near.dup()
    file = sock.makefile("rb")
    holder = [file]
    holder.append(holder)
    sock.close()
    file.close()
def pair():
    for end in fastsock.socket.socketpair():
        end.close()
def whole():
    near.sendmsg([b"x" * 100, b"y"])
    far.recv(101, socket.MSG_WAITALL)
call = {call}
for _ in range(2_000):
    call()
gc.collect()
before, fds = rss(), descriptors()
for _ in range(10_000):
    call()
gc.collect()
assert descriptors() == fds, (fds, descriptors())
grown = rss() - before
assert grown < {room}, f"{{grown}} bytes more"
near.close(); far.close(); listener.close()
"""


@pytest.mark.parametrize("call", ["accept", "refuse", "move", "refuse_move", "makefile", "cycle", "pair", "whole"])
def test_nothing_is_left(isolated, call):
    # One object of 50 bytes for each call would be half a megabyte; the sanitizer keeps freed memory.
    isolated(LEAKS.format(call=call, room=1 << 30 if "FASTSOCK_SANITIZED" in os.environ else 400 << 10), timeout=100)
