"""Options that are set behind or beside bind_udp: what a Socket learns of them, and does."""

import socket
import struct
import threading

import pytest
from conftest import needs

import fastsock
from fastsock import _constants as k
from fastsock._gso import max_segments

needs_gso = pytest.mark.skipif(max_segments() == 1, reason="no UDP GSO here")
UDP_CORK = 1  # linux/udp.h


def sizes(sock: fastsock.Socket, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        found += map(len, sock.recv_many())
    return found


# --- what must not be sent as one -------------------------------------------------------------


@needs_gso
def test_more_and_cork_append_as_without_gso(udp_pair):
    receiver, sender = udp_pair
    sender.send_many([b"a" * 10] * 3, socket.MSG_MORE)
    sender.send(b"z")
    assert sizes(receiver, 1) == [31]
    sender.setsockopt(k.SOL_UDP, UDP_CORK, 1)
    assert not sender.gso
    sender.send_many([b"a" * 10] * 3)
    sender.setsockopt(k.SOL_UDP, UDP_CORK, 0)
    assert sizes(receiver, 1) == [30]
    assert sender.gso


@needs_gso
def test_the_sockets_own_segment_size_stays_its_own(udp_pair):
    receiver, sender = udp_pair
    sender.setsockopt(k.SOL_UDP, k.UDP_SEGMENT, 500)
    assert not sender.gso
    assert sender.send_many([b"x" * 700] * 2) == 2
    assert sizes(receiver, 4) == [500, 200, 500, 200]


@needs_gso
@needs("transmit_timestamps")
def test_transmit_timestamps_by_setsockopt_are_one_each(udp_pair, wait_for):
    sender = udp_pair.sender
    flags = k.SOF_TIMESTAMPING_TX_SOFTWARE | k.SOF_TIMESTAMPING_SOFTWARE | k.SOF_TIMESTAMPING_OPT_ID
    sender.setsockopt(socket.SOL_SOCKET, k.SO_TIMESTAMPING, flags | k.SOF_TIMESTAMPING_OPT_TSONLY)
    assert not sender.gso
    sender.send_many([b"x"] * 5)
    records = []
    wait_for(lambda: records.extend(sender.recv_errors()) or len(records) == 5)


# --- what is recorded -----------------------------------------------------------------------------


@needs("timestamps")
def test_timestamps_that_another_option_replaces_are_not_promised(closing):
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0), timestamps=True))
    sock.settimeout(10)
    sock.setsockopt(socket.SOL_SOCKET, 29, 1)  # SO_TIMESTAMP: microseconds, in place of SO_TIMESTAMPNS
    if sock.getsockopt(socket.SOL_SOCKET, k.SO_TIMESTAMPNS):
        pytest.skip("this kernel keeps both")
    sock.sendto(b"x", sock.getsockname())
    batch = fastsock.RecvBatch()
    sock.recv_batch(batch)
    with pytest.raises(ValueError, match="timestamps"):
        _ = batch.timestamps_ns


def test_pktinfo_of_ipv4_on_a_dual_stack_socket(closing):
    try:
        sock = closing(fastsock.bind_udp(("::", 0), dualstack_ipv6=True))
    except OSError:
        pytest.skip("no dual-stack sockets here")
    sock.settimeout(10)
    sock.setsockopt(socket.IPPROTO_IP, k.IP_PKTINFO, 1)
    sender = closing(fastsock.connect_udp(("127.0.0.1", sock.getsockname()[1])))
    sender.send(b"x")
    batch = fastsock.RecvBatch()
    sock.recv_batch(batch)
    assert batch[0].local_address == "127.0.0.1"


# --- the error queue ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_recv_errors_takes_no_datagram_of_a_unix_socket(unix_pair, kind):
    ours, theirs = unix_pair(kind)
    theirs.send(b"precious")
    assert ours.recv_errors() == []
    assert ours.recv(100) == b"precious"
    theirs.close()
    assert ours.recv_errors() == []  # and does not read the end of the file for ever


def test_recv_errors_of_a_closed_socket():
    sock = fastsock.bind_udp(("127.0.0.1", 0))
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        sock.recv_errors()
    assert fastsock.Socket.__new__(fastsock.Socket).zerocopy_pending == 0


@pytest.fixture
def dead(family, closing):
    """An address where nobody listens."""
    with fastsock.bind_udp(family.address()) as sock:
        return sock.getsockname()


@pytest.mark.parametrize("timeout", [5.0, None])
def test_a_connected_socket_hears_of_its_dead_peer_while_it_waits(dead, closing, timeout):
    sock = closing(fastsock.connect_udp(dead, error_queue=True))
    sock.settimeout(timeout)
    thread = threading.Timer(0.05, lambda: sock.sendto(b"x", dead))
    thread.start()
    try:
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
    finally:
        thread.join()
    assert [record.address for record in sock.recv_errors()] == [dead]


def test_zero_copy_hears_of_a_dead_peer(dead, closing, wait_for):
    sock = closing(fastsock.connect_udp(dead, error_queue=True))
    sock.settimeout(5)
    try:
        sock.send_zerocopy(b"x" * 100)
    except OSError as error:
        pytest.skip(f"no zero-copy here: {error}")

    def refused():
        try:
            sock.send_zerocopy(b"x" * 100)
        except ConnectionRefusedError:
            return True
        return False

    wait_for(refused)


