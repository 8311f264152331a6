"""RecvBatch and Datagram: geometry, columns and lifetime. Filled by load, or from a socket."""

import copy
import ctypes
import gc
import hashlib
import pickle
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastsock
from fastsock import Datagram, RecvBatch

np = pytest.importorskip("numpy")

WORDS = [b"", b"a", b"two", b"x" * 32]


@pytest.fixture
def batch():
    made = RecvBatch(8, 32)
    assert made.load(WORDS) == 4
    return made


# --- geometry ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0,), ValueError, "vlen must be at least 1, not 0"),
        ((-1,), ValueError, "vlen must be at least 1, not -1"),
        ((1, 0), ValueError, "slot_size must be at least 1, not 0"),
        ((1, -5), ValueError, "slot_size must be at least 1, not -5"),
        ((2**31,), MemoryError, "2147483648 slots of 2048 bytes"),
        ((1, 2**31), MemoryError, "1 slots of 2147483648 bytes"),
        ((2**62, 2**62), MemoryError, "slots of"),
        ((2**31 - 1, 2**30), MemoryError, "slots of"),
        ((2**63,), OverflowError, "."),
        (("8",), TypeError, "."),
        ((1.5,), TypeError, "."),
        ((None,), TypeError, "."),
        ((1, 1, True), TypeError, "."),
    ],
)
def test_bad_geometry(arguments, error, text):
    with pytest.raises(error, match=text):
        RecvBatch(*arguments)


def test_slots_that_fit_in_no_memory():
    # Small enough to be asked of malloc; address space is not memory, so it may be given.
    with pytest.raises(MemoryError):
        RecvBatch(2**15, 2**31 - 65)


@pytest.mark.parametrize("slot_size", [1, 63, 64, 65, 2048, 4096, 8192, 65535])
def test_slots_are_aligned_and_apart(slot_size):
    batch = RecvBatch(3, slot_size)
    assert (batch.vlen, batch.slot_size) == (3, slot_size)
    assert slot_size <= batch.stride
    assert batch.stride % 64 == 0
    assert batch.stride <= 4096 or batch.stride % 4096  # not all in one set of the caches
    assert batch.buffer.nbytes == 3 * batch.stride
    full = [bytes([i]) * slot_size for i in (1, 2, 3)]
    batch.load(full)
    assert batch.payloads() == full


@pytest.mark.parametrize("name", ["vlen", "slot_size", "stride", "buffer", "offsets", "lengths", "truncated", "nbytes"])
def test_attributes_are_read_only(batch, name):
    with pytest.raises(AttributeError):
        setattr(batch, name, 1)


def test_final():
    with pytest.raises(TypeError):
        type("Sub", (Datagram,), {})


# --- load ---------------------------------------------------------------------------------


def test_load_replaces(batch):
    assert batch.load([b"new"]) == len(batch) == 1
    assert batch.payloads() == [b"new"]
    assert batch.load(iter([])) == len(batch) == 0


def test_load_cuts_and_marks():
    batch = RecvBatch(3, 4)
    batch.load([b"123", b"1234", b"12345"])
    assert batch.payloads() == [b"123", b"1234", b"1234"]
    assert batch.truncated.tolist() == [False, False, True]
    assert [d.truncated for d in batch] == [False, False, True]
    assert batch.nbytes == 11
    batch.load([b"1", b"2", b"3"])
    assert batch.truncated.tolist() == [False] * 3


def test_load_too_many(batch):
    with pytest.raises(ValueError, match="9 datagrams do not fit in a batch of vlen 8"):
        batch.load([b""] * 9)
    assert batch.payloads() == WORDS


@pytest.mark.parametrize("bad", [[b"x", "text"], [b"x", None], [b"x", 5]])
def test_load_wrong_type_leaves_a_batch_that_works(batch, bad):
    with pytest.raises(TypeError):
        batch.load(bad)
    assert batch.payloads() == WORDS
    assert batch.load([b"again"]) == 1


def test_load_datagrams_of_the_batch_itself(batch):
    batch.load(list(batch)[::-1])
    assert batch.payloads() == WORDS[::-1]


