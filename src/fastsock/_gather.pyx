# What sendmmsg is handed. A Gather points the kernel at the caller's own buffers, and packs
# datagrams into messages: one each, or, with UDP_SEGMENT (Linux 4.18), a run of equal sizes
# to one peer in one message that crosses the network stack once. No system calls.
# May import _linux, _cmsg, _sockaddr and, for the fork epoch, _sys.

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_GET_ITEM
from libc.stdint cimport int32_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy
from fastsock cimport _linux as c
from fastsock._cmsg cimport append_cmsg
from fastsock._sockaddr cimport encode_address
from fastsock._sys cimport SENDMMSG_MAX, fork_epoch

cdef enum:
    MESSAGE_CONTROL = CONTROL_ROOM + 64     # and an item of UDP_SEGMENT, which takes 24


cdef class Buffers:
    def __dealloc__(self):
        self.let_go()
        free(self.iov)
        free(self.views)

    cdef void discard(self) noexcept:
        free(self.iov)
        free(self.views)
        self.iov = NULL
        self.views = NULL
        self.vlen = 0

    cdef int reserve(self, Py_ssize_t vlen) except -1:
        """Make room for `vlen` buffers; nothing is held at this time."""
        if vlen <= self.vlen:
            return 0
        self.discard()
        self.iov = <c.iovec *>calloc(vlen, sizeof(c.iovec))
        self.views = <Py_buffer *>calloc(vlen, sizeof(Py_buffer))
        if self.iov == NULL or self.views == NULL:
            self.discard()
            raise MemoryError()
        self.vlen = vlen
        return 0

    cdef int hold(self, tuple buffers, Py_ssize_t start, Py_ssize_t count, int flags) except -1:
        """Point the iovecs at buffers[start:start + count]; the caller holds the tuple until let_go."""
        cdef Py_ssize_t i
        for i in range(count):
            item = <object>PyTuple_GET_ITEM(buffers, start + i)
            if PyBytes_CheckExact(item) and flags == PyBUF_SIMPLE:
                # The tuple holds it, and nothing can change it: no buffer need be taken.
                self.iov[i].iov_base = PyBytes_AS_STRING(item)
                self.iov[i].iov_len = <size_t>PyBytes_GET_SIZE(item)
            else:
                PyObject_GetBuffer(item, &self.views[self.held], flags)
                self.iov[i].iov_base = self.views[self.held].buf
                self.iov[i].iov_len = <size_t>self.views[self.held].len
                self.held += 1
        return 0

    cdef void let_go(self) noexcept:
        """Release the buffers, after the call that used them."""
        cdef Py_ssize_t i
        for i in range(self.held):
            PyBuffer_Release(&self.views[i])
        self.held = 0


