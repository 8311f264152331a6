# Ancillary data between the kernel's control buffers and Python's lists, and what a batch
# records of it. Pure.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from fastsock cimport _linux as c

# What the kernel may tell of every datagram: the bits of BaseSocket.ancillary.
cdef enum Ancillary:
    GRO = 1
    TIMESTAMPS = 2
    HARDWARE_TIMESTAMPS = 4
    PKTINFO = 8
    TOS = 16
    TTL = 32
    DROP_COUNTER = 64


# An address without its port.
cdef struct Host:
    int family                              # 0 for none
    uint8_t address[16]


# What one message's control buffer says; 0 stands for what it does not say.
cdef struct Metadata:
    int64_t timestamp_ns
    int64_t hardware_timestamp_ns
    int32_t segment_size                    # of joined datagrams, but for the last of them
    int32_t interface_index
    uint32_t drop_counter
    uint8_t tos                             # the whole octet: DSCP, and ECN in the lowest two bits
    uint8_t ttl
    Host local


cdef size_t control_size(list ancdata) except? 0
cdef int encode_control(list ancdata, c.msghdr *msg) except -1
cdef list decode_control(c.msghdr *msg)

cdef size_t metadata_room() noexcept
cdef int ancillary_of(int level, int kind) noexcept
cdef void decode_metadata(c.msghdr *msg, Metadata *found) noexcept nogil
cdef size_t append_cmsg(char *control, size_t at, int level, int kind, const void *data, size_t size) noexcept nogil
