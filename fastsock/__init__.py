"""Linux sockets for Python at the speed of the kernel.

sock = fastsock.bind_udp(("0.0.0.0", 9995), rcvbuf=8 << 20)
while True:
    for payload, address in sock.recvfrom_many():
        ...
"""

from fastsock import _reduction as _reduction
from fastsock import selectors as selectors
from fastsock import socket as socket
from fastsock._datagrams import Datagram
from fastsock._epoll import Epoll
from fastsock._errqueue import ErrorRecord
from fastsock._limits import Limit
from fastsock._probe import Capability, Probe, probe
from fastsock._receiver import Receiver
from fastsock._recvbatch import RecvBatch
from fastsock._ring import Ring, RingBatch, RingStats
from fastsock._sendbatch import SendBatch
from fastsock._sock import Socket, SocketStats
from fastsock._udp import bind_udp, bind_udp_group, connect_udp

__version__ = "0.1.0"

__all__ = [
    "Capability",
    "Datagram",
    "Epoll",
    "ErrorRecord",
    "Limit",
    "Probe",
    "Receiver",
    "RecvBatch",
    "Ring",
    "RingBatch",
    "RingStats",
    "SendBatch",
    "Socket",
    "SocketStats",
    "bind_udp",
    "bind_udp_group",
    "connect_udp",
    "probe",
]
