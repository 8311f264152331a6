# The columns of a receive: one block of memory for all of them. Pure.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from fastsock._cmsg cimport Host, Metadata


# `count` items in each column. Those that `ancillary` lacks are NULL.
cdef struct Columns:
    Columns *older              # replaced blocks, which views may still show
    Py_ssize_t capacity
    Py_ssize_t count
    int ancillary               # bits of _cmsg.Ancillary
    int64_t *offsets
    int32_t *lengths
    uint8_t *truncated
    int32_t *messages           # with GRO: the kernel message that each datagram came in
    int64_t *timestamps_ns
    int64_t *hardware_timestamps_ns
    Host *locals
    int32_t *interface_indexes
    uint32_t *drop_counters
    uint8_t *ecn
    uint8_t *dscp
    uint8_t *ttls

cdef Columns *make_columns(Py_ssize_t capacity, int ancillary, Columns *older) except NULL
cdef size_t columns_size(Py_ssize_t capacity, int ancillary) noexcept
cdef void place_columns(Columns *made, char *at, Py_ssize_t capacity, int ancillary) noexcept
cdef void slice_columns(Columns *made, const Columns *whole, Py_ssize_t start, Py_ssize_t count) noexcept
cdef void free_columns(Columns *columns) noexcept
cdef void write_metadata(Columns *columns, Py_ssize_t start, Py_ssize_t end, const Metadata *found) noexcept nogil
cdef void read_metadata(const Columns *columns, Py_ssize_t index, Metadata *found) noexcept
cdef object not_recorded(str option)


cdef class ColumnBatch:
    cdef Columns *columns                   # what the last receive left
    cdef int ancillary                      # the bits of _cmsg.Ancillary that it recorded

    cdef object memory_owner(self)
    cdef Columns *recorded(self, int bit, str option) except NULL
