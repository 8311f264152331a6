# Records of a socket's error queue. Pure.

from fastsock cimport _linux as c

# A record's quoted datagram and its control buffer.
cdef enum:
    QUOTED_BYTES = 2048
    ERROR_CONTROL = 512

cdef object decode_error(c.msghdr *msg, const char *payload, size_t size)
