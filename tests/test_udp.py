"""bind_udp and connect_udp, and the drop counter."""

import errno
import os
import socket
from pathlib import Path

import pytest
from conftest import needs_drop_counter, needs_localhost

import fastsock
from fastsock import bind_udp, connect_udp


def exchange(sender, receiver) -> tuple[bytes, object]:
    receiver.settimeout(10)
    assert sender.send(b"x") == 1
    return receiver.recvfrom(10)


# --- addresses --------------------------------------------------------------------------


def test_bind_and_connect(family, closing):
    receiver = closing(bind_udp(family.address()))
    assert isinstance(receiver, fastsock.Socket)
    assert (receiver.family, receiver.type, receiver.proto) == (family.family, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    assert receiver.getsockname()[0] == family.host
    assert receiver.getsockname()[1] > 0
    assert (receiver.gettimeout(), receiver.get_inheritable()) == (None, False)
    sender = closing(connect_udp(receiver.getsockname()))
    assert sender.getpeername() == receiver.getsockname()
    assert exchange(sender, receiver) == (b"x", sender.getsockname())


def test_dual_stack(closing):
    receiver = closing(bind_udp(("", 0), dualstack_ipv6=True))
    assert receiver.family == socket.AF_INET6
    assert receiver.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
    port = receiver.getsockname()[1]
    v4, v6 = closing(connect_udp(("127.0.0.1", port))), closing(connect_udp(("::1", port)))
    assert exchange(v4, receiver) == (b"x", ("::ffff:127.0.0.1", v4.getsockname()[1], 0, 0))
    assert exchange(v6, receiver) == (b"x", v6.getsockname())


def test_without_dual_stack_the_port_is_free_for_ipv4(closing):
    v6 = closing(bind_udp(("::", 0)))
    assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    v4 = closing(bind_udp(("0.0.0.0", v6.getsockname()[1])))
    sender = closing(connect_udp(("127.0.0.1", v4.getsockname()[1])))
    assert exchange(sender, v4) == (b"x", sender.getsockname())


def test_dual_stack_needs_ipv6():
    with pytest.raises(ValueError, match="dualstack_ipv6 needs AF_INET6"):
        bind_udp(("", 0), family=socket.AF_INET, dualstack_ipv6=True)
    with pytest.raises(socket.gaierror):
        bind_udp(("127.0.0.1", 0), dualstack_ipv6=True)


@needs_localhost
@pytest.mark.parametrize(
    ("host", "family", "bound"),
    [
        ("localhost", socket.AF_INET, "127.0.0.1"),
        ("", socket.AF_INET, "0.0.0.0"),
        ("", socket.AF_INET6, "::"),
        (b"127.0.0.1", None, "127.0.0.1"),
        ("127.1", None, "127.0.0.1"),
    ],
)
def test_names(closing, host, family, bound):
    assert closing(bind_udp((host, 0), family=family)).getsockname()[0] == bound


@needs_localhost
def test_connect_by_name(closing):
    receiver = closing(bind_udp(("127.0.0.1", 0)))
    sender = closing(connect_udp(("localhost", receiver.getsockname()[1]), family=socket.AF_INET))
    assert exchange(sender, receiver)[0] == b"x"
    for call in (bind_udp, connect_udp):
        with pytest.raises(socket.gaierror):
            call(("no.such.host.invalid", 0))
        with pytest.raises(socket.gaierror):
            call(("::1", 0), family=socket.AF_INET)


def test_second_address_of_a_name_is_tried(closing, monkeypatch):
    free = closing(bind_udp(("127.0.0.1", 0)))
    answers = [
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", free.getsockname()),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answers)
    assert closing(bind_udp(("name", 0))).getsockname()[0] == "127.0.0.1"
    answers.pop()
    # Where none can be bound, the first says why.
    with pytest.raises(OSError, match=r"192\.0\.2\.1") as caught:
        bind_udp(("name", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_scope_of_a_link_local_address(closing):
    scope = socket.if_nametoindex("lo")
    for address in (("::1", 0, 0, 0), ("::1", 0, 0), ("::1", 0)):
        assert closing(bind_udp(address)).getsockname()[0] == "::1"
    sender = closing(connect_udp(("::1", 9, 0, 0)))
    assert sender.getpeername() == ("::1", 9, 0, 0)
    # Here lo has no route to it; but with a scope that was lost it is EINVAL.
    with pytest.raises(OSError, match=rf"fe80::1.*9, 0, {scope}\)") as caught:
        connect_udp(("fe80::1", 9, 0, scope))
    assert caught.value.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL)


@pytest.mark.parametrize("call", [bind_udp, connect_udp])
@pytest.mark.parametrize(
    ("address", "error"),
    [
        (None, TypeError),
        ("127.0.0.1:9", TypeError),
        (["127.0.0.1", 9], TypeError),
        ((), TypeError),
        (("127.0.0.1",), TypeError),
        (("::1", 9, 0, 0, 0), TypeError),
        (("127.0.0.1", "9"), TypeError),
        (("127.0.0.1", None), TypeError),
        (("127.0.0.1", 9.0), TypeError),
        ((5, 9), TypeError),
        (("127.0.0.1", -1), OverflowError),
        (("127.0.0.1", 65536), OverflowError),
        (("127.0.0.1", 9, 0, 0), TypeError),
        (("::1", 9, 2**20), OverflowError),
        (("::1", 9, 1.5), TypeError),
    ],
)
def test_bad_addresses(call, address, error):
    with pytest.raises(error) as caught:
        call(address)
    assert "<=" not in str(caught.value)  # says what is wrong with the address, not with our comparison


def test_local_address(closing, family):
    receiver = closing(bind_udp(family.address()))
    sender = closing(connect_udp(receiver.getsockname(), local_address=family.address()))
    assert sender.getsockname()[0] == family.host
    with pytest.raises(OSError, match="in use") as caught:
        connect_udp(family.address(9), local_address=receiver.getsockname())
    assert caught.value.errno == errno.EADDRINUSE
    # The address that is in use is the local one.
    assert repr(receiver.getsockname()) in str(caught.value)


def test_address_in_use_is_in_the_text(closing, family):
    taken = closing(bind_udp(family.address())).getsockname()
    with pytest.raises(OSError, match="Address already in use") as caught:
        bind_udp(taken)
    assert caught.value.errno == errno.EADDRINUSE
    assert repr(taken) in str(caught.value)


def test_error_keeps_its_class():
    with pytest.raises(OSError, match="Cannot assign") as caught:
        bind_udp(("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    with pytest.raises(PermissionError, match=r"255\.255\.255\.255"):
        connect_udp(("255.255.255.255", 9))


# --- options --------------------------------------------------------------------------------


def test_reuse_port(closing, family):
    first = closing(bind_udp(family.address(), reuse_port=True))
    second = closing(bind_udp(first.getsockname(), reuse_port=True))
    assert first.getsockname() == second.getsockname()
    assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 1
    with pytest.raises(OSError, match="in use"):
        bind_udp(first.getsockname())


def test_reuse_address(closing):
    first = closing(bind_udp(("127.0.0.1", 0), reuse_address=True))
    assert closing(bind_udp(first.getsockname(), reuse_address=True)).getsockname() == first.getsockname()
    assert closing(bind_udp(("127.0.0.1", 0))).getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


@pytest.mark.parametrize(("name", "option"), [("rcvbuf", socket.SO_RCVBUF), ("sndbuf", socket.SO_SNDBUF)])
def test_buffers(closing, name, option):
    for make in (bind_udp, connect_udp):
        sock = closing(make(("127.0.0.1", 0 if make is bind_udp else 9), **{name: 65536}))
        assert sock.getsockopt(socket.SOL_SOCKET, option) == 2 * 65536
        for bad in (0, -1):
            with pytest.raises(ValueError, match="at least 1 byte"):
                make(("127.0.0.1", 9999), **{name: bad})
        with pytest.raises(OverflowError):
            make(("127.0.0.1", 9999), **{name: 2**31})
        with pytest.raises(TypeError):
            make(("127.0.0.1", 9999), **{name: "1"})


LARGE = 1 << 28  # beyond any usual rmem_max


@pytest.mark.skipif(os.geteuid() != 0, reason="to exceed rmem_max takes CAP_NET_ADMIN")
@pytest.mark.parametrize(("name", "option"), [("rcvbuf", socket.SO_RCVBUF), ("sndbuf", socket.SO_SNDBUF)])
def test_buffers_beyond_the_limit_are_forced(closing, name, option):
    if not fastsock.probe().rcvbuf_force:
        pytest.skip("this root has no CAP_NET_ADMIN")
    sock = closing(bind_udp(("127.0.0.1", 0), **{name: LARGE}))
    assert sock.getsockopt(socket.SOL_SOCKET, option) == 2 * LARGE


WITHOUT_CAPABILITY = """
import ctypes, struct, sys, socket, warnings
import fastsock
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack("=Ii", 0x20080522, 0)           # capset(2): no capability is left
assert libc.capset(header, bytes(24)) == 0
name, wanted = sys.argv[1], int(sys.argv[2])
assert not fastsock.probe().rcvbuf_force
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    sock = fastsock.bind_udp(("127.0.0.1", 0), **{name: wanted})   # line 11
for warning in caught:
    print(warning.category.__name__, warning.filename, warning.lineno, warning.message)
sock.close()
try:
    fastsock.connect_udp(("127.0.0.1", 9), **{name: wanted}).close()
except RuntimeWarning:
    print("raised")
"""


@pytest.mark.parametrize(("name", "sysctl"), [("rcvbuf", "rmem"), ("sndbuf", "wmem")])
def test_a_buffer_that_is_not_given_warns_once_with_what_lifts_it(isolated, name, sysctl):
    most, usual = (int(Path(f"/proc/sys/net/core/{sysctl}_{kind}").read_text()) for kind in ("max", "default"))
    if most >= LARGE:
        pytest.skip("this machine allows any buffer")
    text, raised = isolated(WITHOUT_CAPABILITY, name, LARGE).splitlines()
    assert text.startswith("RuntimeWarning <string> 11 ")
    assert f"wanted {LARGE} bytes, was {usual // 2}, got {most}" in text
    assert f"sysctl -w net.core.{sysctl}_max={LARGE}" in text
    assert raised == "raised"
    # What fits is given without a word, and without the capability.
    assert isolated(WITHOUT_CAPABILITY, name, 8192) == ""


# --- drops ------------------------------------------------------------------------------------


def kernels_drops(sock) -> int:
    """The drops column of the socket's line in /proc/net/udp."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    name = "udp6" if sock.family == socket.AF_INET6 else "udp"
    for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] == inode:
            return int(fields[12])
    raise AssertionError("no such socket in /proc/net")


@needs_drop_counter
def test_drops_are_the_kernels_at_once(family, closing):
    receiver = closing(bind_udp(family.address(), rcvbuf=4096))
    sender = closing(connect_udp(receiver.getsockname()))
    assert receiver.drops == 0
    received, sent = 0, 0
    receiver.setblocking(False)
    for burst in (1, 500, 3, 2000):
        sent += sender.send_many([b"x" * 100] * burst)
        before = receiver.drops
        assert before == kernels_drops(receiver)
        try:
            while True:
                received += len(receiver.recv_many())
        except BlockingIOError:
            pass
        assert received + receiver.drops == sent
        assert receiver.drops == before
    assert 0 < receiver.drops < sent == 2504


def test_drops_of_a_closed_socket(family):
    sock = bind_udp(family.address())
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        _ = sock.drops
    with pytest.raises(AttributeError):
        sock.drops = 0