def test_a_timed_recvmsg_of_the_error_queue_gets_its_record(dead, family, closing):
    sock = closing(fastsock.bind_udp(family.address(), error_queue=True))
    sock.settimeout(5)
    thread = threading.Timer(0.05, lambda: sock.sendto(b"gone", dead))
    thread.start()
    try:
        payload, ancdata, flags, address = sock.recvmsg(100, 512, socket.MSG_ERRQUEUE)
    finally:
        thread.join()
    assert (payload, address) == (b"gone", dead)
    assert ancdata
    assert flags & socket.MSG_ERRQUEUE
    assert sock.recv_errors() == []


# --- zero-copy numbers -----------------------------------------------------------------------------------


@pytest.fixture
def zero_copy(udp_pair):
    """A pair whose sender has sent without a copy, and knows that it is done."""
    try:
        udp_pair.sender.send_zerocopy(b"x" * 100)
    except OSError as error:
        pytest.skip(f"no zero-copy here: {error}")
    return udp_pair


def test_a_plain_send_cannot_upset_the_numbers(zero_copy):
    sender, peer = zero_copy.sender, zero_copy.receiver.getsockname()
    calls = (
        lambda: sender.send(b"x", k.MSG_ZEROCOPY),
        lambda: sender.sendall(b"x", k.MSG_ZEROCOPY),
        lambda: sender.sendto(b"x", k.MSG_ZEROCOPY, peer),
        lambda: sender.sendmsg([b"x"], [], k.MSG_ZEROCOPY),
    )
    for call in calls:
        with pytest.raises(ValueError, match="MSG_ZEROCOPY"):
            call()
    assert sender.send_zerocopy(b"y") == 1


def test_numbers_that_others_may_have_used_are_refused(zero_copy, closing):
    copy = closing(zero_copy.sender.dup())
    with pytest.raises(OSError, match="SO_ZEROCOPY was switched on elsewhere"):
        copy.send_zerocopy(b"x")
    fresh = closing(fastsock.connect_udp(zero_copy.receiver.getsockname()))
    fresh.setsockopt(socket.SOL_SOCKET, k.SO_ZEROCOPY, 1)
    with pytest.raises(OSError, match="SO_ZEROCOPY was switched on elsewhere"):
        fresh.send_zerocopy(b"x")


def test_zero_copy_on_a_stream_changes_nothing():
    with fastsock.Socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        with pytest.raises(OSError, match="datagram"):
            sock.send_zerocopy(b"x")
        assert sock.getsockopt(socket.SOL_SOCKET, k.SO_ZEROCOPY) == 0


def test_a_completion_that_recvmsg_takes_lets_go_too(zero_copy, wait_for):
    sender = zero_copy.sender
    wait_for(lambda: sender.recv_errors() or sender.zerocopy_pending == 0)
    sender.send_zerocopy(b"x" * 100)
    sender.settimeout(5)
    _, ancdata, _, _ = sender.recvmsg(0, 512, socket.MSG_ERRQUEUE)
    assert sender.zerocopy_pending == 0
    assert struct.unpack_from("=IBBBBII", ancdata[0][2])[1] == 5  # SO_EE_ORIGIN_ZEROCOPY


# --- what a second look found -------------------------------------------------------------------------------


def test_a_full_receive_buffer_leaves_no_room_for_a_record_and_stops_nobody(family, dead, closing):
    healthy = closing(fastsock.bind_udp(family.address()))
    healthy.settimeout(10)
    sock = closing(fastsock.bind_udp(family.address(), error_queue=True, rcvbuf=4096))
    sock.settimeout(10)
    flood = closing(fastsock.connect_udp(sock.getsockname()))
    for _ in range(200):
        flood.send(b"z" * 500)
    for _ in range(5):
        sock.sendto(b"lost", dead)
        assert sock.sendto_many([b"kept"] * 3, healthy.getsockname()) == 3
        assert sizes(healthy, 3) == [4, 4, 4]
    sock.sendto(b"lost", dead)
    assert sock.recv_many()
    assert sock.stats.errors_discarded + len(sock.recv_errors()) >= 1


def test_an_earlier_refusal_comes_before_that_of_the_datagram(dead, closing):
    sock = closing(fastsock.connect_udp(dead, error_queue=True))
    sock.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        sock.send(b"x" * 70_000)
    with pytest.raises(OSError, match="Message too long"):
        sock.send(b"x" * 70_000)


@pytest.mark.parametrize("call", ["recv_many", "recvfrom_many"])
def test_the_error_queue_is_not_received_as_datagrams(udp_pair, call):
    with pytest.raises(ValueError, match="recv_errors"):
        getattr(udp_pair.receiver, call)(flags=socket.MSG_ERRQUEUE)
    with pytest.raises(ValueError, match="recv_errors"):
        udp_pair.receiver.recv_batch(fastsock.RecvBatch(), socket.MSG_ERRQUEUE)


@needs_gso
def test_a_duplicate_wants_gso_as_the_original_does(udp_pair, closing):
    sender = udp_pair.sender
    sender.setsockopt(k.SOL_UDP, UDP_CORK, 1)
    copy = closing(sender.dup())
    assert not copy.gso
    copy.setsockopt(k.SOL_UDP, UDP_CORK, 0)
    assert copy.gso
    sender.gso = False
    assert not closing(sender.dup()).gso


def test_segments_do_not_go_with_more(udp_pair):
    with pytest.raises(ValueError, match="MSG_MORE"):
        udp_pair.sender.send_segments(b"x" * 10, 5, None, socket.MSG_MORE)


def test_a_group_on_a_unicast_address_is_refused():
    with pytest.raises(ValueError, match="hears no group"):
        fastsock.bind_udp(("127.0.0.1", 0), multicast=("239.1.1.1", "lo"))
