# What every batch's memory is made of: the geometry of slots, and views that keep their
# owner alive. Imports nothing of fastsock.

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, PyBUF_C_CONTIGUOUS, PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE,
)
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport INT32_MAX

cdef enum:
    SLOT_ALIGNMENT = 64     # a cache line, so that every slot is aligned for any header
    PAGE = 4096             # what the sets of a first-level cache span, nearly everywhere


cdef Py_ssize_t slot_stride(Py_ssize_t vlen, Py_ssize_t slot_size) except -1:
    """Check a batch's geometry; returns the bytes from one slot to the next."""
    if vlen < 1:
        raise ValueError(f"vlen must be at least 1, not {vlen}")
    if slot_size < 1:
        raise ValueError(f"slot_size must be at least 1, not {slot_size}")
    # Lengths are int32, and no address space holds more than 2**46 bytes of slots.
    if slot_size > INT32_MAX - SLOT_ALIGNMENT or vlen > INT32_MAX:
        raise MemoryError(f"{vlen} slots of {slot_size} bytes")
    cdef Py_ssize_t stride = (slot_size + SLOT_ALIGNMENT - 1) & ~<Py_ssize_t>(SLOT_ALIGNMENT - 1)
    if stride > PAGE and stride % PAGE == 0:
        # Slots a multiple of a page apart share one set of the caches: 64 heads evict each
        # other, which costs 35 ns a datagram at 65536.
        stride += SLOT_ALIGNMENT
    if vlen > (<Py_ssize_t>1 << 46) // stride:
        raise MemoryError(f"{vlen} slots of {slot_size} bytes")
    return stride


@cython.final
@cython.no_gc_clear     # views may be read while a garbage cycle is taken apart
cdef class Column:
    """A one-dimensional view of an owner's memory, for memoryview to stand on."""

    cdef object owner
    cdef void *start
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]
    cdef char *format
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.readonly and flags & PyBUF_WRITABLE:
            raise BufferError("the columns of a batch are read-only")
        view.buf = self.start
        view.obj = self
        view.len = self.shape[0] * self.strides[0]
        view.itemsize = self.strides[0]
        view.readonly = self.readonly
        view.ndim = 1
        view.format = self.format if flags & PyBUF_FORMAT else NULL
        view.shape = self.shape if flags & PyBUF_ND else NULL
        view.strides = self.strides if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        view.suboffsets = NULL
        view.internal = NULL


cdef object memory(object owner, void *start, Py_ssize_t size, Py_ssize_t itemsize, char *format):
    """A writable memoryview of `size` items at `start`, which `owner` keeps alive."""
    return PyMemoryView_FromObject(make_column(owner, start, size, itemsize, format, False))


cdef object readonly_memory(object owner, void *start, Py_ssize_t size, Py_ssize_t itemsize, char *format):
    """The same, for memory that the library itself relies on: it is not for users to write."""
    return PyMemoryView_FromObject(make_column(owner, start, size, itemsize, format, True))


cdef Column make_column(
    object owner, void *start, Py_ssize_t size, Py_ssize_t itemsize, char *format, bint readonly
):
    cdef Column column = Column.__new__(Column)
    column.owner = owner
    column.start = start
    column.shape[0] = size
    column.strides[0] = itemsize
    column.format = format
    column.readonly = readonly
    return column


@cython.final
@cython.no_gc_clear
cdef class Rows:
    """Slots as the rows of a two-dimensional view of bytes, for whatever takes buffers."""

    cdef object owner
    cdef char *start
    cdef Py_ssize_t shape[2]
    cdef Py_ssize_t strides[2]

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef bint gaps = self.strides[0] != self.shape[1] and self.shape[0] > 1
        if (flags & PyBUF_STRIDES) != PyBUF_STRIDES or flags & PyBUF_F_CONTIGUOUS & ~PyBUF_STRIDES or (
            gaps and flags & (PyBUF_C_CONTIGUOUS | PyBUF_ANY_CONTIGUOUS) & ~PyBUF_STRIDES
        ):
            raise BufferError("a batch is two-dimensional with gaps: use its buffer, offsets and lengths")
        view.buf = self.start
        view.obj = self
        view.len = self.shape[0] * self.shape[1]
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 2
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = b"B"
        view.shape = self.shape
        view.strides = self.strides
        view.suboffsets = NULL
        view.internal = NULL


cdef object rows(object owner, char *start, Py_ssize_t count, Py_ssize_t size, Py_ssize_t stride):
    """`count` rows of `size` bytes, `stride` apart, as an object with the buffer protocol."""
    cdef Rows made = Rows.__new__(Rows)
    made.owner = owner
    made.start = start
    made.shape[0] = count
    made.shape[1] = size
    made.strides[0] = stride
    made.strides[1] = 1
    return made
