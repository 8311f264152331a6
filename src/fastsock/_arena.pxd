# What every batch's memory is made of: the geometry of slots, and views that keep their
# owner alive. Imports nothing of fastsock.

cdef Py_ssize_t slot_stride(Py_ssize_t vlen, Py_ssize_t slot_size) except -1
cdef object memory(object owner, void *start, Py_ssize_t size, Py_ssize_t itemsize, char *format)
cdef object readonly_memory(object owner, void *start, Py_ssize_t size, Py_ssize_t itemsize, char *format)
cdef object rows(object owner, char *start, Py_ssize_t count, Py_ssize_t size, Py_ssize_t stride)
