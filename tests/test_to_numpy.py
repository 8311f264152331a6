"""RecvBatch.to_numpy: datagrams of one size as an array, from memory."""

import gc
import struct
import weakref
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsock import RecvBatch
from fastsock._constants import SOL_UDP, UDP_GRO

np = pytest.importorskip("numpy")

POINT = np.dtype([("kind", "u1"), ("x", ">u2"), ("y", ">i4")])
POINTS = [(1, 2, -3), (4, 65535, 6), (7, 8, 9)]
PAYLOADS = [struct.pack(">BHi", *point) for point in POINTS]


class Batch(RecvBatch):
    """One that can be referred to weakly."""


def joined(messages: list[bytes], segment_size: int, slot_size: int = 64) -> RecvBatch:
    """A batch of messages that UDP GRO joined."""
    batch = RecvBatch(len(messages), slot_size)
    batch.load(messages, ancdata=[[(SOL_UDP, UDP_GRO, struct.pack("i", segment_size))]] * len(messages))
    return batch


@pytest.fixture
def batch() -> RecvBatch:
    made = RecvBatch(8, 32)
    made.load(PAYLOADS)
    return made


def memory(batch: RecvBatch) -> Any:
    return np.asarray(batch.buffer)


# --- the memory is shared ----------------------------------------------------------------------


@pytest.mark.parametrize("copy", [None, False])
def test_slots_are_an_array_of_the_memory_itself(batch, copy):
    points = batch.to_numpy(POINT, copy=copy)
    assert (points.shape, points.dtype, points.strides) == ((3,), POINT, (batch.stride,))
    assert points.tolist() == POINTS
    assert np.shares_memory(points, memory(batch))
    points["x"][1] = 5
    assert bytes(batch[1]) == struct.pack(">BHi", 4, 5, 6)
    batch.buffer[2 * batch.stride] = 99
    assert points["kind"].tolist() == [1, 4, 99]


def test_rows_of_bytes(batch):
    rows = batch.to_numpy()
    assert (rows.shape, rows.dtype, rows.strides) == ((3, 7), np.uint8, (batch.stride, 1))
    assert [row.tobytes() for row in rows] == PAYLOADS
    assert np.shares_memory(rows, memory(batch))


@pytest.mark.parametrize("copy", [None, False])
def test_joined_datagrams_of_one_message_lie_side_by_side(copy):
    batch = joined([b"".join(PAYLOADS)], 7)
    points = batch.to_numpy(POINT, copy=copy)
    assert points.tolist() == POINTS
    assert points.strides == (7,)
    assert np.shares_memory(points, memory(batch))


def test_messages_with_one_datagram_each_are_not_copied():
    batch = joined(PAYLOADS, 7)
    assert batch.to_numpy(POINT, copy=False).tolist() == POINTS


@pytest.mark.parametrize(
    "dtype",
    [
        "u8", ">u8", "<i2,<i2,<i4", "M8[ns]", "S8", "V8", "2u4", "(2,2)<u2", "?,V7",
        {"names": ["last"], "formats": ["u1"], "offsets": [7], "itemsize": 8},
    ],
    ids=str,
)  # fmt: skip
def test_any_type_of_that_size(dtype):
    payloads = [struct.pack("<HHI", i % 2, i, 1 << i) for i in range(5)]
    batch = RecvBatch(5, 33)
    batch.load(payloads)
    array, expected = batch.to_numpy(dtype), np.frombuffer(b"".join(payloads), dtype)
    assert (array.dtype, array.shape, array.tolist()) == (expected.dtype, expected.shape, expected.tolist())
    assert np.shares_memory(array, memory(batch))


def test_one_datagram_and_none(batch):
    batch.load(PAYLOADS[:1])
    assert batch.to_numpy(POINT, copy=False).tolist() == POINTS[:1]
    batch.load([])
    assert (batch.to_numpy().shape, batch.to_numpy().dtype) == ((0, 0), np.uint8)
    for copy in (None, True, False):
        assert (batch.to_numpy(POINT, copy=copy).shape, batch.to_numpy(POINT, copy=copy).dtype) == ((0,), POINT)
    assert RecvBatch(4).to_numpy("2u4").shape == (0, 2)


