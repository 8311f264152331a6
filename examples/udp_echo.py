"""A UDP echo server (RFC 862): an asyncio.DatagramProtocol as everyone writes it, on fastsock's event loop.

    python udp_echo.py --host 127.0.0.1 --port 7007

The loop is the only line that knows of fastsock: what came together is received with one system call, and the
answers leave with one. SIGINT or SIGTERM ends it with the counts on stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

import fastsock.aio


class Echo(asyncio.DatagramProtocol):
    received = answered = discarded = errors = 0
    writable = True

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received += 1
        if self.writable:
            self.transport.sendto(data, addr)
            self.answered += 1
        else:
            self.discarded += 1

    # Without these two the answers would queue up here, where the kernel has no room to send them.
    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def error_received(self, _: Exception) -> None:
        self.errors += 1


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    transport, echo = await loop.create_datagram_endpoint(Echo, (host, port))
    try:
        host, port = transport.get_extra_info("sockname")[:2]
        print(f"listening on {host}:{port}, Ctrl-C ends", file=sys.stderr, flush=True)
        await stop.wait()
    finally:
        transport.close()
    print(
        f"received    {echo.received}\nanswered    {echo.answered}\n"
        f"discarded   {echo.discarded}\nerrors      {echo.errors}",
        file=sys.stderr,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=7007)
    args = parser.parse_args()
    with asyncio.Runner(loop_factory=fastsock.aio.EventLoop) as runner:
        runner.run(serve(args.host, args.port))


if __name__ == "__main__":
    main()
