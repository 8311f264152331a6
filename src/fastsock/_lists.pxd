# Lists of payloads, made from a batch that the socket owns. No system calls.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t
from fastsock._recvbatch cimport RecvBatch


# The payloads of one list, kept to be written again.
cdef struct Generation:
    PyObject **kept                         # by their position in the list
    uint8_t *steady                         # whether a position's size was the same again
    Py_ssize_t nbytes                       # the sum of their sizes


cdef class ListBatch(RecvBatch):
    cdef Generation generations[2]
    cdef Generation *young                  # the one that the present list is made from
    cdef bint lending                       # whether the kernel may write into payloads

    cdef int shape(self, Py_ssize_t bufsize, bint naming, int ancillary) except -1
    cdef void begin_list(self) noexcept
    cdef void lend(self, Py_ssize_t index) noexcept
    cdef void unlend(self, Py_ssize_t index) noexcept
    cdef bytes lent_payload(self, Py_ssize_t index, Py_ssize_t size, size_t *heap_bytes)
    cdef bytes payload(self, Py_ssize_t index, Py_ssize_t position, size_t *heap_bytes)
    cdef PyObject *new_reference(self, Py_ssize_t index, Py_ssize_t position, size_t *heap_bytes) except NULL
    cdef list payload_list(self, Py_ssize_t position, size_t *heap_bytes)
    cdef list payload_address_list(self, Py_ssize_t position, size_t *heap_bytes)