def test_load_addresses():
    batch = RecvBatch(4, 16, addresses=True)
    batch.load([(b"a", ("10.0.0.1", 1)), (b"b", ("10.0.0.2", 2))])
    assert batch.addresses() == [d.address for d in batch] == [("10.0.0.1", 1), ("10.0.0.2", 2)]
    batch.load([(b"a", ("::1", 1))], socket.AF_INET6)
    assert batch[0].address == ("::1", 1, 0, 0)
    batch.load([(b"a", "/run/x"), (b"b", b"\0y"), (b"c", "")], family=socket.AF_UNIX)
    assert batch.addresses() == ["/run/x", b"\0y", ""]


def test_receive_after_a_load_that_failed(udp_pair):
    # Headers that a load has written must not limit what the next receive may write.
    batch = RecvBatch(4, 16, addresses=True)
    with pytest.raises(TypeError):
        batch.load([(b"a", ("10.0.0.1", 1)), 5])
    udp_pair.sender.send(b"x")
    udp_pair.receiver.recv_batch(batch)
    assert batch.addresses() == [udp_pair.sender.getsockname()]


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_columns_agree(payloads):
    batch = RecvBatch(8, 48)
    batch.load(payloads)
    kept = [payload[:48] for payload in payloads]
    assert batch.payloads() == [bytes(d) for d in batch] == kept
    assert batch.lengths.tolist() == [len(d) for d in batch] == [len(one) for one in kept]
    assert batch.nbytes == sum(map(len, kept))
    assert [bytes(batch.buffer[o : o + n]) for o, n in zip(batch.offsets, batch.lengths, strict=True)] == kept
    assert np.asarray(batch).shape == (len(payloads), 48)
    assert [row[:n].tobytes() for row, n in zip(np.asarray(batch), batch.lengths, strict=True)] == kept


# --- as a sequence ----------------------------------------------------------------------------


def test_sequence(batch):
    assert len(batch) == 4
    assert [bytes(d) for d in batch] == [bytes(batch[i]) for i in range(4)] == WORDS
    assert [bytes(batch[i]) for i in (-4, -3, -2, -1)] == WORDS
    assert [bytes(d) for d in batch[1:3]] == WORDS[1:3]
    assert [bytes(d) for d in batch[::-1]] == WORDS[::-1]
    assert [bytes(d) for d in batch[-100:100:2]] == WORDS[::2]
    assert (batch[4:], [bytes(d) for d in reversed(batch)]) == ([], WORDS[::-1])
    assert batch[np.int64(2)].payload == b"two"


@pytest.mark.parametrize("index", [4, -5, 7, 2**31, 2**62, -(2**62)])
def test_index_out_of_range(batch, index):
    with pytest.raises(IndexError):
        batch[index]


@pytest.mark.parametrize("index", ["0", 0.0, None, (0, 1)])
def test_index_of_wrong_type(batch, index):
    with pytest.raises(TypeError):
        batch[index]


def test_not_assignable(batch):
    with pytest.raises(TypeError):
        batch[0] = b"x"
    with pytest.raises(TypeError):
        del batch[0]


def test_empty_batch():
    batch = RecvBatch(4, 32, addresses=True)
    assert not batch
    assert list(batch) == batch.payloads() == batch.addresses() == []
    assert batch.nbytes == 0
    assert [len(column) for column in (batch.offsets, batch.lengths, batch.truncated)] == [0, 0, 0]
    assert np.asarray(batch).shape == (0, 32)
    for index in (0, -1):
        with pytest.raises(IndexError):
            batch[index]


def test_iteration_ends_where_the_batch_then_ends(batch):
    found = []
    for d in batch:
        found.append(bytes(d))
        batch.load([b"only"])
    assert found == [b""]


def test_repr(batch):
    assert repr(batch) == "<fastsock.RecvBatch of 4 datagrams, vlen=8, slot_size=32>"
    assert repr(RecvBatch(addresses=True)).endswith("vlen=64, slot_size=2048, addresses=True>")


# --- columns and the buffer protocol --------------------------------------------------------


