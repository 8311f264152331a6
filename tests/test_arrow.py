"""A batch in the Arrow C data interface: what pyarrow and polars make of it, and who frees it when."""

import ctypes
import gc
import ipaddress
import os
import socket
import struct
import weakref
from pathlib import Path
from socket import AF_INET6, AF_UNIX, IPPROTO_IP, SOL_SOCKET
from typing import Any

import pytest
from conftest import needs
from hypothesis import given
from hypothesis import strategies as st

import fastsock
from fastsock import RecvBatch
from fastsock import _constants as k

pa = pytest.importorskip("pyarrow")
np = pytest.importorskip("numpy")

SANITIZED = "FASTSOCK_SANITIZED" in os.environ
HERE = Path(__file__).parent
"""Where isolated scripts find the helpers of this file."""

WORDS = [b"", b"short", b"x" * 12, b"y" * 13, b"z" * 32]


class Batch(RecvBatch):
    """One that can be referred to weakly."""


def make(payloads: list[bytes], slot_size: int = 32, **options: Any) -> Batch:
    batch = Batch(max(1, len(payloads)), slot_size, **options)
    batch.load(payloads)
    return batch


def joined(segment_size: int) -> tuple[int, int, bytes]:
    return k.SOL_UDP, k.UDP_GRO, struct.pack("i", segment_size)


def stamped(ns: int) -> tuple[int, int, bytes]:
    return SOL_SOCKET, k.SO_TIMESTAMPNS, struct.pack("@ll", *divmod(ns, 10**9))


def table(batch: RecvBatch) -> Any:
    """The record batch, which Arrow's own checks found to be in order."""
    made = pa.record_batch(batch)
    made.validate(full=True)
    return made


def plain(made: Any) -> dict[str, list[Any]]:
    """Its columns as lists; times as ns, for which Python's own type is too coarse."""
    columns = zip(made.schema.names, made.columns, strict=True)
    return {name: (one.cast(pa.int64()) if "time" in name else one).to_pylist() for name, one in columns}


def address_of(view: memoryview) -> int:
    return np.asarray(view).ctypes.data if view.nbytes else 0


# --- the columns --------------------------------------------------------------------------------


