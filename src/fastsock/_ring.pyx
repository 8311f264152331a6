# Rings in shared memory, from the consumer's side: what was taken from one is a RingBatch. The ring itself is
# plain C, _ring.h. May import _arena's geometry, _columns, _datagrams, _sockaddr, _socket's conversions and _sys.
#
# Who owns what: a Mapping is the memory of a ring in this process; a Lease keeps a part of it from being written,
# and holds the Mapping. Every view of a batch holds the Lease. So memory outlives its views, whatever is closed.

import os
from collections import namedtuple

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from fastsock cimport _linux as c
from fastsock._arena cimport slot_stride
from fastsock._cmsg cimport GRO
from fastsock._columns cimport Columns, columns_size, place_columns, slice_columns
from fastsock._datagrams cimport DatagramBatch
from fastsock._sockaddr cimport AddressCache, decode_address
from fastsock._socket cimport timeout_as_ns
from fastsock._sys cimport (
    Handle, fork_epoch, monotonic_ns, raise_errno, sys_close, sys_fcntl, sys_fstat_size, sys_ftruncate, sys_lock,
    sys_memfd_create, sys_mmap, sys_munmap, sys_open, sys_poll_in, sys_write_event,
)

cdef enum:
    BLOCK_BYTES = 1 << 20       # of a block's arena: what a core's cache holds twice
    LEAST_BLOCKS = 8            # so that a batch that is held for long leaves room for others
    LEAST_JOINED = 128          # bytes of a joined datagram for which a block has a row of its columns
    PAGE = 65536                # no page is larger where it matters (arm64)
    HUGE_PAGE = 2 << 20
    LIVENESS_NS = 1_000_000_000     # between two looks whether the producer's process is there
    INET_NAME = 28              # sizeof(struct sockaddr_in6)


class RingStats(
    namedtuple(
        "RingStats",
        [
            "received", "nbytes", "kernel_drops", "ring_drops", "truncated", "batches", "largest_batch",
            "high_water", "slots", "taken", "errors", "last_error",
        ],
    )
):
    """What a ring counted since it was made, or all rings of a ``Receiver``: see ``Ring.stats``.

    Attributes:
        received: Datagrams that were put in the ring.
        nbytes: Bytes of their payloads, as far as they were kept.
        kernel_drops: What the kernel dropped at the socket for want of room: datagrams, or with UDP GRO
            messages of one or many. None where the kernel does not say (before Linux 4.12). In another
            process than the receiver's it is up to a tenth of a second old.
        ring_drops: Datagrams that were received and discarded, because the ring was full.
        truncated: Datagrams that were longer than ``slot_size``.
        batches: Receives that brought any.
        largest_batch: Datagrams of the largest of those.
        high_water: Slots that were in use at most, waiting to be taken or held; blocks that are not yet
            free count whole.
        slots: Slots that there are.
        taken: Datagrams that ``take`` returned.
        errors: Receives that failed without ending the thread, such as for an ICMP error.
        last_error: The errno of the last of these; 0 for none.

    ``received + kernel_drops + ring_drops`` is all that arrived at the socket.
    """

    __slots__ = ()
    __module__ = "fastsock"

    @property
    def mean_batch(self):
        """Datagrams of a receive that brought any, on average."""
        return self.received / self.batches if self.batches else 0.0


