"""Sockets as arguments to processes of ``multiprocessing``, as the standard library's may be.

Only there: the descriptor goes along, so that pickling to anywhere else must fail. May import _sock.
"""

from multiprocessing import reduction
from typing import Any

from fastsock._sock import Socket


def reduce_socket(sock: Socket) -> tuple[Any, ...]:
    return rebuild_socket, (reduction.DupFd(sock.fileno()), sock.family, sock.type, sock.proto)


def rebuild_socket(duplicate: Any, family: int, type: int, proto: int) -> Socket:
    return Socket(family, type, proto, fileno=duplicate.detach())


reduction.register(Socket, reduce_socket)
