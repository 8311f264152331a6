"""Scripts with several hosts: network namespaces joined by veth pairs, in one process.

A socket stays in the namespace that it was made in, so one script can be every host. It runs
in a namespace of its own, which is the first host; what it makes ends with it.
"""

import functools
import shutil
import subprocess
from collections.abc import Callable

import pytest

HOSTS = """
import contextlib, ctypes, errno, os, socket, subprocess, sys, time
import fastsock
from fastsock import RecvBatch, SendBatch, Socket

libc = ctypes.CDLL(None, use_errno=True)
stack = contextlib.ExitStack()
processes = {}

def host(name):
    '''Make another host.'''
    holder = stack.enter_context(subprocess.Popen(
        ["unshare", "-n", "sh", "-c", "ip link set lo up && echo up && exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ))
    assert holder.stdout.readline() == b"up\\n"
    processes[name] = holder.pid
    never_give_up_fragments(name)

@contextlib.contextmanager
def at(name):
    '''What is opened here belongs to that host.'''
    with open("/proc/self/ns/net") as home, open(f"/proc/{processes[name]}/ns/net") as there:
        assert libc.setns(there.fileno(), 0) == 0, ctypes.get_errno()
        try:
            yield
        finally:
            assert libc.setns(home.fileno(), 0) == 0

def ip(name, *command):
    enter = ["nsenter", "-t", str(processes[name]), "-n"] if name in processes else []
    subprocess.run([*enter, "ip", *command], check=True)

def join(one, two, net, mtu=1500):
    '''A cable: 10.0.net.1 and fd00:net::1 at one end, .2 and ::2 at the other.'''
    ends = f"v{net}a", f"v{net}b"
    ip("", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
    for number, (name, end) in enumerate(zip((one, two), ends), 1):
        if name in processes:
            ip("", "link", "set", end, "netns", str(processes[name]))
        ip(name, "link", "set", end, "mtu", str(mtu), "up")
        ip(name, "address", "add", f"10.0.{net}.{number}/24", "dev", end)
        ip(name, "address", "add", f"fd00:{net}::{number}/64", "dev", end, "nodad")

def route(name, net, via):
    ip(name, "route", "add", f"10.0.{net}.0/24", "via", f"10.0.{via[0]}.{via[1]}")
    ip(name, "route", "add", f"fd00:{net}::/64", "via", f"fd00:{via[0]}::{via[1]}")

def sysctl(name, path, value):
    with at(name) if name in processes else contextlib.nullcontext():
        with open(f"/proc/sys/net/{path}", "w") as file:
            file.write(str(value))

def drain(sock, count):
    '''So many datagrams, and no more.'''
    sock.settimeout(10)
    found = []
    while len(found) < count:
        found += sock.recv_many(1000)
    sock.settimeout(0)
    try:
        found += sock.recv_many(1000)
    except BlockingIOError:
        pass
    return found

def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)

def never_give_up_fragments(name):
    # 64 others of the same sender in between, as when it moves to another CPU, would lose a datagram.
    sysctl(name, "ipv4/ipfrag_max_dist", 0)

ip("", "link", "set", "lo", "up")
never_give_up_fragments("")
"""


@functools.cache
def entering() -> tuple[str, ...]:
    """A command line that runs the rest in a namespace where more can be made; () for none."""
    if all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        for enter in (("unshare", "-n"), ("unshare", "-r", "-n")):
            tried = subprocess.run(
                [*enter, "unshare", "-n", "sh", "-c", "ip link add v type veth peer name w"],
                capture_output=True, check=False,
            )  # fmt: skip
            if tried.returncode == 0:
                return enter
    return ()


def run_hosts(isolated: Callable[..., str], script: str) -> str:
    """Run a script that begins with HOSTS; skips where no namespaces can be made."""
    if not entering():
        pytest.skip("no network namespaces may be joined here (unshare -n, veth)")
    body = "".join(f"    {line}\n" for line in script.strip().splitlines())
    return isolated(HOSTS + "with stack:\n" + body, before=entering())
