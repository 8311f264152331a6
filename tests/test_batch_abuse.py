"""What a RecvBatch must survive: threads, fork, closing, garbage, and views that outlive everything."""

import ctypes

import pytest

from fastsock import RecvBatch

PyBUF_WRITABLE = 1
COLUMNS = ["offsets", "lengths", "truncated"]


# --- columns are for reading ------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_read_only(name):
    # The library reads its own memory by them: an offset of somebody else's making was a crash.
    batch = RecvBatch(4, 64)
    batch.load([b"abc"])
    column = getattr(batch, name)
    assert column.readonly
    with pytest.raises(TypeError, match="read-only"):
        column[0] = 1
    with pytest.raises(BufferError, match="read-only"):
        ctypes.pythonapi.PyObject_GetBuffer(
            ctypes.py_object(column.obj), ctypes.create_string_buffer(256), PyBUF_WRITABLE
        )
    assert bytes(batch[0]) == b"abc"
