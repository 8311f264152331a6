# What the kernel can do with UDP_SEGMENT.

cdef Py_ssize_t gso_segments() except -1
