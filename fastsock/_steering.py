"""Which socket of an SO_REUSEPORT group a datagram goes to: classic BPF programs by name.

The programs are pure lists of instructions; _bpf encodes and attaches them. May import
_bpf, _socket and the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import operator

from fastsock._bpf import attach_reuseport, detach_reuseport, encode_program
from fastsock._socket import BaseSocket

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, jt, jf, k."""

# linux/bpf_common.h
BPF_LD, BPF_ALU, BPF_JMP, BPF_RET, BPF_MISC = 0x00, 0x04, 0x05, 0x06, 0x07
BPF_W, BPF_B, BPF_ABS = 0x00, 0x10, 0x20
BPF_MUL, BPF_RSH, BPF_MOD, BPF_XOR = 0x20, 0x70, 0x90, 0xA0
BPF_JA, BPF_JEQ = 0x00, 0x10
BPF_K, BPF_X, BPF_A = 0x00, 0x08, 0x10
BPF_TAX = 0x00

# linux/filter.h: what lies at a negative offset. A program of a reuseport group starts at
# the UDP payload (net/core/sock_reuseport.c, run_bpf_filter), so that the addresses are
# reached from the network header alone.
SKF_AD_OFF, SKF_AD_CPU, SKF_AD_RANDOM = -0x1000, 36, 56
SKF_NET_OFF = -0x100000


def load(offset: int, size: int = BPF_W) -> Instruction:
    return BPF_LD | size | BPF_ABS, 0, 0, offset & 0xFFFFFFFF


def alu(operation: int, k: int) -> Instruction:
    return BPF_ALU | operation | BPF_K, 0, 0, k


TAX: Instruction = (BPF_MISC | BPF_TAX, 0, 0, 0)
XOR_X: Instruction = (BPF_ALU | BPF_XOR | BPF_X, 0, 0, 0)


def modulo(size: int) -> list[Instruction]:
    """The end of every program: return A modulo `size`."""
    return [alu(BPF_MOD, size), (BPF_RET | BPF_A, 0, 0, 0)]


def steer_by_cpu(size: int) -> list[Instruction]:
    return [load(SKF_AD_OFF + SKF_AD_CPU), *modulo(size)]


def steer_at_random(size: int) -> list[Instruction]:
    return [load(SKF_AD_OFF + SKF_AD_RANDOM), *modulo(size)]


def steer_by_source(size: int) -> list[Instruction]:
    """A hash of the source address, by the header's version: a dual-stack socket hears both."""
    ipv4 = [load(SKF_NET_OFF + 12)]
    ipv6 = [load(SKF_NET_OFF + 8)]
    for word in (12, 16, 20):
        ipv6 += [alu(BPF_MUL, 0x9E3779B1), TAX, load(SKF_NET_OFF + word), XOR_X]
    # The finalizer of MurmurHash3: neighbouring addresses end up far apart.
    mix = [TAX, alu(BPF_RSH, 16), XOR_X, alu(BPF_MUL, 0x85EBCA6B)]
    mix += [TAX, alu(BPF_RSH, 13), XOR_X, alu(BPF_MUL, 0xC2B2AE35)]
    mix += [TAX, alu(BPF_RSH, 16), XOR_X]
    return [
        load(SKF_NET_OFF, BPF_B),
        alu(BPF_RSH, 4),
        (BPF_JMP | BPF_JEQ | BPF_K, len(ipv4) + 1, 0, 6),
        *ipv4,
        (BPF_JMP | BPF_JA, 0, 0, len(ipv6)),
        *ipv6,
        *mix,
        *modulo(size),
    ]


PROGRAMS = {"cpu": steer_by_cpu, "source": steer_by_source, "random": steer_at_random}
SIZE_MAX = 0xFFFF  # a group counts its sockets in 16 bits


def build_program(how: str, size: int) -> list[Instruction]:
    """The program that steers to one of `size` sockets; ValueError for one that cannot be."""
    if how == "round_robin":
        raise ValueError("a classic BPF program keeps no state, so it cannot go round; 'random' spreads as evenly")
    if how not in PROGRAMS:
        raise ValueError(f"steering must be one of {', '.join(map(repr, PROGRAMS))}, not {how!r}")
    if not 1 <= operator.index(size) <= SIZE_MAX:
        raise ValueError(f"a group has 1 to {SIZE_MAX} sockets, not {size}")
    return PROGRAMS[how](size)


def steer(sock: BaseSocket, how: str | None, size: int | None) -> None:
    """What Socket.steer does."""
    if how is None:
        with contextlib.suppress(FileNotFoundError):  # ENOENT: there was none
            detach_reuseport(sock.fileno())
        return
    if size is None:
        raise TypeError("steer() needs the size of the group")
    program = encode_program(build_program(how, size))
    try:
        attach_reuseport(sock.fileno(), program)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise OSError(errno.EINVAL, f"{error.strerror}: the socket was not bound with reuse_port") from None
        raise
