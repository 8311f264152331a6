"""Network namespaces for tests: what is made inside one stays there, and works from outside.

A socket belongs to the namespace of the thread that made it, so that one test holds both ends
of a link and needs no other process. Takes CAP_SYS_ADMIN and iproute2; ask `skip_unless_linked`.
"""

import array
import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

CLONE_NEWNET = 0x40000000
SIOCETHTOOL, ETHTOOL_STSO, ETHTOOL_SGRO = 0x8946, 0x1F, 0x2C  # linux/sockios.h, linux/ethtool.h
libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A fresh network namespace with its loopback device up; gone once it is closed and empty."""

    def __init__(self) -> None:
        with outside() as home:
            checked(libc.unshare(CLONE_NEWNET))
            try:
                self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
                self.ip("link set lo up")
                # 64 others of the same sender in between, as when it moves to another CPU, would
                # lose a datagram that came in fragments.
                self.sysctl("net/ipv4/ipfrag_max_dist", 0)
            finally:
                checked(libc.setns(home, CLONE_NEWNET))

    def close(self) -> None:
        os.close(self.fd)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread makes and reads is of the namespace."""
        with outside() as home:
            checked(libc.setns(self.fd, CLONE_NEWNET))
            try:
                yield
            finally:
                checked(libc.setns(home, CLONE_NEWNET))

    def ip(self, words: str) -> None:
        """Run ip(8) in it."""
        with self.entered():
            done = subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.returncode, f"ip {words}: {done.stderr.strip()}")

    def sysctl(self, name: str, value: int) -> None:
        with self.entered():
            Path("/proc/sys", name).write_text(str(value))

    def set_offload(self, device: str, command: int, on: bool) -> None:
        """As ``ethtool -K``; OSError where the device has no such offload."""
        value = array.array("I", [command, on])
        request = struct.pack("16sP", device.encode(), value.buffer_info()[0]).ljust(40, b"\0")
        with self.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, request)


@contextlib.contextmanager
def outside() -> Iterator[int]:
    """A descriptor of the namespace that this thread is in."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


class Link(NamedTuple):
    """A veth pair of MTU 1500: device `left` in one namespace and `right` in the other."""

    left: Namespace
    right: Namespace

    def join_datagrams(self) -> None:
        """Let `right` join what comes in (GRO), and wait 1 ms for more of it; OSError where it cannot.

        What a device that cuts TCP itself sent is not looked at (drivers/net/veth.c,
        veth_skb_is_eligible_for_gro).
        """
        self.left.set_offload("left", ETHTOOL_STSO, False)
        self.right.set_offload("right", ETHTOOL_SGRO, True)
        # sysfs shows the namespace that it was mounted in.
        script = "mount -t sysfs sysfs /sys && echo 1000000 >/sys/class/net/right/gro_flush_timeout"
        with self.right.entered():
            done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(done.returncode, done.stderr.strip())


LEFT = {socket.AF_INET: "10.77.0.1", socket.AF_INET6: "fd77::1"}
RIGHT = {socket.AF_INET: "10.77.0.2", socket.AF_INET6: "fd77::2"}


@contextlib.contextmanager
def linked() -> Iterator[Link]:
    """Two namespaces with a veth pair between them, both ends with an address of either family."""
    with contextlib.closing(Namespace()) as left, contextlib.closing(Namespace()) as right:
        left.ip(f"link add left type veth peer name right netns /proc/{os.getpid()}/fd/{right.fd}")
        for namespace, device, addresses in ((left, "left", LEFT), (right, "right", RIGHT)):
            namespace.ip(f"addr add {addresses[socket.AF_INET]}/24 dev {device}")
            with contextlib.suppress(OSError):  # no IPv6
                namespace.sysctl(f"net/ipv6/conf/{device}/accept_dad", 0)
            namespace.ip(f"link set {device} up")
            with contextlib.suppress(OSError):
                namespace.ip(f"addr add {addresses[socket.AF_INET6]}/64 dev {device} nodad")
        yield Link(left, right)


def skip_unless_linked() -> None:
    """Skip the test where no such pair can be made."""
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed")
    try:
        with linked():
            pass
    except OSError as error:
        pytest.skip(f"no namespaces with a link between them may be made here: {error}")