def test_payloads_lengths_and_what_was_cut():
    batch = make([*WORDS, b"long" * 10])
    made = table(batch)
    assert made.to_pydict() == {
        "payload": batch.payloads(),
        "length": [0, 5, 12, 13, 32, 32],
        "truncated": [False] * 5 + [True],
    }
    assert made.schema == pa.schema(
        [
            pa.field("payload", pa.binary_view(), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
        ]
    )


def test_more_columns_than_the_first():
    # 20 bits of truncated, and a bitmap of times that ends in the middle of a byte.
    batch = RecvBatch(20, 4)
    batch.load([b"12345"[: 3 + i % 3] for i in range(20)], ancdata=[[stamped(i % 3)] for i in range(20)])
    made = table(batch)
    assert made["truncated"].to_pylist() == [i % 3 == 2 for i in range(20)] == batch.truncated.tolist()
    assert made["timestamp"].cast(pa.int64()).to_pylist() == [i % 3 or None for i in range(20)]
    assert made["timestamp"].null_count == 7


def test_everything_that_can_be_recorded():
    hardware = struct.pack("@6l", 0, 5, 0, 0, 0, 7)
    items = [
        [
            (SOL_SOCKET, k.SO_TIMESTAMPING, hardware if i else bytes(48)),
            (IPPROTO_IP, socket.IP_TOS, bytes([i << 2 | 1])),
            (IPPROTO_IP, socket.IP_TTL, struct.pack("i", 60 + i)),
            (SOL_SOCKET, k.SO_RXQ_OVFL, struct.pack("I", 2**32 - 1 - i)),
        ]
        + [(IPPROTO_IP, k.IP_PKTINFO, struct.pack("=I4s4s", 3 + i, bytes(4), bytes([10, 0, 0, i // 2])))] * (i != 4)
        for i in range(5)
    ]
    batch = RecvBatch(5, 32, addresses=True)
    batch.load([(word, ("127.0.0.1", 1000 + i)) for i, word in enumerate(WORDS)], ancdata=items)
    made = table(batch)
    assert plain(made) == {
        "payload": WORDS,
        "length": [0, 5, 12, 13, 32],
        "truncated": [False] * 5,
        "address": ["127.0.0.1"] * 5,
        "port": [1000, 1001, 1002, 1003, 1004],
        "timestamp": [None, 5, 5, 5, 5],
        "hardware_timestamp": [None, 7, 7, 7, 7],
        "ecn": [1] * 5,
        "dscp": [0, 1, 2, 3, 4],
        "ttl": [60, 61, 62, 63, 64],
        "local_address": ["10.0.0.0", "10.0.0.0", "10.0.0.1", "10.0.0.1", None],
        "interface_index": [3, 4, 5, 6, 0],
        "drop_counter": [2**32 - 1 - i for i in range(5)],
    }
    assert made["local_address"].to_pylist() == batch.local_addresses()
    types = {field.name: (str(field.type), field.nullable) for field in made.schema}
    assert types == {
        "payload": ("binary_view", False),
        "length": ("int32", False),
        "truncated": ("bool", False),
        "address": ("string", True),
        "port": ("uint16", True),
        "timestamp": ("timestamp[ns, tz=UTC]", True),
        "hardware_timestamp": ("timestamp[ns]", True),
        "ecn": ("uint8", False),
        "dscp": ("uint8", False),
        "ttl": ("uint8", False),
        "local_address": ("string", True),
        "interface_index": ("int32", False),
        "drop_counter": ("uint32", False),
    }
    # The same socket options, without the rest.
    batch.load([(b"x", ("127.0.0.1", 1))])
    assert table(batch).schema.names == ["payload", "length", "truncated", "address", "port"]


def test_an_empty_batch():
    for batch in (RecvBatch(), RecvBatch(4, addresses=True)):
        made = table(batch)
        assert made.num_rows == 0
        assert made.to_pylist() == []
    batch.load([], ancdata=[])
    assert table(batch).num_rows == 0


def test_the_schema_alone():
    batch = RecvBatch(4, addresses=True)
    batch.load([(b"x", ("127.0.0.1", 1))], ancdata=[[stamped(5)]])
    assert pa.schema(batch) == table(batch).schema
    assert pa.array(batch).type == pa.struct(pa.schema(batch))


def test_a_requested_schema_is_left_to_the_consumer():
    batch = make(WORDS)
    wanted = pa.schema([("other", pa.int64())]).__arrow_c_schema__()
    given = pa.RecordBatch._import_from_c_capsule(*batch.__arrow_c_array__(requested_schema=wanted))
    assert given.equals(table(batch))


# --- peers ---------------------------------------------------------------------------------------


def test_ipv6_peers():
    batch = RecvBatch(3, 32, addresses=True)
    batch.load([(b"a", ("2001:db8::1", 1)), (b"b", ("::1", 65535)), (b"c", ("fe80::2", 0, 0, 5))], AF_INET6)
    made = table(batch)
    assert made["address"].to_pylist() == [host for host, *_ in batch.addresses()] == ["2001:db8::1", "::1", "fe80::2"]
    assert made["port"].to_pylist() == [1, 65535, 0]
    assert (made["address"].null_count, made["address"].buffers()[0]) == (0, None)


def test_peers_of_other_families_are_null():
    batch = RecvBatch(3, 32, addresses=True)
    batch.load([(b"a", "/run/x"), (b"b", b"\0y"), (b"c", "")], AF_UNIX)
    made = table(batch)
    assert made["address"].to_pylist() == made["port"].to_pylist() == [None] * 3
    assert made["address"].null_count == made["port"].null_count == 3


def test_peers_of_joined_datagrams():
    batch = RecvBatch(2, 32, addresses=True)
    batch.load([(b"abcd", ("10.0.0.1", 1)), (b"efg", ("10.0.0.2", 2))], ancdata=[[joined(2)]] * 2)
    assert table(batch).select(["payload", "address", "port"]).to_pylist() == [
        {"payload": payload, "address": host, "port": port}
        for payload, host, port in [
            (b"ab", "10.0.0.1", 1),
            (b"cd", "10.0.0.1", 1),
            (b"ef", "10.0.0.2", 2),
            (b"g", "10.0.0.2", 2),
        ]
    ]


@given(st.lists(st.tuples(st.ip_addresses(v=4), st.integers(0, 65535)), max_size=20))
def test_any_peers(peers: list[tuple[ipaddress.IPv4Address, int]]):
    batch = RecvBatch(20, 8, addresses=True)
    batch.load([(b"", (str(host), port)) for host, port in peers])
    made = table(batch)
    pairs = list(zip(made["address"].to_pylist(), made["port"].to_pylist(), strict=True))
    assert pairs == batch.addresses() == [(str(host), port) for host, port in peers]


# --- no copy ----------------------------------------------------------------------------------------


def test_long_payloads_are_the_memory_itself():
    batch = make(WORDS)
    none, views, *data = table(batch)["payload"].buffers()
    assert none is None
    assert views.size == 16 * len(WORDS)
    (data,) = data
    start = address_of(batch.buffer)
    # From the first to the last of those that do not fit into their view.
    assert (data.address - start, data.size) == (3 * batch.stride, batch.stride + 32)


def test_short_payloads_need_no_memory_but_their_views():
    made = table(make([b"", b"x" * 12]))
    assert len(made["payload"].buffers()) == 2
    assert made["payload"].to_pylist() == [b"", b"x" * 12]


def test_columns_are_the_memory_itself():
    batch = RecvBatch(5, 32)
    items = [[stamped(7), (IPPROTO_IP, socket.IP_TTL, struct.pack("i", 9)), (IPPROTO_IP, socket.IP_TOS, b"\5")]] * 5
    batch.load(WORDS, ancdata=items)
    made = table(batch)
    shared = {
        "length": batch.lengths,
        "timestamp": batch.timestamps_ns,
        "ttl": batch.ttls,
        "ecn": batch.ecn,
        "dscp": batch.dscp,
    }
    for name, column in shared.items():
        validity, values = made[name].buffers()
        assert validity is None, name
        assert values.address == address_of(column), name


def test_times_that_are_unknown_are_null_and_the_others_still_the_memory_itself():
    batch = RecvBatch(3, 32)
    batch.load([b"a", b"b", b"c"], ancdata=[[stamped(7)], [stamped(0)], [stamped(-5)]])
    made = table(batch)["timestamp"]
    assert made.cast(pa.int64()).to_pylist() == [7, None, -5]
    assert made.buffers()[1].address == address_of(batch.timestamps_ns)


def test_the_next_receive_shows():
    batch = make([b"one" * 10, b"two" * 10])
    made = pa.record_batch(batch)
    kept = made["payload"].cast(pa.binary())
    batch.load([b"ONE" * 10])
    assert made["payload"].to_pylist() == [b"ONE" * 10, b"two" * 10]
    assert kept.to_pylist() == [b"one" * 10, b"two" * 10]


def test_beyond_what_one_buffer_can_hold():
    """An offset in a view is an int32: what lies beyond is in another buffer."""
    batch = RecvBatch(3, (1 << 30) + 1)  # no page of it is there before it is written
    payloads = [b"first" * 5, b"second" * 5, b"third" * 5]
    batch.load(payloads)
    made = table(batch)
    assert made["payload"].to_pylist() == payloads
    start = address_of(batch.buffer[:1])
    assert [(one.address - start, one.size) for one in made["payload"].buffers()[2:]] == [
        (0, 25),
        (1 << 30, batch.stride - (1 << 30) + 30),
        (2 << 30, 2 * batch.stride - (2 << 30) + 25),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(1, 40)), max_size=6),
    st.sampled_from([True, False]),
)
def test_any_payloads(messages, join):
    batch = RecvBatch(6, 48)
    payloads = [bytes(range(i, i + size)) for i, (size, _) in enumerate(messages)]
    batch.load(payloads, ancdata=[[joined(segment)] * join for _, segment in messages])
    made = table(batch)
    assert made["payload"].to_pylist() == batch.payloads()
    assert made["length"].to_pylist() == batch.lengths.tolist()
    assert made["truncated"].to_pylist() == batch.truncated.tolist()


@needs("timestamps")
def test_from_a_socket(family, closing):
    receiver = closing(fastsock.bind_udp(family.address(), timestamps=True, pktinfo=True))
    receiver.settimeout(10)
    sender = closing(fastsock.connect_udp(receiver.getsockname()))
    sender.send(b"hello, " * 5)
    batch = RecvBatch(8, addresses=True)
    receiver.recv_batch(batch)
    found = {name: value for name, (value,) in plain(table(batch)).items()}
    (datagram,) = batch
    assert (found["payload"], found["address"], found["port"]) == (b"hello, " * 5, *sender.getsockname()[:2])
    assert (found["local_address"], found["timestamp"]) == (family.host, datagram.timestamp_ns)
    assert found["interface_index"] == datagram.interface_index


# --- polars, which starts threads and keeps descriptors: in a process of its own ---------------------------

FRAME = """
import gc, sys, weakref
sys.path.insert(0, sys.argv[1])
try:
    import polars as pl
except ImportError:
    print("polars is not installed")
    sys.exit(77)
from test_arrow import *
"""


def test_polars(isolated):
    isolated(
        FRAME
        + """
batch = RecvBatch(5, 32, addresses=True)
batch.load([(word, ("10.0.0.1", i)) for i, word in enumerate(WORDS)], ancdata=[[stamped(i)] for i in range(5)])
frame = pl.DataFrame(batch)
assert frame.columns == table(batch).schema.names
assert frame["payload"].to_list() == WORDS
assert frame["truncated"].to_list() == [False] * 5
assert frame["address"].to_list() == ["10.0.0.1"] * 5
assert frame["port"].to_list() == list(range(5))
assert frame["timestamp"].dtype == pl.Datetime("ns", "UTC")
assert frame["timestamp"].to_physical().to_list() == [None, 1, 2, 3, 4]
assert pl.from_arrow(batch).struct.unnest().equals(frame)
assert frame.filter(pl.col("length") > 12)["payload"].to_list() == WORDS[3:]
""",
        HERE,
    )


def test_polars_shares_the_memory_and_keeps_it(isolated):
    isolated(
        FRAME
        + """
batch = make([b"a" * 20, b"b" * 30])
alive = weakref.ref(batch)
payloads = pl.DataFrame(batch)["payload"]
batch.load([b"A" * 20])
del batch
gc.collect()
assert payloads.to_list() == [b"A" * 20, b"b" * 30]
assert alive() is not None
del payloads
assert alive() is None
""",
        HERE,
    )


# --- who frees it, and when -------------------------------------------------------------------------------


def test_an_array_outlives_its_batch():
    batch = make(WORDS)
    alive = weakref.ref(batch)
    made = pa.record_batch(batch)
    del batch
    gc.collect()
    spare = [make([b"?" * 32] * 5) for _ in range(50)]
    assert made["payload"].to_pylist() == WORDS
    assert alive() is not None
    del made, spare
    assert alive() is None


@pytest.mark.parametrize("name", ["payload", "length", "timestamp"])
def test_a_slice_of_a_column_keeps_it(name):
    batch = Batch(5, 32)
    batch.load(WORDS, ancdata=[[stamped(1)]] * 5)
    alive = weakref.ref(batch)
    made = pa.record_batch(batch)
    part = made[name][3:]
    expected = plain(made)[name][3:]
    del batch, made
    gc.collect()
    assert alive() is not None
    assert plain(pa.record_batch([part], [name]))[name] == expected
    del part
    assert alive() is None


def test_capsules_that_nobody_takes():
    batch = make(WORDS)
    alive = weakref.ref(batch)
    capsules = [batch.__arrow_c_schema__(), *batch.__arrow_c_array__()]
    assert [repr(capsule).split('"')[1] for capsule in capsules] == ["arrow_schema", "arrow_schema", "arrow_array"]
    del batch, capsules[:2]
    assert alive() is not None
    del capsules
    assert alive() is None


class Structure(ctypes.Structure):
    def release(self) -> None:
        """Without the GIL, which a call through CFUNCTYPE lets go of."""
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.release_address)(ctypes.addressof(self))


class ArrowSchema(Structure):
    pass


class ArrowArray(Structure):
    pass


ArrowSchema._fields_ = [
    ("format", ctypes.c_char_p),
    ("name", ctypes.c_char_p),
    ("metadata", ctypes.c_char_p),
    ("flags", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowSchema))),
    ("dictionary", ctypes.c_void_p),
    ("release_address", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release_address", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]


def structures(batch: RecvBatch) -> tuple[Any, Any, Any]:
    """The schema, the array, and the capsules that hold them."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype = ctypes.c_void_p
    pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    capsules = batch.__arrow_c_array__()
    schema = ArrowSchema.from_address(pointer(capsules[0], b"arrow_schema"))
    return schema, ArrowArray.from_address(pointer(capsules[1], b"arrow_array")), capsules


def move(source: Any) -> Any:
    """As the interface has it: copied, and the source marked as released."""
    moved = type(source).from_buffer_copy(source)
    source.release_address = None
    return moved


def test_the_structures_are_as_specified():
    schema, array, capsules = structures(make(WORDS))
    assert (schema.format, schema.name, schema.metadata, schema.flags, schema.dictionary) == (b"+s", b"", None, 0, None)
    names = [schema.children[i].contents.name for i in range(schema.n_children)]
    assert names == [b"payload", b"length", b"truncated"]
    assert (array.length, array.null_count, array.offset, array.n_buffers, array.n_children) == (5, 0, 0, 1, 3)
    assert array.buffers[0] is None
    payload = array.children[0].contents
    # No validity, the views, one stretch of the arena, and its size.
    assert (payload.n_buffers, payload.buffers[0], payload.dictionary) == (4, None, None)
    assert ctypes.c_int64.from_address(payload.buffers[3]).value == table(make(WORDS))["payload"].buffers()[2].size
    views = ctypes.string_at(payload.buffers[1], 5 * 16)
    assert views[:16] == bytes(16)
    assert views[16:32] == struct.pack("=i12s", 5, b"short")
    assert views[48:64] == struct.pack("=i4sii", 13, b"yyyy", 0, 0)
    del capsules


def test_a_column_that_is_moved_out_lives_by_itself():
    batch = make(WORDS)
    alive = weakref.ref(batch)
    schema, array, capsules = structures(batch)
    field, column = move(schema.children[0].contents), move(array.children[0].contents)
    schema, array = move(schema), move(array)
    del batch, capsules
    schema.release()
    array.release()
    assert (schema.release_address, array.release_address) == (None, None)
    assert alive() is not None
    assert (field.name, field.format, column.length) == (b"payload", b"vz", 5)
    found = pa.Array._import_from_c(ctypes.addressof(column), ctypes.addressof(field))
    assert found.to_pylist() == WORDS
    del found
    assert alive() is None


def test_released_by_a_thread_that_python_does_not_know():
    batch = make(WORDS)
    alive = weakref.ref(batch)
    _, array, capsules = structures(batch)
    array = move(array)
    del batch, capsules
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    release = ctypes.c_void_p(array.release_address)
    assert libc.pthread_create(ctypes.byref(thread), None, release, ctypes.byref(array)) == 0
    assert libc.pthread_join(thread, None) == 0
    assert array.release_address is None
    assert alive() is None


@pytest.mark.parametrize("when", ["by a finalizer", "by a finalizer, without the GIL", "by exit(3)"])
def test_released_while_the_interpreter_goes_or_is_gone(isolated, when):
    isolated(
        """
import sys
sys.path.insert(0, sys.argv[1])
import ctypes, fastsock, os
from test_arrow import WORDS, make, move, structures
_, array, capsules = structures(make(WORDS))
array = move(array)
del capsules
when = sys.argv[2]
call = (ctypes.PYFUNCTYPE if when == "by a finalizer" else ctypes.CFUNCTYPE)(None, ctypes.c_void_p)(
    array.release_address
)
class Last:
    def __del__(self, call=call, array=array, address=ctypes.addressof(array), write=os.write):
        call(address)
        assert array.release_address is None
        write(1, b"released")
if when == "by exit(3)":
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(array))     # its memory must be there
    release = ctypes.c_void_p(array.release_address)
    assert ctypes.CDLL(None).__cxa_atexit(release, ctypes.byref(array), None) == 0
else:
    sys.kept_to_the_end = Last()
""",
        HERE,
        when,
    )


@pytest.mark.skipif(SANITIZED, reason="the sanitizer keeps freed memory in quarantine")
def test_making_and_dropping_leaks_nothing(isolated):
    isolated(
        """
import gc, os, sys
sys.path.insert(0, sys.argv[1])
import fastsock
from test_arrow import pa, stamped
batch = fastsock.RecvBatch(64, 2048, addresses=True)
batch.load([(b"x" * 2048, ("127.0.0.1", i)) for i in range(64)], ancdata=[[stamped(i)] for i in range(64)])
def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def work(times):
    for _ in range(times):
        batch.__arrow_c_array__()
        batch.__arrow_c_schema__()
        pa.record_batch(batch)
        pa.schema(batch)
work(1000)
gc.collect()
before = rss()
work(10000)
assert rss() - before < 3 << 20, rss() - before
""",
        HERE,
    )


def test_while_another_thread_receives(isolated):
    isolated("""
import threading
import fastsock
batch = fastsock.RecvBatch()
with fastsock.bind_udp(("127.0.0.1", 0)) as receiver, fastsock.connect_udp(receiver.getsockname()) as sender:
    receiver.settimeout(30)
    thread = threading.Thread(target=receiver.recv_batch, args=(batch,))
    thread.start()
    while thread.is_alive():
        try:
            batch.__arrow_c_array__()
        except RuntimeError as error:
            assert str(error) == "this RecvBatch is in use by another thread"
            break
    else:
        raise AssertionError("never in use")
    sender.send(b"x")
    thread.join()
    batch.__arrow_c_array__()
""")


def test_nothing_of_it_is_imported(isolated):
    isolated("""
import sys
import fastsock
fastsock.RecvBatch().__arrow_c_array__()
assert not {"pyarrow", "polars", "numpy"} & set(sys.modules)
""")
