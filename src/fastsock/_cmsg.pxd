# Ancillary data between the kernel's control buffers and Python's lists. Pure.

from fastsock cimport _linux as c

cdef size_t control_size(list ancdata) except? 0
cdef int encode_control(list ancdata, c.msghdr *msg) except -1
cdef list decode_control(c.msghdr *msg)
