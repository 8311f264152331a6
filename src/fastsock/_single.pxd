# Everything that moves one datagram.

from fastsock._socket cimport BaseSocket


cdef class SingleSocket(BaseSocket):
    pass
