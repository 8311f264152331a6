# Lists of payloads. A ListBatch is a socket's own batch: what it receives is copied into
# bytes objects, and those that the user has dropped again are written again instead of
# being made anew: docs/design/malloc.md. No system calls.
# May import _linux, _arena, _cmsg, _columns, _datagrams and _recvbatch.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.list cimport PyList_New
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from fastsock cimport _linux as c
from fastsock._cmsg cimport GRO
from fastsock._columns cimport Columns
from fastsock._datagrams cimport new_bytes
from fastsock._recvbatch cimport GRO_SLOT_SIZE, RecvBatch

# On pointers, because a cast to object counts a reference up and down.
cdef extern from "Python.h":
    PyObject *PyTuple_New(Py_ssize_t size) except NULL
    void PyTuple_SET_ITEM(PyObject *tuple, Py_ssize_t index, PyObject *item)
    void PyObject_GC_UnTrack(PyObject *object)
    void PyList_SET_ITEM(PyObject *list, Py_ssize_t index, PyObject *item)
    Py_ssize_t bytes_size "PyBytes_GET_SIZE"(PyObject *bytes)
    char *bytes_start "PyBytes_AS_STRING"(PyObject *bytes)
    void c_incref "Py_INCREF"(PyObject *object)

cdef enum:
    KEPT_PAYLOADS = 4096    # positions of a list whose payloads are kept to be written again,
    KEPT_BYTES = 2 << 20    # and their sum; of both generations, twice as much at the most
    LEND_FROM = 256         # below it a copy is as fast