def test_column_types(batch):
    for column, code, itemsize, values in (
        (batch.offsets, "q", 8, [i * batch.stride for i in range(4)]),
        (batch.lengths, "i", 4, [0, 1, 3, 32]),
        (batch.truncated, "?", 1, [False] * 4),
    ):
        assert isinstance(column, memoryview)
        assert (column.format, column.itemsize, column.ndim, column.shape) == (code, itemsize, 1, (4,))
        assert column.tolist() == values
        assert np.asarray(column).dtype == np.dtype(code)
    assert (batch.buffer.format, batch.buffer.shape) == ("B", (8 * batch.stride,))
    assert not batch.buffer.readonly


def test_numpy_shares_the_memory(batch):
    array = np.asarray(batch)
    assert (array.shape, array.dtype, array.strides) == ((4, 32), np.uint8, (batch.stride, 1))
    assert bytes(array[2, :3]) == b"two"
    array[2, 0] = ord("T")
    assert bytes(batch[2]) == b"Two"
    assert np.shares_memory(array, np.asarray(batch.buffer))
    batch.buffer[2 * batch.stride + 1] = ord("W")
    assert bytes(array[2, :3]) == b"TWo"


def test_memoryview_of_a_batch(batch):
    view = memoryview(batch)
    assert (view.ndim, view.shape, view.strides, view.format) == (2, (4, 32), (batch.stride, 1), "B")
    assert not view.contiguous
    assert view.nbytes == 128
    assert bytes(view)[64:67] == b"two"


PyBUF_SIMPLE, PyBUF_WRITABLE, PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES = 0, 1, 4, 8, 24


@pytest.mark.parametrize("flags", [PyBUF_SIMPLE, PyBUF_WRITABLE, PyBUF_ND, PyBUF_FORMAT | PyBUF_ND])
def test_request_that_cannot_say_gaps_is_refused(batch, flags):
    view = ctypes.create_string_buffer(256)
    with pytest.raises(BufferError, match="buffer, offsets and lengths"):
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(batch), view, flags)


def test_plain_bytes_of_a_batch_are_refused(batch):
    with pytest.raises(BufferError, match="two-dimensional"):
        hashlib.sha256(batch)


@pytest.mark.parametrize("order", [32, 64, 128], ids=["C", "F", "any"])
def test_contiguous_request_is_not_answered_with_gaps(batch, order):
    # pyarrow.py_buffer asks like this, and would read the gaps as if they were datagrams.
    view = ctypes.create_string_buffer(256)
    with pytest.raises(BufferError):
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(batch), view, order | PyBUF_STRIDES)


# --- datagrams -----------------------------------------------------------------------------------


def test_datagram(batch):
    d = batch[2]
    assert isinstance(d, Datagram)
    assert (len(d), bytes(d), d.truncated) == (3, b"two", False)
    assert isinstance(d.payload, memoryview)
    assert (d.payload.nbytes, d.payload.format, d.payload.contiguous) == (3, "B", True)
    assert d.payload == memoryview(d) == b"two"
    assert b"".join([d, d]) == b"twotwo"
    assert not d.payload.readonly
    assert repr(d) == "<fastsock.Datagram of 3 bytes>"
    assert batch[0].payload.nbytes == 0 == len(bytes(batch[0]))
    assert np.asarray(batch[0]).shape == (0,)


def test_datagram_without_addresses(batch):
    with pytest.raises(ValueError, match="addresses=True"):
        _ = batch[0].address
    with pytest.raises(ValueError, match="addresses=True"):
        batch.addresses()


@pytest.mark.parametrize("make", ["fastsock.Datagram()", "fastsock.Datagram.__new__(fastsock.Datagram)"])
def test_datagram_cannot_be_made(isolated, make):
    # In a process of its own: what can be made without a batch may crash in any of these.
    isolated(f"""
import fastsock
try:
    d = {make}
except TypeError:
    pass
else:
    assert len(d) == 0 and bytes(d) == b"" and d.payload.nbytes == 0
    assert repr(d)
    try:
        d.address
    except ValueError:
        pass
""")


