"""Records of the error queue, decoded from what the kernel writes: linux/errqueue.h.

Among them those that need a device or a queue which few machines have: missed times of
SO_TXTIME, hardware time stamps, numbers that wrap.
"""

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsock import ErrorRecord
from fastsock._cmsg import encode
from fastsock._errqueue import decode

IP_RECVERR, IPV6_RECVERR, SCM_TIMESTAMPNS, SCM_TIMESTAMPING = 11, 25, 35, 37
LOCAL, ICMP, ICMP6, TIMESTAMPING, ZEROCOPY, TXTIME = 1, 2, 3, 4, 5, 6  # SO_EE_ORIGIN_*
V4, V6 = (socket.IPPROTO_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR)


def extended(number=0, origin=0, kind=0, code=0, info=0, data=0, offender=b"") -> bytes:
    """struct sock_extended_err, and the sockaddr behind it."""
    return struct.pack("=IBBBBII", number, origin, kind, code, 0, info, data) + offender


def in4(host: str, port: int = 0) -> bytes:
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, socket.inet_aton(host))


def in6(host: str, port: int = 0, scope: int = 0) -> bytes:
    address = socket.inet_pton(socket.AF_INET6, host)
    return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16s", port, 0, address) + struct.pack("=I", scope)


def record(error: bytes, at=V4, **more):
    return decode(encode([(*at, error)]), **more)


@pytest.mark.parametrize("at", [V4, V6])
def test_icmp(at):
    error = extended(errno.ECONNREFUSED, ICMP, 3, 3, offender=in4("192.0.2.1"))
    assert record(error, at, payload=b"quoted", name=in4("192.0.2.9", 53)) == ErrorRecord(
        errno.ECONNREFUSED, "icmp", 3, 3, ("192.0.2.9", 53), "192.0.2.1", None, b"quoted", None, None, False
    )


def test_icmp6():
    error = extended(errno.EHOSTUNREACH, ICMP6, 1, 3, offender=in6("2001:db8::1"))
    assert record(error, V6, name=in6("2001:db8::9", 53)) == ErrorRecord(
        errno.EHOSTUNREACH, "icmp6", 1, 3, ("2001:db8::9", 53, 0, 0), "2001:db8::1"
    )


@pytest.mark.parametrize("origin", [LOCAL, ICMP, ICMP6])
def test_mtu_only_with_emsgsize(origin):
    assert record(extended(errno.EMSGSIZE, origin, info=1280)).mtu == 1280
    assert record(extended(errno.ECONNREFUSED, origin, info=1280)).mtu is None


@pytest.mark.parametrize(
    ("offender", "expected"),
    [
        (b"", None),
        (bytes(1), None),
        (bytes(2), None),
        (bytes(16), None),  # AF_UNSPEC
        (in4("192.0.2.1"), "192.0.2.1"),
        (in6("::ffff:192.0.2.1"), "::ffff:192.0.2.1"),
        (struct.pack("=H", 77) + bytes(14), None),
    ],
)
def test_offenders(offender, expected):
    assert record(extended(errno.ECONNREFUSED, ICMP, offender=offender)).offender == expected


def test_without_an_address():
    assert record(extended(errno.ECONNREFUSED, LOCAL)).address is None


# --- zero-copy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 0, range(1)),
        (3, 7, range(3, 8)),
        (2**32 - 1, 2**32 - 1, range(2**32 - 1, 2**32)),
        (2**32 - 2, 1, range(2**32 - 2, 2**32 + 2)),  # the numbers wrap within it
        (0, 2**32 - 1, range(2**32)),
    ],
)
def test_zero_copy_numbers(first, last, expected):
    found = record(extended(0, ZEROCOPY, info=first, data=last))
    assert (found.errno, found.origin, found.ids, found.copied) == (0, "zerocopy", expected, False)
    assert (found.mtu, found.timestamp_ns, found.payload) == (None, None, b"")


@given(st.integers(0, 2**32 - 1), st.integers(1, 5000))
def test_zero_copy_numbers_are_as_many_as_were_sent(first, count):
    ids = record(extended(0, ZEROCOPY, info=first, data=(first + count - 1) % 2**32)).ids
    assert [number % 2**32 for number in ids] == [(first + i) % 2**32 for i in range(count)]


