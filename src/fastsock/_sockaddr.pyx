# Socket addresses between the kernel's form and Python's: the tuples and paths of the
# socket module, with its checks and its errors. Pure, but for the resolver, which the
# standard library runs for us and only for host names. Imports _linux, and _cmsg for Host.

import os

# Below the socket module, so that what a program puts into that does not come here.
import _socket

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.long cimport PyLong_AsUnsignedLongMask, PyLong_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strlen
from fastsock cimport _linux as c
from fastsock._cmsg cimport Host

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    long PyLong_AsLongAndOverflow(object value, int *overflow) except? -1
    object PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t size)

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *text, size_t most)

cdef extern from "<stddef.h>" nogil:
    size_t UNIX_PATH_OFFSET "offsetof(struct sockaddr_un, sun_path)"
    size_t HARDWARE_OFFSET "offsetof(struct sockaddr_ll, sll_addr)"


# --- Python to kernel -----------------------------------------------------------------

cdef bytes host_bytes(object host):
    """The host as the resolver takes it, from the types that the socket module takes."""
    cdef bytes packed
    if isinstance(host, str):
        try:
            packed = (<str>host).encode("ascii" if (<str>host).isascii() else "idna")
        except UnicodeError:
            raise TypeError("encoding of hostname failed") from None
    elif isinstance(host, (bytes, bytearray)):
        packed = bytes(host)
    else:
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if b"\0" in packed:
        raise TypeError("host name must not contain null character")
    return packed


cdef object resolve(int family, bytes host):
    """The first address that getaddrinfo gives, as its tuple; raises socket.gaierror."""
    if host == b"":
        return _socket.getaddrinfo(None, 0, family, c.SOCK_DGRAM, 0, _socket.AI_PASSIVE)[0][4]
    if host == b"<broadcast>":
        if family != c.AF_INET:
            raise OSError("address family mismatched")
        return ("255.255.255.255", 0)
    return _socket.getaddrinfo(host, 0, family, c.SOCK_DGRAM)[0][4]


cdef bint is_numeric(int family, object host, void *binary) except -1:
    """Whether `host` is an address in digits, which is then written to `binary`."""
    cdef Py_ssize_t size
    cdef const char *text
    if not isinstance(host, str) or not PyUnicode_IS_ASCII(host):
        return False
    text = PyUnicode_AsUTF8AndSize(host, &size)
    return strlen(text) == <size_t>size and c.inet_pton(family, text, binary) == 1


cdef long bounded(object value, long most, str caller, str name) except -1:
    cdef int overflow = 0
    cdef long number = PyLong_AsLongAndOverflow(PyNumber_Index(value), &overflow)
    if overflow or not 0 <= number <= most:
        raise OverflowError(f"{caller}(): {name} must be 0-{most}.")
    return number


cdef bint is_constant(tuple address) noexcept:
    """Whether nothing in (host, numbers...) can be changed."""
    cdef Py_ssize_t i
    for i in range(1, len(address)):
        if not PyLong_CheckExact(address[i]):
            return False
    return PyUnicode_CheckExact(address[0])


cdef int encode_inet(object address, str caller, c.sockaddr_in *sin) except -1:
    if not isinstance(address, tuple):
        raise TypeError(f"{caller}(): AF_INET address must be tuple, not {type(address).__name__}")
    if len(<tuple>address) != 2:
        raise TypeError(f"{caller}(): AF_INET address must be a pair (host, port)")
    cdef bytes host = None
    memset(sin, 0, sizeof(c.sockaddr_in))
    cdef bint numeric = is_numeric(c.AF_INET, (<tuple>address)[0], &sin.sin_addr)
    if not numeric:
        host = host_bytes((<tuple>address)[0])
    sin.sin_port = c.htons(<int>bounded((<tuple>address)[1], 0xFFFF, caller, "port"))
    if not numeric and c.inet_pton(c.AF_INET, host, &sin.sin_addr) != 1:
        host = (<str>resolve(c.AF_INET, host)[0]).encode("ascii")
        c.inet_pton(c.AF_INET, host, &sin.sin_addr)
    sin.sin_family = c.AF_INET
    return numeric and is_constant(<tuple>address)


