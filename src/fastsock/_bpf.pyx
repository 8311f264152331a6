# Classic BPF programs in the kernel's form, and how they get to it. What they say is in
# fastsock/_steering.py. Imports _linux, and goes to the kernel only through _sys.
# See socket(7), linux/filter.h.

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memset
from fastsock cimport _linux as c
from fastsock._sys cimport sys_setsockopt


def encode_program(program):
    """The kernel's form of ``program``, (code, jt, jf, k) of each instruction, as bytes."""
    cdef c.sock_filter instruction
    cdef list parts = []
    memset(&instruction, 0, sizeof(instruction))
    for code, jt, jf, k in program:
        instruction.code = code
        instruction.jt = jt
        instruction.jf = jf
        instruction.k = k
        parts.append(PyBytes_FromStringAndSize(<char *>&instruction, sizeof(instruction)))
    return b"".join(parts)


def attach_reuseport(int fd, bytes program not None):
    """Let an encoded ``program`` choose the socket of fd's SO_REUSEPORT group. See socket(7)."""
    cdef c.sock_fprog fprog
    if <size_t>len(program) % sizeof(c.sock_filter):
        raise ValueError("a program is whole instructions")
    memset(&fprog, 0, sizeof(fprog))
    fprog.len = <size_t>len(program) // sizeof(c.sock_filter)
    fprog.filter = <c.sock_filter *><char *>program
    sys_setsockopt(fd, c.SOL_SOCKET, c.SO_ATTACH_REUSEPORT_CBPF, &fprog, sizeof(fprog))


def detach_reuseport(int fd):
    """Take the program off again. OSError (ENOENT) where there is none. See socket(7)."""
    cdef int unused = 0
    sys_setsockopt(fd, c.SOL_SOCKET, c.SO_DETACH_REUSEPORT_BPF, &unused, sizeof(unused))