def test_datagram_is_itself_only(batch):
    first = batch[1]
    assert first == first
    assert first != batch[2]
    assert len({first, batch[2]}) == 2
    with pytest.raises(AttributeError):
        first.truncated = True


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_neither_batch_nor_datagram_is_copied_or_pickled(batch, make):
    for thing in (batch, batch[1]):
        with pytest.raises(TypeError):
            make(thing)


# --- lifetime ------------------------------------------------------------------------------------------


def test_views_keep_the_memory(batch):
    views = [np.asarray(batch), batch.buffer, batch[2].payload, batch[2], memoryview(batch)]
    column = batch.lengths
    del batch
    gc.collect()
    spare = [RecvBatch(8, 32) for _ in range(50)]
    for other in spare:
        other.load([b"?" * 32] * 8)
    assert bytes(views[0][2, :3]) == b"two"
    assert bytes(views[1][views[0].strides[0] * 2 :][:3]) == b"two"
    assert bytes(views[2]) == bytes(views[3]) == b"two"
    assert column.tolist() == [0, 1, 3, 32]


def test_views_show_the_next_receive(udp_pair):
    batch = RecvBatch(4, 16, addresses=True)
    udp_pair.sender.send_many([b"one", b"two", b"three"])
    assert udp_pair.receiver.recv_batch(batch) == 3
    array, lengths, payload, d = np.asarray(batch), batch.lengths, batch[0].payload, batch[0]
    udp_pair.sender.send(b"NEXT")
    assert udp_pair.receiver.recv_batch(batch) == 1
    assert (array.shape, len(lengths)) == ((3, 16), 3)
    assert (bytes(array[0, :4]), bytes(array[1, :3])) == (b"NEXT", b"two")
    assert lengths[0] == 4
    assert (bytes(payload), len(d), bytes(d)) == (b"NEX", 3, b"NEX")
    assert d.address == udp_pair.sender.getsockname()
    assert np.asarray(batch).shape == (1, 16)


def test_release_in_any_order(batch):
    views = [memoryview(batch) for _ in range(5)]
    batch.load([b"x"])
    views.append(memoryview(batch))
    for view in views[::2] + views[1::2]:
        view.release()
    assert np.asarray(batch).shape == (1, 32)


def test_making_and_dropping_leaks_nothing(isolated):
    isolated("""
import gc, resource, fastsock
def work(times):
    for _ in range(times):
        batch = fastsock.RecvBatch(64, 2048, addresses=True)
        batch.load([(b"x" * 2048, ("127.0.0.1", i)) for i in range(64)])
        views = [memoryview(batch), batch.buffer, batch.offsets, [d.payload for d in batch], batch.addresses()]
        repr(batch[0])
        try:
            fastsock.RecvBatch(2**15, 2**31 - 65)
        except MemoryError:
            pass
work(100)
gc.collect()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(600)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 20_000, f"{grown} KiB more"
""")


# --- what must not be seen ----------------------------------------------------------------


class Peeking:
    """Flags that look at the batch they are passed beside."""

    def __init__(self, batch):
        self.batch = batch
        self.seen = None

    def __index__(self):
        self.seen = len(self.batch), [bytes(d) for d in self.batch]
        return 0


def test_joined_rows_are_never_read_as_slots(closing):
    joined = closing(fastsock.bind_udp(("127.0.0.1", 0), gro=True))
    if not joined.gro:
        pytest.skip("no UDP GRO here")
    joined.settimeout(10)
    plain = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    plain.settimeout(0)
    sender = closing(fastsock.connect_udp(joined.getsockname()))
    batch = RecvBatch(2, 65535, addresses=True)
    for flags in ("bad", Peeking(batch)):
        sender.send_segments(b"x" * 6400, 100)
        assert joined.recv_batch(batch) == 64
        with pytest.raises((TypeError, BlockingIOError)):
            plain.recv_batch(batch, flags)
        # Refused before anything was touched, or empty: never 64 slots of a batch of two.
        assert len(batch.addresses()) == len(batch) == (64 if flags == "bad" else 0)
        if flags != "bad":
            assert flags.seen[0] == len(flags.seen[1]) == 64
            assert np.asarray(batch).shape == (0, 65535)
