# Everything that sends many datagrams.

from libc.stdint cimport int64_t, uint64_t
from fastsock._gather cimport Gather, Limits, Outgoing
from fastsock._receive cimport ReceiveSocket


# How far one call of the user's has come.
cdef struct Sending:
    Py_ssize_t entry            # the next entry of an Outgoing
    Py_ssize_t segments         # how many of its segments are gone, where it goes in single ones
    Py_ssize_t numbers          # that the kernel gave out, with MSG_ZEROCOPY: one for each message
    bint moved                  # whether it took any
    int64_t deadline_ns


cdef class SendSocket(ReceiveSocket):
    # The headers of send_many, kept between calls and never shared by two.
    cdef Gather gather

    # Segmentation: whether it is wanted, and the largest segment that was not refused.
    cdef readonly bint _gso_wanted
    cdef Py_ssize_t gso_segment_size

    # Zero-copy: the kernel's number of the next send.
    cdef uint64_t zerocopy_busy
    cdef uint64_t zerocopy_number

    cdef int limits(self, Limits *limits) except -1
    cdef int send_flags(self, object flags) except? -1
    cdef int own_zerocopy(self) except -1
    cdef Py_ssize_t send_cut(
        self, str caller, object payload, Py_ssize_t segment_size, object address, int flags, Py_ssize_t *numbers
    ) except -1
    cdef bint send_outgoing(
        self, Gather gather, const Outgoing *out, Py_ssize_t end, int flags, bint hold_gil, Sending *sending
    ) except -1
    cdef void advance(
        self, Gather gather, const Outgoing *out, Py_ssize_t start, Py_ssize_t count, Sending *sending
    ) noexcept
    cdef int count_refused(self, Sending *sending, int error) except -1
    cdef void remember_refusal(self, int refusal, Py_ssize_t segment_size) noexcept
    cdef Py_ssize_t gather_send(
        self, str caller, tuple payloads, object address, tuple addresses, int flags
    ) except -1
    cdef bint has_mapped_peer(self) except -1
    cdef Gather borrow_gather(self, Py_ssize_t vlen)
