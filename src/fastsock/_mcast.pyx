# The multicast options' structures, laid out by the compiler, and the addresses of the
# interfaces. What they are used for is in fastsock/_multicast.py. Imports _linux and
# _sockaddr, and goes to the kernel only through _sys. See ip(7), ipv6(7).

import os

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset
from fastsock cimport _linux as c
from fastsock._sockaddr cimport decode_address, encode_address
from fastsock._sys cimport sys_getifaddrs


def encode_group_req(int family, unsigned int index, str group not None):
    """struct group_req, as bytes, of an interface's index and a group in digits."""
    cdef c.group_req req
    cdef c.socklen_t addrlen = 0
    memset(&req, 0, sizeof(req))
    req.gr_interface = index
    encode_address(family, (group, 0), "group_req", &req.gr_group, &addrlen)
    return PyBytes_FromStringAndSize(<char *>&req, sizeof(req))


def encode_group_source_req(int family, unsigned int index, str group not None, str source not None):
    """struct group_source_req, as bytes, of the same and a source in digits."""
    cdef c.group_source_req req
    cdef c.socklen_t addrlen = 0
    memset(&req, 0, sizeof(req))
    req.gsr_interface = index
    encode_address(family, (group, 0), "group_source_req", &req.gsr_group, &addrlen)
    encode_address(family, (source, 0), "group_source_req", &req.gsr_source, &addrlen)
    return PyBytes_FromStringAndSize(<char *>&req, sizeof(req))


def encode_ip_mreqn(int index):
    """struct ip_mreqn, as bytes, of an interface's index: what IP_MULTICAST_IF takes."""
    cdef c.ip_mreqn req
    memset(&req, 0, sizeof(req))
    req.imr_ifindex = index
    return PyBytes_FromStringAndSize(<char *>&req, sizeof(req))


def interface_addresses():
    """(interface, address) for every IPv4 and IPv6 address of this machine. See getifaddrs(3)."""
    cdef c.ifaddrs *first = NULL
    cdef c.ifaddrs *each
    cdef c.sockaddr_storage storage     # ifa_addr is aligned for less
    cdef size_t addrlen
    cdef list found = []
    sys_getifaddrs(&first)
    try:
        each = first
        while each != NULL:
            addrlen = 0
            if each.ifa_addr != NULL:   # NULL without an address, as for a tunnel
                if each.ifa_addr.sa_family == c.AF_INET:
                    addrlen = sizeof(c.sockaddr_in)
                elif each.ifa_addr.sa_family == c.AF_INET6:
                    addrlen = sizeof(c.sockaddr_in6)
            if addrlen:
                memcpy(&storage, each.ifa_addr, addrlen)
                found.append((os.fsdecode(<bytes>each.ifa_name), decode_address(&storage, addrlen)[0]))
            each = each.ifa_next
    finally:
        c.freeifaddrs(first)
    return found
