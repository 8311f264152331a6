"""Addresses between the kernel's form and Python's, and the cache of decoded ones."""

import ipaddress
import random
import socket
import struct
from socket import AF_INET, AF_INET6, AF_UNIX

import pytest
from conftest import needs_localhost
from hypothesis import given
from hypothesis import strategies as st

from fastsock._sockaddr import AddressCache, decode, encode

FAMILY = struct.Struct("=H")


def inet(host: str, port: int) -> bytes:
    return FAMILY.pack(AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def inet6(host: str, port: int, flowinfo: int = 0, scope_id: int = 0) -> bytes:
    packed = struct.pack("!HI", port, flowinfo) + socket.inet_pton(AF_INET6, host)
    return FAMILY.pack(AF_INET6) + packed + struct.pack("=I", scope_id)


def unix(path: bytes) -> bytes:
    return FAMILY.pack(AF_UNIX) + path


ROUND_TRIPS = [
    (AF_INET, ("127.0.0.1", 9995), inet("127.0.0.1", 9995)),
    (AF_INET, ("0.0.0.0", 0), inet("0.0.0.0", 0)),
    (AF_INET, ("255.255.255.255", 65535), inet("255.255.255.255", 65535)),
    (AF_INET6, ("::1", 53, 0, 0), inet6("::1", 53)),
    (AF_INET6, ("::", 0, 0, 0), inet6("::", 0)),
    (AF_INET6, ("fe80::1", 1, 0, 7), inet6("fe80::1", 1, 0, 7)),
    (AF_INET6, ("2001:db8::a", 65535, 0xFFFFF, 2**32 - 1), inet6("2001:db8::a", 65535, 0xFFFFF, 2**32 - 1)),
    (AF_INET6, ("::ffff:10.0.0.1", 1, 0, 0), inet6("::ffff:10.0.0.1", 1)),
    (AF_UNIX, "/run/x", unix(b"/run/x\0")),
    (AF_UNIX, "x" * 107, unix(b"x" * 107 + b"\0")),
    (AF_UNIX, "/caf\u00e9", unix(b"/caf\xc3\xa9\0")),
    (AF_UNIX, "/\udcff", unix(b"/\xff\0")),
    (AF_UNIX, b"\0abstract", unix(b"\0abstract")),
    (AF_UNIX, b"\0a\0b\0", unix(b"\0a\0b\0")),
    (AF_UNIX, b"\0" + b"x" * 107, unix(b"\0" + b"x" * 107)),
    (AF_UNIX, "", unix(b"")),
]


@pytest.mark.parametrize(("family", "address", "raw"), ROUND_TRIPS)
def test_round_trip(family, address, raw):
    assert encode(family, address) == raw
    assert decode(raw) == address
    assert type(decode(raw)) is type(address)


SAME = [
    (AF_INET, (b"127.0.0.1", 1), ("127.0.0.1", 1)),
    (AF_INET, (bytearray(b"127.0.0.1"), 1), ("127.0.0.1", 1)),
    (AF_INET, ("", 1), ("0.0.0.0", 1)),
    (AF_INET, ("<broadcast>", 1), ("255.255.255.255", 1)),
    (AF_INET, ("127.1", 1), ("127.0.0.1", 1)),
    (AF_INET, ("127.0.0.1", True), ("127.0.0.1", 1)),
    pytest.param(AF_INET, ("localhost", 7), ("127.0.0.1", 7), marks=needs_localhost),
    (AF_INET6, ("::1", 1), ("::1", 1, 0, 0)),
    (AF_INET6, ("::1", 1, 5), ("::1", 1, 5, 0)),
    (AF_INET6, (b"::1", 1), ("::1", 1, 0, 0)),
    (AF_INET6, ("", 1), ("::", 1, 0, 0)),
    (AF_INET6, ("0:0:0:0:0:0:0:1", 1), ("::1", 1, 0, 0)),
    (AF_UNIX, b"/run/x", "/run/x"),
    (AF_UNIX, bytearray(b"/run/x"), "/run/x"),
    (AF_UNIX, memoryview(b"/run/x"), "/run/x"),
    (AF_UNIX, "\0abstract", b"\0abstract"),
]


@pytest.mark.parametrize(("family", "address", "meant"), SAME)
def test_other_spellings(family, address, meant):
    assert decode(encode(family, address)) == meant


def test_scope_may_stand_in_the_host():
    scope = socket.if_nametoindex("lo")
    assert decode(encode(AF_INET6, ("fe80::1%lo", 9))) == ("fe80::1", 9, 0, scope)


PAIR = "AF_INET address must be a pair (host, port)"
TUPLE6 = "AF_INET6 address must be a tuple (host, port[, flowinfo[, scopeid]])"
HOST = "str, bytes or bytearray expected, not "
REFUSED = [
    *[
        (AF_INET, bad, TypeError, f"AF_INET address must be tuple, not {type(bad).__name__}")
        for bad in (None, 5, "127.0.0.1", b"x", ["127.0.0.1", 1])
    ],
    *[(AF_INET6, bad, TypeError, f"AF_INET6 address must be tuple, not {type(bad).__name__}") for bad in (None, "::1")],
    (AF_INET, (), TypeError, PAIR),
    (AF_INET, ("127.0.0.1",), TypeError, PAIR),
    (AF_INET, ("127.0.0.1", 1, 0, 0), TypeError, PAIR),
    (AF_INET6, ("::1",), TypeError, TUPLE6),
    (AF_INET6, ("::1", 1, 0, 0, 0), TypeError, TUPLE6),
    *[(AF_INET, ("127.0.0.1", port), OverflowError, "port must be 0-65535") for port in (-1, 65536, 2**70)],
    (AF_INET6, ("::1", 65536), OverflowError, "port must be 0-65535"),
    (AF_INET6, ("::1", 1, 1 << 20), OverflowError, "flowinfo must be 0-1048575"),
    (AF_INET6, ("::1", 1, -1), OverflowError, "flowinfo must be 0-1048575"),
    *[(AF_INET, ("127.0.0.1", port), TypeError, "cannot be interpreted as an integer") for port in ("1", 1.0, None)],
    *[(AF_INET6, ("::1", 1, flow), TypeError, "cannot be interpreted as an integer") for flow in ("1", 1.5, None)],
    *[(AF_INET6, ("::1", 1, 0, scope), TypeError, "integer") for scope in ("1", 1.5, None)],
    *[(AF_INET, (host, 1), TypeError, f"{HOST}{type(host).__name__}") for host in (None, 5, memoryview(b"x"))],
    (AF_INET, ("127.0.0.1\0", 1), TypeError, "host name must not contain null character"),
    (AF_INET, (b"a\0b", 1), TypeError, "host name must not contain null character"),
    (AF_INET, ("\udcff", 1), TypeError, "encoding of hostname failed"),
    (AF_INET6, ("<broadcast>", 1), OSError, "address family mismatched"),
    (AF_INET, ("::1", 1), socket.gaierror, ""),
    (AF_INET6, ("127.0.0.1", 1), socket.gaierror, ""),
    (AF_INET, ("1.2.3.4.5", 1), socket.gaierror, ""),
    (AF_INET, ("a" * 300, 1), socket.gaierror, ""),
    (AF_UNIX, "x" * 108, OSError, "AF_UNIX path too long"),
    (AF_UNIX, b"\0" + b"x" * 108, OSError, "AF_UNIX path too long"),
    *[
        (AF_UNIX, bad, TypeError, f"a bytes-like object is required, not '{type(bad).__name__}'")
        for bad in (None, 5, ("/run/x",))
    ],
]


@pytest.mark.parametrize(("family", "address", "error", "text"), REFUSED)
def test_refused_as_the_standard_library_refuses(family, address, error, text):
    with pytest.raises(error) as ours:
        encode(family, address, "bind")
    assert text in str(ours.value)
    with socket.socket(family, socket.SOCK_DGRAM) as sock, pytest.raises(error) as theirs:
        sock.bind(address)
    assert text in str(theirs.value)


@pytest.mark.parametrize("scope_id", [-1, 2**32, 2**70])
def test_scope_out_of_range(scope_id):
    # The standard library takes it modulo 2**32, and reaches another interface.
    with pytest.raises(OverflowError):
        encode(AF_INET6, ("fe80::1", 1, 0, scope_id))


DECODED = [
    (b"", None),
    (unix(b""), ""),
    (unix(b"/run/x"), "/run/x"),  # a path without its NUL
    (unix(b"/run/x\0rubbish"), "/run/x"),
    (unix(b"x" * 108), "x" * 108),
    (inet("10.0.0.1", 80)[:8] + b"rubbish!", ("10.0.0.1", 80)),
    (inet("10.0.0.1", 80)[:6], (AF_INET, inet("10.0.0.1", 80)[2:6])),
    (inet6("::1", 80)[:-1], (AF_INET6, inet6("::1", 80)[2:-1])),
    (FAMILY.pack(socket.AF_NETLINK) + b"\0" * 9, (socket.AF_NETLINK, bytes(9))),
    (FAMILY.pack(0), (0, b"")),
]


@pytest.mark.parametrize(("raw", "address"), DECODED)
def test_decode(raw, address):
    assert decode(raw) == address


def test_decode_longer_than_any_address():
    with pytest.raises(ValueError, match="sockaddr_storage"):
        decode(bytes(129))
    with pytest.raises(TypeError):
        decode(None)


# --- Hypothesis -----------------------------------------------------------------------

PORTS = st.integers(0, 65535)
UNIX_NAMES = st.binary(min_size=1, max_size=107).filter(lambda name: b"\0" not in name)


@given(st.ip_addresses(v=4).map(str), PORTS)
def test_round_trip_of_any_inet(host, port):
    assert encode(AF_INET, (host, port)) == inet(host, port)
    assert decode(inet(host, port)) == (host, port)


@given(st.ip_addresses(v=6), PORTS, st.integers(0, 0xFFFFF), st.integers(0, 2**32 - 1))
def test_round_trip_of_any_inet6(host, port, flowinfo, scope_id):
    raw = inet6(str(host), port, flowinfo, scope_id)
    assert encode(AF_INET6, (str(host), port, flowinfo, scope_id)) == raw
    text, *rest = decode(raw)
    assert rest == [port, flowinfo, scope_id]
    assert ipaddress.ip_address(text) == host


@given(UNIX_NAMES)
def test_round_trip_of_any_path(name):
    path = decode(encode(AF_UNIX, name))
    assert path.encode("utf-8", "surrogateescape") == name
    assert encode(AF_UNIX, path) == unix(name + b"\0")


@given(st.binary(max_size=107))
def test_round_trip_of_any_abstract_name(name):
    assert decode(encode(AF_UNIX, b"\0" + name)) == b"\0" + name


@given(
    st.binary(max_size=128)
    | st.builds(
        lambda family, rest: FAMILY.pack(family) + rest,
        st.sampled_from([AF_INET, AF_INET6, AF_UNIX]),
        st.binary(max_size=126),
    )
)
def test_rubbish_decodes_to_something_bounded(raw):
    address = decode(raw)
    assert address is None or isinstance(address, (str, bytes, tuple))
    assert AddressCache()(raw) == address
    if isinstance(address, (str, bytes)):
        assert len(address) <= len(raw)


# --- the cache --------------------------------------------------------------------------


def test_cache_returns_the_same_object():
    cache = AddressCache()
    first = cache(inet("10.0.0.1", 80))
    assert cache(inet("10.0.0.1", 80)) is first
    cache(inet("10.0.0.2", 80))
    assert cache(inet("10.0.0.1", 80)) == first == ("10.0.0.1", 80)
    assert len(cache) == 2


def test_cache_ignores_padding():
    cache = AddressCache()
    assert cache(inet("10.0.0.1", 80)[:8] + b"rubbish!") is cache(inet("10.0.0.1", 80))


@pytest.mark.parametrize("raw", [b"", unix(b"/run/x\0"), inet("10.0.0.1", 80)[:8], FAMILY.pack(99)])
def test_cache_leaves_other_forms_out(raw):
    cache = AddressCache()
    assert cache(raw) == decode(raw)
    assert len(cache) == 0


def test_cache_tells_every_part_of_an_address_apart():
    cache = AddressCache()
    raws = [
        inet6("::1", 1),
        inet6("::2", 1),
        inet6("1::1", 1),
        inet6("::1", 2),
        inet6("::1", 1, 3),
        inet6("::1", 1, 0, 4),
        inet6("::ffff:10.0.0.1", 1),
        inet("10.0.0.1", 1),
        inet("10.0.0.1", 256),
    ]
    for _ in range(2):
        assert [cache(raw) for raw in raws] == [decode(raw) for raw in raws]


@pytest.mark.parametrize("count", [300, 65_536, 200_000])
def test_cache_is_right_and_bounded_whatever_comes(count):
    rng = random.Random(count)
    raws = []
    for i in range(count):
        port = (i * 7919) & 0xFFFF
        if i % 3:
            raws.append(inet(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", port))
        else:
            raws.append(inet6(f"2001:db8::{i >> 16:x}:{i & 0xFFFF:x}", port))
    assert len(set(raws)) == count
    cache = AddressCache()
    for _ in range(2 if count < 100_000 else 1):
        rng.shuffle(raws)
        for raw in raws:
            assert cache(raw) == decode(raw)
        assert len(cache) <= cache.capacity <= 65_536
    assert len(cache) > count // 4 or cache.capacity == 65_536


def test_cache_grows_only_when_peers_evict_each_other():
    cache = AddressCache()
    at_first = cache.capacity
    for _ in range(1000):
        for i in range(10):
            cache(inet(f"10.0.0.{i}", 80))
    assert cache.capacity == at_first
    for _ in range(20):
        for i in range(4000):
            assert cache(inet(f"10.0.{i >> 8}.{i & 255}", 80))[1] == 80
    assert at_first < cache.capacity <= 65_536
    # Large enough to keep most of them apart.
    assert len(cache) > 2000
