"""Families whose addresses we do not know: every call works that takes none. And scopes of IPv6."""

import os
import socket
import struct

import pytest
from conftest import needs_ipv6

import fastsock


def can_be_made(*kind):
    try:
        fastsock.Socket(*kind).close()
    except OSError:
        return False
    return True


NETLINK = (socket.AF_NETLINK, socket.SOCK_RAW, 0)
OTHERS = [
    kind
    for kind in (NETLINK, (socket.AF_PACKET, socket.SOCK_RAW, 0), (socket.AF_VSOCK, socket.SOCK_STREAM, 0))
    if can_be_made(*kind)
]


@pytest.mark.parametrize("kind", OTHERS, ids=str)
def test_other_families_can_be_made(kind):
    with fastsock.Socket(*kind) as sock, sock.dup() as copy:
        assert (sock.family, sock.type, sock.proto) == (copy.family, copy.type, copy.proto) == kind
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == kind[0]
        family, raw = sock.getsockname()
        assert (family, type(raw)) == (kind[0], bytes)
        assert f"family={kind[0]:d}" in repr(sock)
        for call in (sock.bind, sock.connect, sock.connect_ex, lambda address: sock.sendto(b"x", address)):
            with pytest.raises(OSError, match="bad family"):
                call((0, 0))
        # And the standard library's class, which knows them, takes the descriptor.
        with sock.to_stdlib() as theirs:
            assert theirs.getsockname() != (family, raw)


GETLINK = struct.pack("=LHHLL BBHiII", 32, 18, 0x301, 7, 0, 0, 0, 0, 0, 0, 0)  # RTM_GETLINK, NLM_F_DUMP


def test_netlink_through_the_generic_calls():
    with fastsock.Socket(*NETLINK) as sock:
        sock.settimeout(10)
        assert sock.send(GETLINK) == 32
        payload, address = sock.recvfrom(1 << 16)
        assert struct.unpack_from("=LHHL", payload)[1:] == (16, 2, 7)  # RTM_NEWLINK, NLM_F_MULTI
        assert address == (socket.AF_NETLINK, bytes(10))  # from the kernel
        while struct.unpack_from("=LH", payload)[1] != 3:  # NLMSG_DONE
            payload, _, _, address = sock.recvmsg(1 << 16)
            assert address == (socket.AF_NETLINK, bytes(10))
        theirs = socket.socket(fileno=os.dup(sock.fileno()))
        with theirs:
            assert theirs.getsockname()[0] == struct.unpack_from("=I", sock.getsockname()[1], 2)[0]


SCOPES = """
import socket, subprocess
import fastsock
subprocess.run(["ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad"], check=True)
scope = socket.if_nametoindex("lo")
for cls in (socket.socket, fastsock.Socket):
    with cls(socket.AF_INET6) as listener, cls(socket.AF_INET6) as near:
        try:
            listener.bind(("fe80::1", 0))
        except OSError as error:
            print(error.errno)                  # EINVAL: which of the links
        listener.bind(("fe80::1", 0, 0, scope))
        listener.listen()
        port = listener.getsockname()[1]
        near.connect(("fe80::1", port, 0xABCDE, scope))
        far, address = listener.accept()
        with far:
            print(address == near.getsockname(), address[0], address[3] == scope, near.getpeername()[3] == scope)
# A scope within the host is enough for ours; the standard library takes it for none.
with fastsock.Socket(socket.AF_INET6) as listener, fastsock.Socket(socket.AF_INET6) as near:
    listener.bind(("fe80::1%lo", 0))
    listener.listen()
    near.connect(("fe80::1%lo", listener.getsockname()[1]))
    print(near.getpeername()[3] == scope)
"""


@needs_ipv6
def test_scopes_and_flow_labels(isolated, namespace):
    lines = isolated(SCOPES, before=namespace.enter).splitlines()
    assert lines == ["22", "True fe80::1 True True"] * 2 + ["True"]