def test_copied():
    assert record(extended(0, ZEROCOPY, code=1)).copied
    assert not record(extended(0, ZEROCOPY, code=0)).copied
    assert not record(extended(errno.ECONNREFUSED, ICMP, code=1)).copied


# --- transmit timestamps ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stamps", "expected"),
    [
        ([(1_700_000_000, 5), (0, 0), (0, 0)], 1_700_000_000_000_000_005),
        ([(0, 0), (0, 0), (12, 34)], 12_000_000_034),
        ([(1, 0), (9, 9), (2, 0)], 2_000_000_000),  # the device's, where it has one
        ([(0, 0), (9, 9), (0, 0)], None),  # the middle one is out of use
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_timestamps(stamps, expected, first):
    # The kernel may write either item first.
    items = [
        (socket.SOL_SOCKET, SCM_TIMESTAMPING, b"".join(struct.pack("@ll", *stamp) for stamp in stamps)),
        (*V4, extended(errno.ENOMSG, TIMESTAMPING, info=1, data=7)),
    ]
    found = decode(encode(items[:: 1 if first else -1]))
    assert (found.errno, found.origin, found.type, found.code) == (0, "timestamp", 1, 0)
    assert (found.ids, found.timestamp_ns, found.mtu) == (range(7, 8), expected, None)


def test_a_timestamp_record_without_its_stamp():
    assert record(extended(errno.ENOMSG, TIMESTAMPING, data=2**32 - 1)).timestamp_ns is None
    assert record(extended(errno.ENOMSG, TIMESTAMPING, data=2**32 - 1)).ids == range(2**32 - 1, 2**32)


# --- times to send at -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(errno.EINVAL, 1), (errno.ECANCELED, 2)])
@pytest.mark.parametrize("txtime_ns", [0, 1, 2**32 - 1, 2**32, 1_700_000_000_123_456_789, 2**63 - 1])
def test_missed_and_bad_times(number, code, txtime_ns):
    # net/sched/sch_etf.c, report_sock_error: the time in two halves.
    found = record(extended(number, TXTIME, code=code, info=txtime_ns % 2**32, data=txtime_ns >> 32), payload=b"late")
    assert found == ErrorRecord(number, "txtime", 0, code, payload=b"late", timestamp_ns=txtime_ns)


# --- what is no record, or no whole one -----------------------------------------------------------------


def test_unknown_origins_keep_their_number():
    assert record(extended(5, 99)).origin == "99"


@pytest.mark.parametrize(
    "items",
    [
        [],
        [(socket.SOL_SOCKET, SCM_TIMESTAMPNS, bytes(16))],
        [(socket.IPPROTO_IPV6, IP_RECVERR, extended(1, ICMP))],  # a level and a type that do not belong together
        [(*V4, b"")],
        [(*V4, extended(1, ICMP)[:-1])],
    ],
)
def test_no_record(items):
    assert decode(encode(items)) is None


def test_the_record_is_found_behind_other_items():
    items = [(socket.IPPROTO_IP, 8, bytes(12)), (socket.SOL_SOCKET, 40, bytes(4)), (*V6, extended(5, ICMP6))]
    assert decode(encode(items)).errno == 5


@given(st.data())
def test_a_cut_control_buffer_is_never_read_past(data):
    control = encode(
        [
            (socket.SOL_SOCKET, SCM_TIMESTAMPING, struct.pack("@6l", *range(6))),
            (*V4, extended(5, TIMESTAMPING, offender=in6("::1"))),
        ]
    )
    found = decode(control[: data.draw(st.integers(0, len(control)))])
    assert found is None or found.ids == range(1)


@given(st.binary(max_size=200), st.binary(max_size=40), st.binary(max_size=128))
def test_rubbish(error, payload, name):
    for at in (V4, V6):
        found = record(error, at, payload=payload, name=name)
        assert (found is None) == (len(error) < 16)
        assert found is None or found.payload == payload
