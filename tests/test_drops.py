"""Socket.drops against the kernel's own tables, past 32 bits, and beside SO_RXQ_OVFL."""

import errno
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path

import pytest
import test_faults
from conftest import Pair, needs_drop_counter

import fastsock
from fastsock import RecvBatch, Socket
from fastsock import _constants as k

injected = test_faults.injected
pytestmark = needs_drop_counter
OFFERED = fastsock.probe()


def table_entry(sock: Socket) -> int:
    """The drops column of /proc/net/udp or udp6."""
    name = "udp" if sock.family == socket.AF_INET else "udp6"
    inode = str(os.fstat(sock.fileno()).st_ino)
    for line in Path("/proc/net", name).read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] == inode:
            return int(fields[12])
    pytest.skip("/proc/net/udp does not show the socket")


def overflow(pair: Pair, segments: int = 1, size: int = 100, least: int = 50) -> int:
    """Send until `least` sends were dropped; returns how many sends there were of `segments` datagrams each."""
    pair.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    before, sends = pair.receiver.drops, 0
    while pair.receiver.drops < before + least:
        assert pair.sender.send_segments(bytes(segments * size), size) == segments * size
        sends += 1
        assert sends < 100_000
    return sends


def take_all(sock: Socket) -> int:
    got = 0
    sock.setblocking(False)
    try:
        while True:
            got += len(sock.recv_many())
    except BlockingIOError:
        return got


def test_right_at_once_and_what_the_kernel_says(udp_pair):
    receiver = udp_pair.receiver
    sends = 0
    assert receiver.drops == table_entry(receiver) == 0
    for _ in range(3):
        sends += overflow(udp_pair)
        # Nothing was received in between, as SO_RXQ_OVFL would need.
        assert receiver.drops == table_entry(receiver) == receiver.stats.drops
    drops = receiver.drops
    assert take_all(receiver) == sends - drops > 0
    assert receiver.drops == drops
    with receiver.dup() as copy:
        assert copy.drops == drops


@pytest.mark.skipif(not (OFFERED.gro and OFFERED.gso), reason="the kernel neither joins nor cuts datagrams")
def test_a_joined_message_that_is_dropped_counts_once(udp_pair):
    # A fact about the kernel that Socket.drops documents: __udp_enqueue_schedule_skb adds one.
    udp_pair.receiver.setsockopt(k.SOL_UDP, k.UDP_GRO, 1)
    sends = overflow(udp_pair, segments=10)
    got = take_all(udp_pair.receiver)
    assert got % 10 == 0
    assert got // 10 + udp_pair.receiver.drops == sends
    assert udp_pair.receiver.drops == table_entry(udp_pair.receiver)


def test_datagrams_that_the_kernel_cut_for_a_plain_receiver_count_each(udp_pair):
    sends = overflow(udp_pair, segments=10)
    assert take_all(udp_pair.receiver) + udp_pair.receiver.drops == 10 * sends


# --- SO_RXQ_OVFL, which lags ---------------------------------------------------------------------------


def test_the_drop_counter_says_where_in_the_stream(family, closing):
    receiver = closing(fastsock.bind_udp(family.address(), drop_counter=True))
    receiver.settimeout(10)
    sender = closing(fastsock.connect_udp(receiver.getsockname()))
    batch = RecvBatch(64)
    sender.send(b"none so far")
    _, ancdata, _, _ = receiver.recvmsg(100, 100)
    assert ancdata == []  # absent at zero
    overflow(Pair(receiver, sender))
    drops = receiver.drops
    while receiver.recv_batch(batch, socket.MSG_DONTWAIT) == 64:  # queued before anything was dropped
        assert set(batch.drop_counters) == {0}
    assert set(batch.drop_counters) == {0}
    sender.send(b"behind the gap")
    assert receiver.recv_batch(batch) == 1
    assert batch.drop_counters[0] == batch[0].drop_counter == drops
    sender.send(b"behind it still")
    _, ancdata, _, _ = receiver.recvmsg(100, 100)
    assert ancdata == [(socket.SOL_SOCKET, k.SO_RXQ_OVFL, struct.pack("I", drops))]


# --- what a kernel may do --------------------------------------------------------------------------------


def poke(drops: int, when: int) -> str:
    """A fault for strace: getsockopt number `when` reads SO_MEMINFO with these drops."""
    meminfo = bytes(32) + struct.pack("I", drops)
    return f"getsockopt:poke_exit=@arg4={meminfo.hex()}:when={when}"


@pytest.fixture
def can_poke() -> None:
    command = [shutil.which("strace") or "", "-qq", "-e", "trace=none", "-e", f"inject={poke(0, 1)}", "true"]
    if command[0] and subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this strace cannot write into a call's results (before 5.11)")


@pytest.mark.usefixtures("can_poke")
def test_the_counter_is_carried_past_32_bits(injected):
    # One reading in the middle says 2**32 - 2, the next says what there is: it went round.
    out = injected(
        poke(2**32 - 2, when=30),
        """
seen = [receiver.drops for _ in range(40)]
assert seen == sorted(seen), seen
print(*sorted(set(seen)))
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
for _ in range(1000):
    sender.send(b"x" * 100)
got = len(receiver.recv_many(1000))
assert receiver.drops == (1 << 32) + 1000 - got, receiver.drops
assert receiver.stats.drops == receiver.drops
with receiver.dup() as copy:        # which knows only what the kernel still does
    assert copy.drops == 1000 - got
""",
    )
    assert out.split() == ["0", str(2**32 - 2), str(2**32)]


def test_a_kernel_that_does_not_say(injected):
    out = injected(
        "getsockopt:error=ENOPROTOOPT",
        """
try:
    receiver.drops
except OSError as error:
    print(errno.errorcode[error.errno], receiver.stats.drops, bool(fastsock.probe().drop_counter))
""",
    )
    assert out.split() == ["ENOPROTOOPT", "None", "False"]


def test_an_emulator_that_takes_every_option_for_an_int(injected, can_poke):
    # The length comes back as 4: what lies behind it was never written.
    out = injected(
        "getsockopt:poke_exit=@arg5=04000000",
        """
try:
    print(receiver.drops)
except OSError as error:
    print(errno.errorcode[error.errno])
""",
    )
    assert out.split() == ["ENOPROTOOPT"]


def test_a_closed_socket_does_not_say(udp_pair):
    udp_pair.receiver.close()
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        _ = udp_pair.receiver.drops
    assert caught.value.errno == errno.EBADF
    assert udp_pair.receiver.stats.drops is None