cdef int encode_inet6(object address, str caller, c.sockaddr_in6 *sin6) except -1:
    if not isinstance(address, tuple):
        raise TypeError(f"{caller}(): AF_INET6 address must be tuple, not {type(address).__name__}")
    cdef Py_ssize_t size = len(<tuple>address)
    if not 2 <= size <= 4:
        raise TypeError(f"{caller}(): AF_INET6 address must be a tuple (host, port[, flowinfo[, scopeid]])")
    cdef bytes host = None
    memset(sin6, 0, sizeof(c.sockaddr_in6))
    cdef bint numeric = is_numeric(c.AF_INET6, (<tuple>address)[0], &sin6.sin6_addr)
    if not numeric:
        host = host_bytes((<tuple>address)[0])
    sin6.sin6_port = c.htons(<int>bounded((<tuple>address)[1], 0xFFFF, caller, "port"))
    flowinfo = (<tuple>address)[2] if size > 2 else 0
    sin6.sin6_flowinfo = c.htonl(<unsigned int>bounded(flowinfo, 0xFFFFF, caller, "flowinfo"))
    sin6.sin6_scope_id = PyNumber_Index((<tuple>address)[3]) if size > 3 else 0
    if not numeric and c.inet_pton(c.AF_INET6, host, &sin6.sin6_addr) != 1:
        found = resolve(c.AF_INET6, host)
        # getaddrinfo returns a scoped address as "fe80::1%lo": the scope is the fourth item.
        host = (<str>found[0]).split("%", 1)[0].encode("ascii")
        c.inet_pton(c.AF_INET6, host, &sin6.sin6_addr)
        if size < 4:
            sin6.sin6_scope_id = found[3]
    sin6.sin6_family = c.AF_INET6
    return numeric and is_constant(<tuple>address)


cdef int encode_unix(object address, c.sockaddr_un *sun, c.socklen_t *addrlen) except -1:
    cdef bytes path
    if isinstance(address, str):
        path = os.fsencode(address)
    elif isinstance(address, bytes):
        path = address
    else:
        path = bytes(memoryview(address))       # TypeError where it is no bytes-like object
    cdef size_t size = len(path)
    cdef const char *raw = path
    # An abstract name may fill sun_path; a path needs room for its NUL (unix(7)).
    if size > sizeof(sun.sun_path) or (size == sizeof(sun.sun_path) and raw[0] != 0):
        raise OSError("AF_UNIX path too long")
    memset(sun, 0, sizeof(c.sockaddr_un))
    sun.sun_family = c.AF_UNIX
    memcpy(sun.sun_path, raw, size)
    addrlen[0] = <c.socklen_t>(UNIX_PATH_OFFSET + size + (1 if size and raw[0] != 0 else 0))
    return 0


cdef uint32_t masked(object value) except? 0:
    """The low 32 bits, as the standard library takes them: -1 is every bit."""
    return <uint32_t>PyLong_AsUnsignedLongMask(PyNumber_Index(value))


cdef int encode_pair(object address, str caller, str meant, uint32_t *first, uint32_t *second) except -1:
    """The two numbers that an address of AF_NETLINK or AF_VSOCK is made of."""
    if not isinstance(address, tuple) or len(<tuple>address) != 2:
        raise TypeError(f"{caller}(): {meant}")
    first[0] = masked((<tuple>address)[0])
    second[0] = masked((<tuple>address)[1])
    return 0


cdef int encode_packet(object address, str caller, c.sockaddr_ll *sll, c.socklen_t *addrlen) except -1:
    if not isinstance(address, tuple) or not 2 <= len(<tuple>address) <= 5:
        raise TypeError(f"{caller}(): AF_PACKET address must be a tuple (ifname, proto[, pkttype[, hatype[, addr]]])")
    name, protocol, pkttype, hatype, hardware = (<tuple>address + (0, 0, b"")[len(<tuple>address) - 2:])
    hardware = bytes(memoryview(hardware))
    if len(hardware) > 8:
        raise ValueError("Hardware address must be 8 bytes or less")
    try:
        sll.sll_ifindex = _socket.if_nametoindex(name)
    except OSError:
        raise OSError(c.ENODEV, f"no interface named {name!r}") from None
    sll.sll_protocol = c.htons(<int>bounded(protocol, 0xFFFF, caller, "proto"))
    sll.sll_pkttype = <unsigned char>masked(pkttype)
    sll.sll_hatype = <unsigned short>masked(hatype)
    sll.sll_halen = <unsigned char>len(hardware)
    memcpy(sll.sll_addr, <const char *><bytes>hardware, len(hardware))
    addrlen[0] = sizeof(c.sockaddr_ll)
    return 0