@cython.final
cdef class Gather(Buffers):
    def __dealloc__(self):
        free(self.msgvec)
        free(self.entries)
        free(self.segmented)
        free(self.controls)
        free(self.segment_sizes)
        free(self.out.names)
        free(self.out.namelens)
        free(self.split_iov)

    cdef bint try_acquire(self) noexcept:
        return c.fastsock_flag_acquire(&self.busy, fork_epoch())

    cdef void release(self) noexcept:
        c.fastsock_flag_release(&self.busy)

    cdef void discard(self) noexcept:
        Buffers.discard(self)
        free(self.msgvec)
        free(self.entries)
        free(self.segmented)
        free(self.controls)
        free(self.segment_sizes)
        free(self.out.names)
        free(self.out.namelens)
        self.msgvec = NULL
        self.entries = NULL
        self.segmented = NULL
        self.controls = NULL
        self.segment_sizes = NULL
        self.out.iov = NULL
        self.out.names = NULL
        self.out.namelens = NULL

    cdef int reserve(self, Py_ssize_t vlen) except -1:
        """Make room for `vlen` datagrams; nothing is held at this time."""
        if vlen <= self.vlen:
            return 0
        Buffers.reserve(self, vlen)
        self.msgvec = <c.mmsghdr *>calloc(vlen, sizeof(c.mmsghdr))
        self.entries = <int32_t *>calloc(vlen, sizeof(int32_t))
        self.segmented = <uint16_t *>calloc(vlen, sizeof(uint16_t))
        self.controls = <char *>calloc(vlen, MESSAGE_CONTROL)
        self.segment_sizes = <uint16_t *>calloc(vlen, sizeof(uint16_t))
        self.out.iov = self.iov
        self.out.names = <c.sockaddr_storage *>calloc(vlen, sizeof(c.sockaddr_storage))
        self.out.namelens = <c.socklen_t *>calloc(vlen, sizeof(c.socklen_t))
        if (
            self.msgvec == NULL or self.entries == NULL or self.segmented == NULL or self.controls == NULL
            or self.segment_sizes == NULL or self.out.names == NULL or self.out.namelens == NULL
        ):
            self.discard()
            raise MemoryError()
        return 0

    cdef void address_none(self) noexcept:
        """Leave every datagram to the connected peer."""
        self.out.one_peer = True
        self.out.namelens[0] = 0

    cdef int address_all(self, int family, object address, str caller) except -1:
        """Address every datagram to one peer."""
        encode_address(family, address, caller, &self.out.names[0], &self.out.namelens[0])
        self.out.one_peer = True
        return 0

    cdef int address_each(self, tuple addresses, Py_ssize_t start, Py_ssize_t count, int family, str caller) except -1:
        """Address each datagram to its own peer; a tuple that comes again at once is not read again."""
        cdef Py_ssize_t i
        cdef bint constant = False
        self.out.one_peer = False
        for i in range(count):
            if constant and addresses[start + i] is addresses[start + i - 1]:
                memcpy(&self.out.names[i], &self.out.names[i - 1], self.out.namelens[i - 1])
                self.out.namelens[i] = self.out.namelens[i - 1]
            else:
                constant = encode_address(
                    family, addresses[start + i], caller, &self.out.names[i], &self.out.namelens[i]
                )
        return 0

    # --- packing ---------------------------------------------------------------------------

    cdef Py_ssize_t pack(
        self, const Outgoing *out, Py_ssize_t start, Py_ssize_t count, const Limits *limits, Py_ssize_t done
    ) except -1:
        """Fill msgvec from datagrams start .. start + count; returns the messages, at least 1.

        There is room for `count`. A datagram that is to be cut, and cannot be by the kernel,
        stands alone: then the messages are its segments from `done` on, and `splitting` is set.
        """
        cdef Py_ssize_t i = start
        cdef Py_ssize_t messages = 0
        cdef Py_ssize_t run
        cdef size_t controllen
        cdef uint16_t segment_size
        cdef char *control
        cdef c.msghdr *hdr
        self.splitting = False
        while i < start + count:
            segment_size = out.segment_sizes[i] if out.segment_sizes != NULL else 0
            run = 1
            if segment_size and out.iov[i].iov_len > segment_size:
                if (
                    done or segment_size > limits.segment_size or segments_of(out, i) > limits.segments
                    or out.iov[i].iov_len > MAX_PAYLOAD
                ):
                    if i == start:
                        return self.split(out, i, done)
                    break
            else:
                segment_size = 0
                if limits.segments > 1:
                    run = run_length(out, i, start + count - i, limits)
                    if run > 1:
                        segment_size = <uint16_t>out.iov[i].iov_len
            hdr = &self.msgvec[messages].msg_hdr
            hdr.msg_iov = &out.iov[i]
            hdr.msg_iovlen = <size_t>run
            address(hdr, out, i)
            hdr.msg_control = NULL
            hdr.msg_controllen = 0
            if segment_size or out.controls != NULL:
                control = self.controls + messages * MESSAGE_CONTROL
                controllen = 0
                if out.controls != NULL:
                    controllen = out.controllens[i]
                    memcpy(control, out.controls + i * CONTROL_ROOM, controllen)
                if segment_size:
                    controllen = append_cmsg(
                        control, controllen, c.FASTSOCK_SOL_UDP, c.UDP_SEGMENT, &segment_size, sizeof(segment_size)
                    )
                if controllen:
                    hdr.msg_control = control
                    hdr.msg_controllen = controllen
            self.entries[messages] = <int32_t>run
            self.segmented[messages] = segment_size
            messages += 1
            i += run
        return messages

    cdef Py_ssize_t split(self, const Outgoing *out, Py_ssize_t index, Py_ssize_t done) except -1:
        """One message for each segment of a datagram, from segment `done` on; not more than vlen."""
        cdef Py_ssize_t segment_size = out.segment_sizes[index]
        cdef Py_ssize_t count = min(segments_of(out, index) - done, min(self.vlen, <Py_ssize_t>SENDMMSG_MAX))
        cdef Py_ssize_t whole = <Py_ssize_t>out.iov[index].iov_len
        cdef Py_ssize_t i, at
        cdef c.msghdr *hdr
        if self.split_room < count:
            free(self.split_iov)
            self.split_room = 0
            self.split_iov = <c.iovec *>calloc(<size_t>count, sizeof(c.iovec))
            if self.split_iov == NULL:
                raise MemoryError()
            self.split_room = count
        for i in range(count):
            at = (done + i) * segment_size
            self.split_iov[i].iov_base = <char *>out.iov[index].iov_base + at
            self.split_iov[i].iov_len = <size_t>min(segment_size, whole - at)
            hdr = &self.msgvec[i].msg_hdr
            hdr.msg_iov = &self.split_iov[i]
            hdr.msg_iovlen = 1
            address(hdr, out, index)
            hdr.msg_control = NULL
            hdr.msg_controllen = 0
            if out.controls != NULL and out.controllens[index]:
                hdr.msg_control = out.controls + index * CONTROL_ROOM
                hdr.msg_controllen = out.controllens[index]
            self.entries[i] = 1
            self.segmented[i] = 0
        self.splitting = True
        return count