def test_empty_datagrams(batch):
    batch.load([b"", b""])
    assert batch.to_numpy().shape == (2, 0)
    assert batch.to_numpy(copy=True).shape == (2, 0)


# --- or copied -------------------------------------------------------------------------------------


def test_joined_datagrams_of_several_messages_are_copied():
    batch = joined([b"".join(PAYLOADS), PAYLOADS[2], b"".join(PAYLOADS[:2])], 7)
    points = batch.to_numpy(POINT)
    assert points.tolist() == [*POINTS, POINTS[2], *POINTS[:2]]
    assert not np.shares_memory(points, memory(batch))
    assert points.flags.writeable
    assert points.flags.contiguous
    assert batch.to_numpy().shape == (6, 7)
    with pytest.raises(ValueError, match="do not lie at one distance from each other, and copy=False"):
        batch.to_numpy(POINT, copy=False)
    assert batch.load([b"x"]) == 1


@pytest.mark.parametrize("dtype", [POINT, None])
def test_a_copy_stays(batch, dtype):
    array = batch.to_numpy(dtype, copy=True)
    assert not np.shares_memory(array, memory(batch))
    expected = array.tolist()
    batch.load([b"?" * 32] * 8)
    assert array.tolist() == expected == (POINTS if dtype else [list(payload) for payload in PAYLOADS])


def test_without_a_copy_the_next_receive_shows(batch):
    points = batch.to_numpy(POINT)
    batch.load([struct.pack(">BHi", 10, 11, 12)])
    assert points.tolist() == [(10, 11, 12), *POINTS[1:]]


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payloads", "dtype", "text"),
    [
        ([b"12345678", b"1234567", b"123"], "u8", r"datagram 1 has 7 bytes, and an item of dtype\('uint64'\) 8"),
        ([b"123456789"], "u8", "datagram 0 has 9 bytes"),
        ([b"123", b"123", b""], None, "datagram 2 has 0 bytes, and an item of .* 3"),
        ([b"", b"1"], None, "datagram 1 has 1 bytes"),
        ([b"1"], "S", "datagram 0 has 1 bytes, and an item of .* 0"),
        ([b"1"], [], "datagram 0 has 1 bytes, and an item of .* 0"),
    ],
)
@pytest.mark.parametrize("copy", [None, True, False])
def test_another_size(payloads, dtype, text, copy):
    batch = RecvBatch(4, 32)
    batch.load(payloads)
    with pytest.raises(ValueError, match=text):
        batch.to_numpy(dtype, copy=copy)
    assert batch.payloads() == payloads


def test_a_last_segment_that_is_shorter():
    with pytest.raises(ValueError, match="datagram 2 has 2 bytes"):
        joined([b"abcdefgh"], 3).to_numpy("S3")


def test_what_was_cut_has_the_size_that_was_kept():
    batch = RecvBatch(2, 4)
    batch.load([b"1234", b"12345678"])
    assert batch.to_numpy("S4").tolist() == [b"1234", b"1234"]
    assert batch.truncated.tolist() == [False, True]
    with pytest.raises(ValueError, match="datagram 0 has 4 bytes"):
        batch.to_numpy("S8")


@pytest.mark.parametrize(
    "dtype", [object, [("a", object)], ("O", (1,)), [("a", [("b", "O", (1,))])], "StringDType"], ids=str
)
@pytest.mark.parametrize("copy", [None, True])
def test_references_are_never_made_of_what_was_received(dtype, copy):
    if dtype == "StringDType":
        dtype = pytest.importorskip("numpy", minversion="2").dtypes.StringDType()
    batch = RecvBatch(1, 64)
    batch.load([b"\x41" * np.dtype(dtype).itemsize])
    with pytest.raises(ValueError, match="holds references"):
        batch.to_numpy(dtype, copy=copy)