@cython.final
@cython.no_gc_clear
cdef class ListBatch(RecvBatch):
    """A batch with addresses and two iovecs a message: a payload that is lent, and the slot."""

    def __cinit__(self, Py_ssize_t vlen, Py_ssize_t slot_size, *, addresses):
        cdef Py_ssize_t i
        cdef Generation *generation
        cdef c.iovec *iov = <c.iovec *>calloc(<size_t>vlen, 2 * sizeof(c.iovec))
        if iov == NULL:
            raise MemoryError()
        for i in range(vlen):
            iov[2 * i + 1] = self.iov[i]
            self.msgvec[i].msg_hdr.msg_iov = &iov[2 * i]
            self.msgvec[i].msg_hdr.msg_iovlen = 2
        free(self.iov)
        self.iov = iov
        self.lending = True
        self.young = &self.generations[0]
        for i in range(2):
            generation = &self.generations[i]
            generation.kept = <PyObject **>calloc(KEPT_PAYLOADS, sizeof(PyObject *))
            generation.steady = <uint8_t *>calloc(KEPT_PAYLOADS, sizeof(uint8_t))
            if generation.kept == NULL or generation.steady == NULL:
                raise MemoryError()

    def __dealloc__(self):
        cdef Py_ssize_t g, i
        cdef PyObject **kept
        for g in range(2):
            kept = self.generations[g].kept
            if kept != NULL:
                for i in range(KEPT_PAYLOADS):
                    if kept[i] != NULL:
                        Py_DECREF(<object>kept[i])
            free(kept)
            free(self.generations[g].steady)

    cdef int shape(self, Py_ssize_t bufsize, bint naming, int ancillary) except -1:
        """Keep `bufsize` bytes of each datagram, with or without peers; split them where GRO is on.

        The batch is large enough. No other ancillary data is asked for: lists do not show it.
        """
        cdef Py_ssize_t i
        cdef Py_ssize_t iov_size = GRO_SLOT_SIZE if ancillary & GRO else bufsize
        self.keep_size = bufsize
        if (ancillary & GRO) != self.ancillary:
            self.attach(ancillary & GRO)
            self.lending = not ancillary & GRO
        elif iov_size == self.iov_size and naming == self.naming:
            return 0
        self.iov_size = iov_size
        for i in range(self.vlen):
            self.unlend(i)
            self.msgvec[i].msg_hdr.msg_name = &self.names[i] if naming else NULL
            self.msgvec[i].msg_hdr.msg_namelen = sizeof(c.sockaddr_storage) if naming else 0
        self.naming = naming
        return 0

    cdef void prepare(self) noexcept:
        cdef Py_ssize_t i
        if self.lending:
            for i in range(self.dirty):
                self.lend(i)
        RecvBatch.prepare(self)

    cdef void begin_list(self) noexcept:
        """Take the other generation where the last list is still held.

        It is in `payloads = sock.recv_many()` within a loop: the name lets the last list go
        only when the call has returned the next.
        """
        cdef Py_ssize_t i
        cdef PyObject *first = self.young.kept[0]
        if first != NULL and not c.fastsock_is_sole(first):
            self.young = &self.generations[1 if self.young == &self.generations[0] else 0]
            for i in range(self.vlen):
                self.unlend(i)
            self.dirty = self.vlen      # so that `prepare` lends what this one has kept

    # A message's first iovec is empty, or the payload kept at the slot's own position: then
    # nobody else holds that object, and nobody gets it before `unlend`.

    cdef void lend(self, Py_ssize_t index) noexcept:
        """Let the kernel write into the payload kept for this slot, if its size repeats."""
        cdef PyObject *old
        cdef Py_ssize_t size
        if index >= KEPT_PAYLOADS or not self.young.steady[index]:
            return
        old = self.young.kept[index]
        if old == NULL or not c.fastsock_is_sole(old):
            return
        size = PyBytes_GET_SIZE(<object>old)
        if LEND_FROM <= size <= self.iov_size:
            self.iov[2 * index].iov_base = PyBytes_AS_STRING(<object>old)
            self.iov[2 * index].iov_len = <size_t>size
            self.iov[2 * index + 1].iov_len = <size_t>(self.iov_size - size)

    cdef void unlend(self, Py_ssize_t index) noexcept:
        self.iov[2 * index].iov_len = 0
        self.iov[2 * index + 1].iov_len = <size_t>self.iov_size

    cdef bytes lent_payload(self, Py_ssize_t index, Py_ssize_t size, size_t *heap_bytes):
        """The payload of a slot that was lent: the object itself, or a copy from both iovecs."""
        cdef const char *head = <const char *>self.iov[2 * index].iov_base
        cdef Py_ssize_t lent = <Py_ssize_t>self.iov[2 * index].iov_len
        cdef bytes fresh
        self.unlend(index)
        if size == lent:
            c.fastsock_again(self.young.kept[index])
            return <bytes>self.young.kept[index]
        self.young.steady[index] = False
        if size < lent:
            return new_bytes(head, size, heap_bytes)
        fresh = new_bytes(NULL, size, heap_bytes)
        memcpy(PyBytes_AS_STRING(fresh), head, <size_t>lent)
        memcpy(PyBytes_AS_STRING(fresh) + lent, self.arena + self.columns.offsets[index], <size_t>(size - lent))
        return fresh

    cdef bytes payload(self, Py_ssize_t index, Py_ssize_t position, size_t *heap_bytes):
        """Payload `index`, for `position` of a list that may span several receives.

        What malloc gave for it is added to `heap_bytes`.
        """
        cdef Py_ssize_t size = self.columns.lengths[index]
        cdef const char *start = self.arena + self.columns.offsets[index]
        cdef PyObject *old
        cdef bytes fresh
        if self.lending and self.iov[2 * index].iov_len != 0:
            return self.lent_payload(index, size, heap_bytes)
        if position >= KEPT_PAYLOADS:
            return new_bytes(start, size, heap_bytes)
        if position < self.vlen:
            self.unlend(position)
        old = self.young.kept[position]
        if old != NULL and PyBytes_GET_SIZE(<object>old) == size and c.fastsock_is_sole(old):
            memcpy(PyBytes_AS_STRING(<object>old), start, <size_t>size)
            c.fastsock_again(old)
            self.young.steady[position] = True
            return <bytes>old
        self.young.steady[position] = False
        fresh = new_bytes(start, size, heap_bytes)
        if old != NULL:
            self.young.nbytes -= PyBytes_GET_SIZE(<object>old)
            self.young.kept[position] = NULL
            Py_DECREF(<object>old)
        # The empty and the one-byte objects are everybody's.
        if size > 1 and self.young.nbytes + size <= KEPT_BYTES:
            Py_INCREF(fresh)
            self.young.kept[position] = <PyObject *>fresh
            self.young.nbytes += size
        return fresh

    cdef PyObject *new_reference(self, Py_ssize_t index, Py_ssize_t position, size_t *heap_bytes) except NULL:
        """A new reference to what `payload` gives, by the shortest way to what is written again."""
        cdef PyObject *old
        cdef Py_ssize_t size
        cdef bytes fresh
        if position < KEPT_PAYLOADS and (
            not self.lending or (index == position and self.iov[2 * index].iov_len == 0)
        ):
            old = self.young.kept[position]
            size = self.columns.lengths[index]
            if old != NULL and bytes_size(old) == size and c.fastsock_is_sole(old):
                memcpy(bytes_start(old), self.arena + self.columns.offsets[index], <size_t>size)
                c.fastsock_again(old)
                self.young.steady[position] = True
                c_incref(old)
                return old
        fresh = self.payload(index, position, heap_bytes)
        c_incref(<PyObject *>fresh)
        return <PyObject *>fresh

    cdef list payload_list(self, Py_ssize_t position, size_t *heap_bytes):
        cdef Py_ssize_t i
        cdef Py_ssize_t count = self.columns.count
        cdef list result = PyList_New(count)
        for i in range(count):
            PyList_SET_ITEM(<PyObject *>result, i, self.new_reference(i, position + i, heap_bytes))
        return result

    cdef list payload_address_list(self, Py_ssize_t position, size_t *heap_bytes):
        cdef Py_ssize_t i, message
        cdef Py_ssize_t latest = -1
        cdef Columns *columns = self.columns
        cdef list result = PyList_New(columns.count)
        cdef object address = None
        cdef PyObject *pair
        for i in range(columns.count):
            message = columns.messages[i] if self.ancillary else i
            if message != latest:
                address = self.peers.decode(&self.names[message], self.msgvec[message].msg_hdr.msg_namelen)
                latest = message
            pair = PyTuple_New(2)
            PyList_SET_ITEM(<PyObject *>result, i, pair)
            c_incref(<PyObject *>address)
            PyTuple_SET_ITEM(pair, 1, <PyObject *>address)
            PyTuple_SET_ITEM(pair, 0, self.new_reference(i, position + i, heap_bytes))
            if not self.lending:
                # Neither can be part of a cycle. The collector finds that out by itself, but
                # it would look at thousands of new pairs first.
                PyObject_GC_UnTrack(pair)
        return result