cdef int encode_raw(
    int family, object address, str caller, c.sockaddr_storage *storage, c.socklen_t *addrlen
) except -1:
    """Any other family's address, in the form in which the kernel's comes out of `decode_address`."""
    cdef size_t room = sizeof(c.sockaddr_storage) - sizeof(c.sa_family_t)
    if not isinstance(address, tuple) or len(<tuple>address) != 2 or (<tuple>address)[0] != family:
        raise OSError(f"{caller}(): bad family: an address of family {family} must be ({family}, bytes)")
    raw = bytes(memoryview((<tuple>address)[1]))
    if <size_t>len(raw) > room:
        raise OSError(f"{caller}(): the address is longer than {room} bytes")
    memcpy(<char *>storage + sizeof(c.sa_family_t), <const char *><bytes>raw, len(raw))
    addrlen[0] = <c.socklen_t>(sizeof(c.sa_family_t) + <size_t>len(raw))
    return 0


cdef int encode_address(
    int family, object address, str caller, c.sockaddr_storage *storage, c.socklen_t *addrlen
) except -1:
    cdef c.sockaddr_nl *snl
    cdef c.sockaddr_vm *svm
    if family == c.AF_INET:
        addrlen[0] = sizeof(c.sockaddr_in)
        return encode_inet(address, caller, <c.sockaddr_in *>storage)
    if family == c.AF_INET6:
        addrlen[0] = sizeof(c.sockaddr_in6)
        return encode_inet6(address, caller, <c.sockaddr_in6 *>storage)
    if family == c.AF_UNIX:
        return encode_unix(address, <c.sockaddr_un *>storage, addrlen)
    memset(storage, 0, sizeof(c.sockaddr_storage))
    storage.ss_family = <c.sa_family_t>family
    if family == c.AF_NETLINK:
        snl = <c.sockaddr_nl *>storage
        addrlen[0] = sizeof(c.sockaddr_nl)
        return encode_pair(
            address, caller, "AF_NETLINK address must be a pair (pid, groups)", &snl.nl_pid, &snl.nl_groups
        )
    if family == c.AF_VSOCK:
        svm = <c.sockaddr_vm *>storage
        addrlen[0] = sizeof(c.sockaddr_vm)
        return encode_pair(
            address, caller, "AF_VSOCK address must be a pair (CID, port)", &svm.svm_cid, &svm.svm_port
        )
    if family == c.AF_PACKET:
        return encode_packet(address, caller, <c.sockaddr_ll *>storage, addrlen)
    return encode_raw(family, address, caller, storage, addrlen)


# --- kernel to Python -----------------------------------------------------------------