@pytest.mark.parametrize("dtype", ["nonsense", 5, object()])
def test_what_is_no_type(batch, dtype):
    with pytest.raises(TypeError):
        batch.to_numpy(dtype)
    assert batch.payloads() == PAYLOADS


def test_arguments(batch):
    with pytest.raises(TypeError):
        batch.to_numpy(POINT, True)
    with pytest.raises(TypeError):
        batch.to_numpy(POINT, order="C")


def test_without_numpy(isolated):
    isolated("""
import sys
import fastsock
assert "numpy" not in sys.modules
class Absent:
    def find_spec(self, name, *_):
        if name == "numpy":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
batch = fastsock.RecvBatch()
batch.load([b"x"])
try:
    batch.to_numpy()
except ImportError:
    assert batch.load([b"y"]) == 1
else:
    raise AssertionError("no ImportError")
""")


# --- any payloads --------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=3), max_size=6), st.sampled_from([None, True, False]))
def test_rows_or_the_first_that_differs(payloads, copy):
    batch = RecvBatch(6, 3)
    batch.load(payloads)
    differing = [i for i, payload in enumerate(payloads) if len(payload) != len(payloads[0])]
    if differing:
        with pytest.raises(ValueError, match=f"datagram {differing[0]} has {len(payloads[differing[0]])} bytes"):
            batch.to_numpy(copy=copy)
    else:
        assert [row.tobytes() for row in batch.to_numpy(copy=copy)] == payloads


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([None, True]))
def test_any_joined_messages(counts, copy):
    numbers = iter(range(100))
    messages = [b"".join(struct.pack("<I", next(numbers)) for _ in range(count)) for count in counts]
    assert joined(messages, 4).to_numpy("<u4", copy=copy).tolist() == list(range(sum(counts)))


# --- lifetime ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [POINT, None, "7u1", "S7"], ids=str)
def test_an_array_keeps_the_memory_and_lets_it_go(dtype):
    batch = Batch(8, 32)
    batch.load(PAYLOADS)
    alive = weakref.ref(batch)
    array = batch.to_numpy(dtype)
    expected = array.tolist()
    part = array[1:]
    del batch, array
    gc.collect()
    spare = [RecvBatch(8, 32) for _ in range(50)]
    for other in spare:
        other.load([b"?" * 32] * 8)
    assert alive() is not None
    assert part.tolist() == expected[1:]
    del part
    assert alive() is None


def test_a_copy_keeps_nothing():
    batch = Batch(8, 32)
    batch.load(PAYLOADS)
    alive = weakref.ref(batch)
    array = batch.to_numpy(POINT, copy=True)
    del batch
    assert alive() is None
    assert array.tolist() == POINTS


def test_from_a_socket(udp_pair):
    batch = RecvBatch(8, 2048)
    assert udp_pair.sender.send_many(PAYLOADS) == 3
    count = 0
    found = []
    while count < 3:
        count += udp_pair.receiver.recv_batch(batch)
        found += batch.to_numpy(POINT).tolist()
    assert found == POINTS


def test_while_another_thread_receives(isolated):
    isolated("""
import threading
import fastsock, numpy
batch = fastsock.RecvBatch()
with fastsock.bind_udp(("127.0.0.1", 0)) as receiver, fastsock.connect_udp(receiver.getsockname()) as sender:
    receiver.settimeout(30)
    thread = threading.Thread(target=receiver.recv_batch, args=(batch,))
    thread.start()
    while thread.is_alive():
        try:
            batch.to_numpy()
        except RuntimeError as error:
            assert str(error) == "this RecvBatch is in use by another thread"
            break
    else:
        raise AssertionError("never in use")
    sender.send(b"x")
    thread.join()
    assert batch.to_numpy("S1").tolist() == [b"x"]
""")