cdef inline void address(c.msghdr *hdr, const Outgoing *out, Py_ssize_t index) noexcept nogil:
    """Name the peer of one datagram; nobody on a connected socket."""
    cdef Py_ssize_t peer = 0 if out.one_peer else index
    if out.names == NULL or out.namelens[peer] == 0:
        hdr.msg_name = NULL
        hdr.msg_namelen = 0
    else:
        hdr.msg_name = &out.names[peer]
        hdr.msg_namelen = out.namelens[peer]


cdef Py_ssize_t segments_of(const Outgoing *out, Py_ssize_t index) noexcept nogil:
    """The datagrams that one entry stands for."""
    cdef size_t size = out.iov[index].iov_len
    cdef size_t segment_size
    if out.segment_sizes == NULL or out.segment_sizes[index] == 0 or size == 0:
        return 1
    segment_size = out.segment_sizes[index]
    return <Py_ssize_t>((size + segment_size - 1) // segment_size)


cdef Py_ssize_t run_length(
    const Outgoing *out, Py_ssize_t start, Py_ssize_t count, const Limits *limits
) noexcept nogil:
    """How many datagrams from `start` on may be one message: at least 1.

    Equal in size, but for a shorter last one that is not empty; to one peer; with the same
    ancillary data; no more than the limits and one IP packet hold (net/ipv4/udp.c,
    udp_send_skb).
    """
    cdef size_t size = out.iov[start].iov_len
    cdef size_t total = size
    cdef size_t next_size
    cdef Py_ssize_t i
    if size == 0 or <Py_ssize_t>size > limits.segment_size:
        return 1
    count = min(count, limits.segments)
    for i in range(start + 1, start + count):
        next_size = out.iov[i].iov_len
        total += next_size
        if next_size == 0 or next_size > size or total > MAX_PAYLOAD or not alike(out, start, i):
            return i - start
        if next_size < size:
            return i + 1 - start
    return count


cdef inline bint alike(const Outgoing *out, Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """Whether two datagrams differ in nothing but their payloads."""
    if out.segment_sizes != NULL and out.segment_sizes[b]:
        return False
    if out.names != NULL and not out.one_peer:
        if out.namelens[a] != out.namelens[b] or memcmp(&out.names[a], &out.names[b], out.namelens[a]) != 0:
            return False
    if out.controls != NULL:
        if out.controllens[a] != out.controllens[b]:
            return False
        return memcmp(out.controls + a * CONTROL_ROOM, out.controls + b * CONTROL_ROOM, out.controllens[a]) == 0
    return True


# --- for tests ---------------------------------------------------------------------------------

def runs(list sizes, list peers, Py_ssize_t segments, Py_ssize_t segment_size=MAX_PAYLOAD):
    """How datagrams of these sizes, to peers given as numbers, are packed: their count per message."""
    cdef Py_ssize_t count = len(sizes)
    cdef Py_ssize_t i
    cdef Py_ssize_t messages
    cdef Limits limits
    cdef Gather gather = Gather()
    gather.reserve(max(<Py_ssize_t>1, count))
    limits.segments = segments
    limits.segment_size = segment_size
    for i in range(count):
        gather.out.iov[i].iov_len = <size_t>sizes[i]
        gather.out.namelens[i] = sizeof(c.sockaddr_in)
        (<c.sockaddr_in *>&gather.out.names[i]).sin_port = <uint16_t>peers[i]
    messages = gather.pack(&gather.out, 0, count, &limits, 0) if count else 0
    return [gather.entries[i] for i in range(messages)]