cdef object decode_address(const c.sockaddr_storage *storage, size_t addrlen):
    cdef const c.sockaddr_in *sin = <const c.sockaddr_in *>storage
    cdef const c.sockaddr_in6 *sin6 = <const c.sockaddr_in6 *>storage
    cdef const c.sockaddr_un *sun = <const c.sockaddr_un *>storage
    cdef char text[c.INET6_ADDRSTRLEN]
    cdef size_t size
    if addrlen == 0:
        return None                     # an unnamed AF_UNIX peer, or a stream
    # The kernel reports the length it wanted, which may be more than it wrote.
    addrlen = min(addrlen, sizeof(c.sockaddr_storage))
    if storage.ss_family == c.AF_INET and addrlen >= sizeof(c.sockaddr_in):
        c.inet_ntop(c.AF_INET, &sin.sin_addr, text, sizeof(text))
        return ((<bytes>text).decode("ascii"), c.ntohs(sin.sin_port))
    if storage.ss_family == c.AF_INET6 and addrlen >= sizeof(c.sockaddr_in6):
        c.inet_ntop(c.AF_INET6, &sin6.sin6_addr, text, sizeof(text))
        return (
            (<bytes>text).decode("ascii"),
            c.ntohs(sin6.sin6_port),
            c.ntohl(sin6.sin6_flowinfo),
            sin6.sin6_scope_id,
        )
    if storage.ss_family == c.AF_UNIX:
        size = addrlen - UNIX_PATH_OFFSET if addrlen > UNIX_PATH_OFFSET else 0
        if size and sun.sun_path[0] == 0:
            return PyBytes_FromStringAndSize(sun.sun_path, <Py_ssize_t>size)
        return PyUnicode_DecodeFSDefaultAndSize(sun.sun_path, <Py_ssize_t>strnlen(sun.sun_path, size))
    if storage.ss_family == c.AF_NETLINK and addrlen >= sizeof(c.sockaddr_nl):
        return (<const c.sockaddr_nl *>storage).nl_pid, (<const c.sockaddr_nl *>storage).nl_groups
    if storage.ss_family == c.AF_VSOCK and addrlen >= sizeof(c.sockaddr_vm):
        return (<const c.sockaddr_vm *>storage).svm_cid, (<const c.sockaddr_vm *>storage).svm_port
    if storage.ss_family == c.AF_PACKET and addrlen >= HARDWARE_OFFSET:
        return decode_packet(<const c.sockaddr_ll *>storage, addrlen)
    size = addrlen - sizeof(c.sa_family_t) if addrlen > sizeof(c.sa_family_t) else 0
    return (
        <int>storage.ss_family,
        PyBytes_FromStringAndSize(<const char *>storage + sizeof(c.sa_family_t), <Py_ssize_t>size),
    )


cdef object decode_packet(const c.sockaddr_ll *sll, size_t addrlen):
    try:
        name = _socket.if_indextoname(sll.sll_ifindex)
    except OSError:
        name = ""                       # it is gone by now, or the socket is bound to none
    size = min(<size_t>sll.sll_halen, sizeof(sll.sll_addr), addrlen - HARDWARE_OFFSET)
    hardware = PyBytes_FromStringAndSize(<const char *>sll.sll_addr, <Py_ssize_t>size)
    return name, c.ntohs(sll.sll_protocol), sll.sll_pkttype, sll.sll_hatype, hardware


cdef int encode_host(int family, object host, Host *encoded) except -1:
    """Read an address without a port: one of `family`, or of AF_INET for an AF_INET6 socket, mapped."""
    cdef bytes packed = host_bytes(host)
    memset(encoded, 0, sizeof(Host))
    encoded.family = family
    if c.inet_pton(family, packed, encoded.address) == 1:
        return 0
    if family == c.AF_INET6 and c.inet_pton(c.AF_INET, packed, &encoded.address[12]) == 1:
        encoded.address[10] = encoded.address[11] = 0xFF
        return 0
    raise ValueError(f"{host!r} is not an address of the socket's family")


cdef object decode_host(const Host *host):
    cdef char text[c.INET6_ADDRSTRLEN]
    if host.family == 0:
        return None
    c.inet_ntop(host.family, host.address, text, sizeof(text))
    return (<bytes>text).decode("ascii")


# --- the cache ------------------------------------------------------------------------
# Direct-mapped: a new peer takes the place of the one that hashed there, so that the
# memory is bounded whatever arrives, and a stale entry cannot exist: the whole kernel
# form is the key. It grows by doubling while peers keep evicting each other.

cdef enum:
    PEERS_AT_FIRST = 256
    PEERS_AT_MOST = 65536
    KEY_SIZE = 28           # sizeof(struct sockaddr_in6), the longest form that is cached