cdef fastsock_geometry plan(
    Py_ssize_t slots, Py_ssize_t slot_size, int ancillary, int family, bint addresses
) except *:
    """The layout of a ring with room for `slots` datagrams of `slot_size` bytes; pure."""
    cdef fastsock_geometry geometry
    cdef Py_ssize_t capacity, blocks, columns, per_block
    cdef Py_ssize_t stride = slot_stride(1, slot_size)
    if slots < 1:
        raise ValueError(f"slots must be at least 1, not {slots}")
    if slots > (<Py_ssize_t>1 << 40) // stride:
        raise MemoryError(f"{slots} slots of {slot_size} bytes")
    memset(&geometry, 0, sizeof(geometry))
    geometry.slot_size = <int32_t>slot_size
    geometry.ancillary = ancillary
    geometry.family = family
    if addresses:
        geometry.name_room = INET_NAME if family in (c.AF_INET, c.AF_INET6) else <int32_t>sizeof(c.sockaddr_un)
    if ancillary & GRO:
        # Whole slots for each block, and behind them a message that begins in the last.
        per_block = min(max(1, BLOCK_BYTES // slot_size), (slots + LEAST_BLOCKS - 1) // LEAST_BLOCKS)
        blocks = (slots + per_block - 1) // per_block
        geometry.arena_size = <uint64_t>(per_block * slot_size + FASTSOCK_MESSAGE_ROOM)
        # Tiny datagrams may need more rows than bytes; two messages more are for what a receive leaves over.
        capacity = max(<Py_ssize_t>geometry.arena_size // LEAST_JOINED, per_block) + 2 * FASTSOCK_SEGMENTS
    else:
        geometry.stride = <int32_t>stride
        capacity = max(1, min(max(BLOCK_BYTES // stride, 64), (slots + LEAST_BLOCKS - 1) // LEAST_BLOCKS))
        blocks = (slots + capacity - 1) // capacity
        geometry.arena_size = <uint64_t>(capacity * stride)
    if blocks > 1 << 20 or capacity > 1 << 30:
        raise MemoryError(f"{slots} slots of {slot_size} bytes")
    geometry.blocks = <int32_t>blocks
    geometry.capacity = <int32_t>capacity
    columns = <Py_ssize_t>columns_size(capacity, ancillary)
    if geometry.name_room:
        columns += capacity * <Py_ssize_t>fastsock_name_stride(geometry.name_room)
    geometry.arena_size = round_up(geometry.arena_size, 64)
    geometry.block_size = round_up(geometry.arena_size + <uint64_t>columns, 4096)
    geometry.blocks_start = round_up(fastsock_ring_size(<size_t>blocks), 4096)
    geometry.mapping_size = round_up(geometry.blocks_start + geometry.block_size * <uint64_t>blocks, PAGE)
    if geometry.mapping_size > HUGE_PAGE:
        geometry.mapping_size = round_up(geometry.mapping_size, HUGE_PAGE)
    return geometry


cdef inline uint64_t round_up(uint64_t size, uint64_t unit) noexcept:
    return (size + unit - 1) // unit * unit


# --- memory -----------------------------------------------------------------------------------

# The rings that this process consumes, by the inodes of their memory: each with the descriptor that holds the lock,
# or -1 where it is the memory's own.
cdef dict claims = {}


@cython.final
@cython.no_gc
cdef class Mapping:
    """The memory of a ring, mapped. Its descriptor stays open with it: closing it would end the lock."""

    def __cinit__(self):
        self.memfd = -1

    def __dealloc__(self):
        PyMem_Free(self.views)
        PyMem_Free(self.columns)
        if self.ring != NULL:
            sys_munmap(self.ring, self.size)
        if self.claimed_epoch == fork_epoch() and (fd := claims.pop(self.inode, -1)) >= 0:
            sys_close(fd)
        if self.memfd >= 0:
            sys_close(self.memfd)

    @staticmethod
    cdef Mapping create(fastsock_geometry *geometry):
        """New memory for a ring, all of it free."""
        cdef Mapping self = Mapping.__new__(Mapping)
        # All of it is touched, and the kernel would end some process rather than say no.
        if geometry.mapping_size > <uint64_t>(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            raise MemoryError(f"{geometry.mapping_size} bytes are more than this machine has")
        try:
            self.memfd = sys_memfd_create(b"fastsock ring", c.MFD_CLOEXEC | c.MFD_ALLOW_SEALING | c.MFD_NOEXEC_SEAL)
        except OSError:         # EINVAL before Linux 6.3
            self.memfd = sys_memfd_create(b"fastsock ring", c.MFD_CLOEXEC | c.MFD_ALLOW_SEALING)
        sys_ftruncate(self.memfd, <int64_t>geometry.mapping_size)
        # Nobody can take memory away from under the others.
        sys_fcntl(self.memfd, c.F_ADD_SEALS, c.F_SEAL_SHRINK | c.F_SEAL_GROW)
        self.map(geometry.mapping_size)
        self.ring.geometry = geometry[0]
        self.ring.producer_pid = os.getpid()
        fastsock_ring_init(self.ring)
        self.place_blocks()
        return self

    @staticmethod
    cdef Mapping attach(int memfd):
        """The memory of another process's ring; owns the descriptor."""
        cdef Mapping self = Mapping.__new__(Mapping)
        cdef int64_t size
        self.memfd = memfd
        size = sys_fstat_size(memfd)
        if size < <int64_t>sizeof(fastsock_ring):
            raise ValueError("this is not the memory of a ring")
        self.map(<size_t>size)
        if self.ring.magic != FASTSOCK_RING_MAGIC or <int64_t>self.ring.geometry.mapping_size != size:
            raise ValueError("this is not the memory of a ring, or that of another version's")
        self.place_blocks()
        return self

    cdef int map(self, size_t size) except -1:
        self.ring = <fastsock_ring *>sys_mmap(size, self.memfd)
        self.size = size
        return 0

    cdef int place_blocks(self) except -1:
        """Find out where each block's arena, columns and names lie."""
        cdef fastsock_geometry *geometry = &self.ring.geometry
        cdef Py_ssize_t i
        cdef char *start
        cdef char *at
        cdef fastsock_view *view
        self.views = <fastsock_view *>PyMem_Malloc(<size_t>geometry.blocks * sizeof(fastsock_view))
        self.columns = <Columns *>PyMem_Malloc(<size_t>geometry.blocks * sizeof(Columns))
        if self.views == NULL or self.columns == NULL:
            raise MemoryError()
        memset(self.columns, 0, <size_t>geometry.blocks * sizeof(Columns))
        for i in range(geometry.blocks):
            start = <char *>self.ring + geometry.blocks_start + <uint64_t>i * geometry.block_size
            at = start + geometry.arena_size
            place_columns(&self.columns[i], at, geometry.capacity, geometry.ancillary)
            view = &self.views[i]
            view.arena = start
            view.offsets = self.columns[i].offsets
            view.lengths = self.columns[i].lengths
            view.truncated = self.columns[i].truncated
            view.messages = self.columns[i].messages
            view.columns = &self.columns[i]
            view.names = NULL
            if geometry.name_room:
                view.names = start + geometry.block_size - (
                    <uint64_t>geometry.capacity * fastsock_name_stride(geometry.name_room)
                )
        if geometry.name_room:
            self.peers = AddressCache()
        return 0

    cdef int claim(self) except -1:
        """Become the ring's consumer. There is one; what one that died has leased is free again."""
        cdef int epoch = fork_epoch()
        if self.claimed_epoch == epoch:
            return 0
        inode = os.fstat(self.memfd).st_ino
        # fstat releases the GIL, and from here on nothing does.
        if self.claimed_epoch == epoch:
            return 0
        if inode in claims:
            raise RuntimeError("this process takes from the ring already, through another object")
        # A description of its own: the process may close other descriptors of the memory without ending the lock.
        try:
            fd = sys_open(b"/proc/self/fd/%d" % self.memfd, c.O_RDWR | c.O_CLOEXEC)
        except FileNotFoundError:       # no /proc here
            fd = -1
        try:
            if not sys_lock(fd if fd >= 0 else self.memfd, fd >= 0):
                raise RuntimeError(
                    f"process {self.ring.consumer_pid} takes from this ring: it has one consumer at a time"
                )
            claims[inode] = fd
        except BaseException:
            if fd >= 0:
                sys_close(fd)
            raise
        self.inode = inode
        self.claimed_epoch = epoch
        self.ring.consumer_pid = os.getpid()
        fastsock_ring_reclaim(self.ring)
        return 0


def _forked():
    """The child is no consumer, and must not keep the locks of one."""
    for fd in claims.values():
        if fd >= 0:
            sys_close(fd)
    claims.clear()


os.register_at_fork(after_in_child=_forked)


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Lease:
    """Keeps the datagrams of one batch where they are."""

    def __dealloc__(self):
        # A forked child's copy is of its parent's lease, which the parent ends.
        if self.epoch and self.epoch == fork_epoch():
            fastsock_ring_release(self.mapping.ring, self.block)


# --- what was taken ---------------------------------------------------------------------------

@cython.no_gc_clear     # views may be read while a garbage cycle is taken apart
cdef class RingBatch(DatagramBatch):
    """Datagrams that ``take`` returned: a sequence of ``Datagram``, with the columns of ``RecvBatch``.

    They lie in the ring's own memory, and nothing is copied. Their slots go back to the ring once the batch
    and every view of it (a column, a Datagram, an array) are gone; until then nothing overwrites them.
    ``release()``, or the end of a ``with`` block, lets go of the batch at once. False when it is empty.
    """

    def __init__(self):
        raise TypeError("batches come from take()")

    @staticmethod
    cdef RingBatch make(Mapping mapping):
        cdef RingBatch self = RingBatch.__new__(RingBatch)
        self.mapping = mapping
        self.lease = Lease.__new__(Lease)
        self.lease.mapping = mapping
        self.ancillary = mapping.ring.geometry.ancillary
        self.slot_size = mapping.ring.geometry.slot_size
        self.stride = mapping.ring.geometry.stride
        self.named = mapping.ring.geometry.name_room != 0
        return self

    cdef int show(self, uint32_t block, Py_ssize_t start, Py_ssize_t count) except -1:
        """Datagrams `start` and up of a block, which were just taken."""
        self.block = self.lease.block = block
        self.lease.epoch = fork_epoch()
        self.first = start
        self.arena = self.mapping.views[block].arena
        self.arena_size = <Py_ssize_t>self.mapping.ring.geometry.arena_size
        slice_columns(self.columns, &self.mapping.columns[block], start, count)
        return 0

    def release(self):
        """Let go of the datagrams; releasing again does nothing.

        The batch is of no use then. Views that were taken from it keep their memory.
        """
        self.columns.count = 0
        self.lease = None

    def __enter__(self):
        return self

    def __exit__(self, kind=None, error=None, trace=None, /):
        self.release()

    def __bool__(self):
        return self.columns.count > 0

    def __repr__(self):
        return f"<fastsock.RingBatch of {self.columns.count} datagrams{'' if self.lease is not None else ', released'}>"

    # --- for DatagramBatch ------------------------------------------------------------------------

    cdef object memory_owner(self):
        if self.lease is None:
            raise ValueError("the batch was released")
        return self.lease

    cdef size_t copy_name(self, Py_ssize_t message, c.sockaddr_storage *name) noexcept:
        cdef fastsock_geometry *geometry = &self.mapping.ring.geometry
        cdef fastsock_name *found
        if not self.ancillary & GRO:
            message += self.first
        found = <fastsock_name *>(
            self.mapping.views[self.block].names + <size_t>message * fastsock_name_stride(geometry.name_room)
        )
        memcpy(name, found.address, min(<size_t>found.length, <size_t>geometry.name_room))
        return found.length

    cdef object decode_peer(self, const c.sockaddr_storage *name, size_t namelen):
        # All batches of a ring share one cache of addresses.
        if not c.fastsock_flag_acquire(&self.mapping.peers_busy, fork_epoch()):
            return decode_address(name, namelen)
        try:
            return self.mapping.peers.decode(name, namelen)
        finally:
            c.fastsock_flag_release(&self.mapping.peers_busy)


# --- the ring -----------------------------------------------------------------------------------

cdef class Ring:
    """A ring of received datagrams, from which one process at a time takes.

    ``Receiver.rings`` has one for each socket. It can be an argument to a process of ``multiprocessing``,
    however that is started: the memory is shared, and nothing is copied. A consumer that dies leaves its
    place to the next; what it held is free again, and what it had not taken is still there.

    Any number of threads of that process may take, each datagram once.
    """

    def __cinit__(self):
        self.event.fd = -1

    def __init__(self):
        raise TypeError("rings come from a Receiver")

    @staticmethod
    def _attach(memfd, eventfd):
        """What another process's ring is here; owns both descriptors."""
        cdef Ring self = Ring.__new__(Ring)
        self.event.fd = eventfd
        self.mapping = Mapping.attach(memfd)
        return self

    def _descriptors(self):
        """The descriptors of its memory and of its event."""
        return self.open_mapping().memfd, self.event.fd

    def __dealloc__(self):
        self.let_go()

    cdef Mapping open_mapping(self):
        cdef Mapping mapping = self.mapping
        if mapping is None or self.closed_:
            raise_errno(c.EBADF)
        return mapping

    def take(self, max_datagrams=None, timeout=None):
        """Take datagrams that were received, oldest first, without copying them.

        Waits until one is there, then returns what is, and never waits for more. A batch is of one block of
        the ring at most (about a megabyte); what lies behind it comes with the next call.

        Args:
            max_datagrams: The most to take, at least 1; None for no limit.
            timeout: Seconds to wait for the first; None waits without end, 0 not at all.

        Returns:
            A ``RingBatch``; an empty one, which is false, when nothing came in time.

        Raises:
            EOFError: The receiver was stopped, and everything was taken.
            OSError: The same after a failure of the socket, with its errno; the ring is closed (EBADF); the
                receiver's process is gone (EOWNERDEAD).
            RuntimeError: Another process takes from this ring.
            ValueError: ``max_datagrams`` is below 1, or ``timeout`` negative.

        Holds the GIL while it takes, releases it to wait. Restarts on EINTR (PEP 475).
        """
        cdef uint64_t most = <uint64_t>-1
        cdef int64_t timeout_ns = timeout_as_ns(timeout)
        cdef int64_t deadline_ns = 0
        cdef int64_t until_ns = 0
        cdef int64_t now_ns, wait_ns
        cdef bint foreign
        cdef bint over
        cdef Mapping mapping
        cdef RingBatch batch
        if max_datagrams is not None:
            if max_datagrams < 1:
                raise ValueError(f"max_datagrams must be at least 1, not {max_datagrams}")
            most = <uint64_t>min(max_datagrams, 1 << 60)
        while True:
            mapping = self.open_mapping()
            over = fastsock_ring_has_ended(mapping.ring)
            batch = self.take_now(most)
            if batch.columns.count:
                return batch
            if over:
                self.raise_end(mapping)
            now_ns = monotonic_ns()
            if timeout_ns >= 0:
                if deadline_ns == 0:
                    deadline_ns = now_ns + timeout_ns
                if now_ns >= deadline_ns:
                    if self.watched:
                        self.clear(mapping)
                    return batch
            if self.spin_ns:
                if until_ns == 0:
                    until_ns = now_ns + self.spin_ns
                    if deadline_ns:
                        until_ns = min(until_ns, deadline_ns)
                if now_ns < until_ns:
                    if self.spin(until_ns):
                        until_ns = now_ns       # nothing came, or it is not for us to wait so
                    continue
            # Whoever publishes from here on writes the eventfd.
            self.clear(mapping)
            if not fastsock_ring_empty(mapping.ring):
                continue
            foreign = mapping.ring.producer_pid != os.getpid()
            wait_ns = deadline_ns - now_ns if timeout_ns >= 0 else -1
            if foreign and not 0 <= wait_ns < LIVENESS_NS:
                wait_ns = LIVENESS_NS
            with cython.critical_section(self):
                self.open_mapping()
                self.waiters += 1
            try:
                if not sys_poll_in(&self.event, wait_ns) and foreign and is_gone(mapping.ring.producer_pid):
                    raise_errno(c.EOWNERDEAD)
            finally:
                with cython.critical_section(self):
                    self.waiters -= 1
                    if self.finished and not self.waiters:
                        self.let_go()

    cdef int clear(self, Mapping mapping) except -1:
        """Make the eventfd unreadable, unless something is there."""
        with cython.critical_section(self):
            if self.event.fd >= 0:      # else it may be another file's number by now
                fastsock_ring_clear(mapping.ring, self.event.fd)
        return 0

    cdef RingBatch take_now(self, uint64_t most):
        """What is there, at most so many; an empty batch where nothing is."""
        cdef Mapping mapping = self.open_mapping()
        # All that can fail comes before anything is taken.
        cdef RingBatch batch = RingBatch.make(mapping)
        cdef uint32_t block = 0
        cdef uint64_t start = 0
        cdef uint64_t count
        with cython.critical_section(self):
            mapping.claim()
            count = fastsock_ring_take(mapping.ring, most, &block, &start)
            if count:
                batch.show(block, <Py_ssize_t>start, <Py_ssize_t>count)
                if self.watched and self.event.fd >= 0 and fastsock_ring_empty(mapping.ring):
                    fastsock_ring_clear(mapping.ring, self.event.fd)
        return batch

    cdef int raise_end(self, Mapping mapping) except -1:
        if mapping.ring.error:
            return raise_errno(mapping.ring.error)
        raise EOFError("the receiver was stopped, and everything was taken")

    cdef int spin(self, int64_t until_ns) except -1:
        """Wait actively for something to take; returns whether there is no point in more of it."""
        return 1

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self.take()
        except EOFError:
            raise StopIteration from None

    def fileno(self):
        """Return an eventfd that is readable while there is something to take, and once the ring has ended.

        For epoll, asyncio's ``add_reader``, trio's ``wait_readable`` and their like: only wait for it, and
        call ``take(timeout=0)`` then. Before anything was taken it may be readable with nothing there.

        Raises OSError where the ring is closed (EBADF). See eventfd(2).
        """
        cdef Mapping mapping = self.open_mapping()
        if not self.watched:
            self.watched = True
            # As it should be, whatever an earlier consumer that was killed left it as.
            fastsock_ring_clear(mapping.ring, self.event.fd)
        return self.event.fd

    @property
    def stats(self):
        """Counts since the ring was made, as ``RingStats``; those at the end, once it is closed."""
        cdef Mapping mapping = self.mapping
        return self.final if mapping is None else self.count(mapping)

    cdef object count(self, Mapping mapping):
        cdef fastsock_ring *ring = mapping.ring
        cdef fastsock_counts *counts = &ring.counts
        taken = fastsock_load_acquire(&ring.taken)  # first, so that it is never more than was received
        drops = self.kernel_drops(mapping)
        return RingStats(
            fastsock_load(&counts.received),
            fastsock_load(&counts.nbytes),
            drops,
            fastsock_load(&counts.ring_drops),
            fastsock_load(&counts.truncated),
            fastsock_load(&counts.batches),
            fastsock_load(&counts.largest_batch),
            fastsock_load(&counts.high_water),
            slots_of(mapping),
            taken,
            fastsock_load(&counts.errors),
            fastsock_load(&counts.last_error),
        )

    cdef object kernel_drops(self, Mapping mapping):
        return fastsock_load(&mapping.ring.counts.kernel_drops)

    @property
    def slots(self):
        """Datagrams for which there is room: what was asked for, in whole blocks.

        With UDP GRO, so many times ``slot_size`` bytes, in which datagrams lie side by side.
        """
        return slots_of(self.open_mapping())

    @property
    def slot_size(self):
        """Bytes that are kept of a datagram."""
        return self.open_mapping().ring.geometry.slot_size

    @property
    def nbytes(self):
        """Bytes of memory that the ring has, all of them from the start."""
        return self.open_mapping().ring.geometry.mapping_size

    # --- the end --------------------------------------------------------------------------------------

    @property
    def closed(self):
        """Whether the ring is closed in this process."""
        return self.closed_

    def close(self):
        """Take no more; closing again does nothing. Batches that were taken stay valid.

        A thread that waits in ``take`` gets OSError (EBADF).
        """
        self.closed_ = True
        with cython.critical_section(self):
            self.finished = True
            if self.mapping is not None:
                self.final = self.count(self.mapping)
            if not self.waiters:
                self.let_go()
            elif self.event.fd >= 0:
                sys_write_event(self.event.fd)

    cdef int let_go(self) except -1:
        cdef int fd = c.fastsock_exchange(&self.event.fd, -1)
        self.mapping = None
        if fd >= 0:
            sys_close(fd)
        return 0

    def __enter__(self):
        self.open_mapping()
        return self

    def __exit__(self, kind=None, error=None, trace=None, /):
        self.close()

    def __repr__(self):
        if self.closed_:
            return "<fastsock.Ring, closed>"
        return f"<fastsock.Ring of {self.slots} slots of {self.slot_size} bytes>"


cdef Py_ssize_t slots_of(Mapping mapping) noexcept:
    cdef fastsock_geometry *geometry = &mapping.ring.geometry
    return geometry.blocks * <Py_ssize_t>fastsock_block_slots(geometry)


cdef int is_gone(int pid) except -1:
    """Whether a process has ended, waited for or not."""
    cdef Handle handle
    try:
        handle.fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:             # ENOSYS before Linux 5.3, or not allowed here
        return False
    try:
        return sys_poll_in(&handle, 0)
    finally:
        sys_close(handle.fd)
