"""fastsock for asyncio, uvloop, trio and anyio: batches of datagrams, and the protocols that you have.

``create_datagram_endpoint`` is the loop's own with whole batches below it; ``bind_udp`` and ``connect_udp`` are
sockets to await; ``EventLoop`` makes an existing program use both without a change.
"""

from fastsock.aio._endpoint import create_datagram_endpoint
from fastsock.aio._loop import EventLoop
from fastsock.aio._sockets import AsyncSocket, bind_udp, connect_udp
from fastsock.aio._transport import DatagramTransport

__all__ = [
    "AsyncSocket",
    "DatagramTransport",
    "EventLoop",
    "bind_udp",
    "connect_udp",
    "create_datagram_endpoint",
]