cdef class AddressCache:
    def __cinit__(self):
        self.peers = <Peer *>PyMem_Calloc(PEERS_AT_FIRST, sizeof(Peer))
        if self.peers == NULL:
            raise MemoryError()
        self.size = PEERS_AT_FIRST
        self.latest = self.peers

    def __dealloc__(self):
        cdef size_t i
        if self.peers != NULL:
            for i in range(self.size):
                if self.peers[i].address != NULL:
                    Py_DECREF(<object>self.peers[i].address)
            PyMem_Free(self.peers)

    def __len__(self):
        return self.used

    @property
    def capacity(self):
        return self.size

    def __call__(self, bytes raw not None):
        """Decode the kernel form `raw`: what the receiving loops do, for tests."""
        cdef c.sockaddr_storage storage
        load_raw(raw, &storage)
        return self.decode(&storage, len(raw))

    cdef size_t place(self, const uint8_t *key) noexcept:
        cdef uint64_t words[4]
        words[3] = 0
        memcpy(words, key, KEY_SIZE)
        cdef uint64_t h = words[0] * <uint64_t>0x9E3779B97F4A7C15
        h = (h ^ (h >> 32) ^ words[1]) * <uint64_t>0xBF58476D1CE4E5B9
        h = (h ^ (h >> 32) ^ words[2]) * <uint64_t>0x94D049BB133111EB
        h = (h ^ (h >> 32) ^ words[3]) * <uint64_t>0x9E3779B97F4A7C15
        return <size_t>(h >> 40) & (self.size - 1)

    cdef object decode(self, const c.sockaddr_storage *storage, size_t addrlen):
        cdef uint8_t key[KEY_SIZE]
        cdef Peer *peer = self.latest
        # Both forms are padded with zeros to one key; the family comes first in it.
        if addrlen == sizeof(c.sockaddr_in) and storage.ss_family == c.AF_INET:
            memset(key, 0, KEY_SIZE)
            memcpy(key, storage, 8)         # family, port, address; sin_zero says nothing
        elif addrlen == sizeof(c.sockaddr_in6) and storage.ss_family == c.AF_INET6:
            memcpy(key, storage, KEY_SIZE)
        else:
            return decode_address(storage, addrlen)
        if peer.address != NULL and memcmp(peer.key, key, KEY_SIZE) == 0:
            return <object>peer.address
        peer = &self.peers[self.place(key)]
        if peer.address == NULL or memcmp(peer.key, key, KEY_SIZE) != 0:
            address = decode_address(storage, addrlen)
            if peer.address != NULL:
                self.evictions += 1
                if self.evictions > self.size and self.size < PEERS_AT_MOST:
                    self.grow()
                    peer = &self.peers[self.place(key)]
            if peer.address != NULL:
                Py_DECREF(<object>peer.address)
            else:
                self.used += 1
            Py_INCREF(address)
            peer.address = <PyObject *>address
            memcpy(peer.key, key, KEY_SIZE)
        self.latest = peer
        return <object>peer.address

    cdef int grow(self) except -1:
        cdef Peer *old = self.peers
        cdef size_t old_size = self.size
        cdef size_t i, at
        cdef Peer *peers = <Peer *>PyMem_Calloc(2 * old_size, sizeof(Peer))
        if peers == NULL:
            raise MemoryError()
        self.peers = self.latest = peers
        self.size = 2 * old_size
        self.evictions = 0
        for i in range(old_size):
            if old[i].address != NULL:
                at = self.place(old[i].key)     # doubling never makes two entries meet
                peers[at] = old[i]
        PyMem_Free(old)
        return 0


# --- for tests ------------------------------------------------------------------------

cdef int load_raw(bytes raw, c.sockaddr_storage *storage) except -1:
    if <size_t>len(raw) > sizeof(c.sockaddr_storage):
        raise ValueError("longer than struct sockaddr_storage")
    memset(storage, 0, sizeof(c.sockaddr_storage))
    memcpy(storage, <const char *>raw, len(raw))
    return 0


def encode(int family, object address, str caller="encode"):
    """The kernel form of `address`, as bytes."""
    cdef c.sockaddr_storage storage
    cdef c.socklen_t addrlen = 0
    encode_address(family, address, caller, &storage, &addrlen)
    return PyBytes_FromStringAndSize(<char *>&storage, addrlen)


def decode(bytes raw not None):
    """The Python form of the kernel's `raw`."""
    cdef c.sockaddr_storage storage
    load_raw(raw, &storage)
    return decode_address(&storage, len(raw))
