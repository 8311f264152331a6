"""What does a busy Python thread in the receiver's process cost? Datagrams, counted.

    python bench/busy_thread.py [--rate 200k] [--seconds 3] [--rcvbuf BYTES]

A second process sends at a steady rate; this one receives while another of its threads
computes. Each way to receive gets the same stream in turn. Lost is what the kernel dropped
at the socket, as a share of what was sent. A Receiver's thread runs beside the busy one, on whatever CPU is free.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple

import fastsock

Receive = Callable[[], int]


class Ends(NamedTuple):
    """One bound socket: fastsock's, and the standard library's on a duplicate."""

    ours: fastsock.Socket
    theirs: socket.socket


def one_by_one(ends: Ends) -> Receive:
    return lambda: len(ends.theirs.recv(2048)) > 0


def in_lists(ends: Ends) -> Receive:
    return lambda: len(ends.ours.recv_many())


def in_a_batch(ends: Ends) -> Receive:
    batch = fastsock.RecvBatch()
    return lambda: ends.ours.recv_batch(batch)


def by_a_receiver(ends: Ends, priority: int = 0) -> Receive:
    receiver = fastsock.Receiver(ends.ours, priority=priority)

    def receive() -> int:
        batch = receiver.take(timeout=1)
        if not batch:
            receiver.close()
            raise TimeoutError
        return len(batch)

    return receive


WAYS: dict[str, Callable[[Ends], Receive]] = {
    "socket.recv": one_by_one,
    "recv_many": in_lists,
    "recv_batch": in_a_batch,
    "Receiver": by_a_receiver,
    "Receiver, real-time": lambda ends: by_a_receiver(ends, priority=1),
}


def measure(way: str, rate: str, seconds: float, rcvbuf: int) -> tuple[int, int]:
    """Datagrams (received, dropped) by one way of receiving, beside a busy thread."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sum(range(1000))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sock = fastsock.bind_udp(("127.0.0.1", 0), rcvbuf=rcvbuf)
    with sock, socket.socket(fileno=sock.dup().detach()) as std:
        receive = WAYS[way](Ends(sock, std))
        sock.settimeout(1)
        std.settimeout(1)
        command = [sys.executable, "-m", "fastsock", "send", f"127.0.0.1:{sock.getsockname()[1]}", "--json"]
        sender = subprocess.Popen(
            [*command, "--rate", rate, "--duration", str(seconds), "--size", "64"], stdout=subprocess.DEVNULL
        )
        received = receive()
        thread = threading.Thread(target=busy)
        thread.start()
        try:
            while True:
                received += receive()
        except TimeoutError:
            pass
        finally:
            stop.set()
            thread.join()
            sender.wait()
        return received, sock.drops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", default="200k")
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rcvbuf", type=int, default=8 << 20)
    args = parser.parse_args()
    print(f"{args.rate} datagrams/s of 64 bytes, receive buffer {args.rcvbuf} bytes, beside a busy thread")
    for way in WAYS:
        try:
            received, dropped = measure(way, args.rate, args.seconds, args.rcvbuf)
        except PermissionError:
            print(f"{way:19} needs CAP_SYS_NICE")
            continue
        print(f"{way:19} received {received:9,}  dropped {dropped:9,}  lost {dropped / (received + dropped):7.2%}")


if __name__ == "__main__":
    main()
