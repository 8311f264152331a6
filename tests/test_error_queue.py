"""The error queue: what a record says, and that one dead peer stops no call to another."""

import errno
import select
import socket

import pytest
from conftest import Family, drain, needs_ipv6

import fastsock
from fastsock import RecvBatch, SendBatch, Socket


@pytest.fixture
def dead(family: Family) -> tuple:
    """The address of a closed port."""
    with fastsock.bind_udp(family.address()) as sock:
        return sock.getsockname()


@pytest.fixture
def server(family, closing) -> Socket:
    """An unconnected socket with an error queue, which waits 10 s at most."""
    sock = closing(fastsock.bind_udp(family.address(), error_queue=True))
    sock.settimeout(10)
    return sock


@pytest.fixture
def client(family, closing) -> Socket:
    """A peer that lives."""
    sock = closing(fastsock.bind_udp(family.address()))
    sock.settimeout(10)
    return sock


def polled(sock) -> int:
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return dict(poll.poll(0)).get(sock.fileno(), 0)


# --- records ---------------------------------------------------------------------------------


def test_port_unreachable(server, dead, family):
    assert server.recv_errors() == []
    assert server.sendto(b"lost", dead) == 4
    assert polled(server) & select.POLLERR
    (record,) = server.recv_errors()
    assert record == fastsock.ErrorRecord(
        errno=errno.ECONNREFUSED,
        origin="icmp" if family.family == socket.AF_INET else "icmp6",
        type=3 if family.family == socket.AF_INET else 1,
        code=3 if family.family == socket.AF_INET else 4,
        address=dead,
        offender=family.host,
        mtu=None,
        payload=b"lost",
    )
    assert (record.ids, record.timestamp_ns, record.copied) == (None, None, False)
    assert polled(server) == 0
    assert server.recv_errors() == []


@needs_ipv6
def test_port_unreachable_of_an_ipv4_peer_of_an_ipv6_socket(closing):
    with fastsock.bind_udp(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    server = closing(fastsock.bind_udp(("::", 0), dualstack_ipv6=True, error_queue=True))
    server.sendto(b"lost", ("::ffff:127.0.0.1", port))
    (record,) = server.recv_errors()
    assert (record.errno, record.origin, record.type, record.code) == (errno.ECONNREFUSED, "icmp", 3, 3)
    assert record.address[:2] == ("::ffff:127.0.0.1", port)
    assert record.offender == "::ffff:127.0.0.1"
    assert record.payload == b"lost"
    # And its peer of the other family.
    with fastsock.bind_udp(("::1", 0)) as sock:
        port = sock.getsockname()[1]
    server.sendto(b"too", ("::1", port))
    (record,) = server.recv_errors()
    assert (record.origin, record.type, record.code, record.offender) == ("icmp6", 1, 4, "::1")


def test_records_keep_their_order_and_the_empty_payload(server, dead, family):
    payloads = [b"", b"1", b"2" * 100, b"3" * 1400]
    for payload in payloads:
        server.sendto(payload, dead)
    records = server.recv_errors()
    # The ICMP message quotes the datagram, and need not quote all of it.
    assert [record.payload[:100] for record in records] == [payload[:100] for payload in payloads]
    assert all(payload.startswith(record.payload) for record, payload in zip(records, payloads, strict=True))


@needs_ipv6
def test_a_local_error(closing):
    server = closing(fastsock.bind_udp(("::1", 0), error_queue=True))
    server.setsockopt(socket.IPPROTO_IPV6, 23, 2)  # IPV6_MTU_DISCOVER, IPV6_PMTUDISC_DO
    with pytest.raises(OSError, match="too long") as caught:
        server.sendto(bytes(65_500), server.getsockname())
    assert caught.value.errno == errno.EMSGSIZE
    (record,) = server.recv_errors()
    assert (record.errno, record.origin, record.mtu) == (errno.EMSGSIZE, "local", 65_536)
    assert server.sendto(bytes(65_400), server.getsockname()) == 65_400


def test_without_an_error_queue_nothing_is_recorded(closing, family, dead):
    sock = closing(fastsock.bind_udp(family.address()))
    sock.sendto(b"x", dead)
    assert sock.recv_errors() == []
    assert sock.sendto(b"x", dead) == 1  # and an unconnected socket hears nothing


def test_turned_on_and_off_by_setsockopt(family, closing, dead, client):
    sock = closing(fastsock.bind_udp(family.address()))
    option = (socket.IPPROTO_IP, 11) if family.family == socket.AF_INET else (socket.IPPROTO_IPV6, 25)
    sock.setsockopt(*option, 1)
    sock.sendto(b"x", dead)
    assert sock.sendto(b"y", client.getsockname()) == 1
    assert [record.errno for record in sock.recv_errors()] == [errno.ECONNREFUSED]
    sock.setsockopt(*option, 0)
    sock.sendto(b"x", dead)
    assert sock.recv_errors() == []


def test_recv_errors_never_waits_and_needs_an_open_socket(server):
    server.settimeout(None)
    assert server.recv_errors() == []
    server.close()
    with pytest.raises(OSError, match="Bad file") as caught:
        server.recv_errors()
    assert caught.value.errno == errno.EBADF


# --- an unconnected socket goes on -------------------------------------------------------------


def batch_to(address) -> SendBatch:
    batch = SendBatch()
    batch.append(b"1", address)
    batch.append(b"22", address)
    return batch


# Each sends to a peer that lives; what it returns.
SENDS = {
    "sendto": (lambda sock, to: sock.sendto(b"1", to), 1, [b"1"]),
    "sendto flags": (lambda sock, to: sock.sendto(b"1", 0, to), 1, [b"1"]),
    "sendto long": (lambda sock, to: sock.sendto(bytes(65_500), to), 65_500, [bytes(65_500)]),
    "sendmsg": (lambda sock, to: sock.sendmsg([b"1"], [], 0, to), 1, [b"1"]),
    "sendto_many one": (lambda sock, to: sock.sendto_many([b"1"], to), 1, [b"1"]),
    "sendto_many": (lambda sock, to: sock.sendto_many([b"1", b"22"], to), 2, [b"1", b"22"]),
    "sendto_many each": (lambda sock, to: sock.sendto_many([b"1", b"22"], [to, to]), 2, [b"1", b"22"]),
    "sendto_many joined": (lambda sock, to: sock.sendto_many([b"1"] * 3, to), 3, [b"1"] * 3),
    "sendto_many 65": (lambda sock, to: sock.sendto_many([b"1", b"22"] * 33, to), 66, [b"1", b"22"] * 33),
    "send_batch": (lambda sock, to: sock.send_batch(batch_to(to)), 2, [b"1", b"22"]),
    "send_segments": (lambda sock, to: sock.send_segments(b"1122", 2, to), 4, [b"11", b"22"]),
    "send_segments long": (lambda sock, to: sock.send_segments(bytes(70_000), 35_000, to), 70_000, [bytes(35_000)] * 2),
    "send_zerocopy": (lambda sock, to: sock.send_zerocopy(b"1122", to, segment_size=2), 4, [b"11", b"22"]),
}
if not fastsock.probe().zerocopy:
    del SENDS["send_zerocopy"]


@pytest.fixture(params=[None, 10, 0], ids=["blocking", "timeout", "nonblocking"])
def wait_s(request):
    return request.param


@pytest.mark.parametrize("send", SENDS)
def test_a_dead_peer_does_not_stop_a_send_to_another(server, client, dead, send, wait_s):
    call, result, expected = SENDS[send]
    server.settimeout(wait_s)
    for _ in range(2):
        server.sendto(b"lost", dead)
        server.sendto(b"lost too", dead)
        assert call(server, client.getsockname()) == result
        assert drain(client) == expected
    errors = [record for record in server.recv_errors() if record.origin != "zerocopy"]
    assert [record.payload for record in errors] == [b"lost", b"lost too"] * 2
    assert {record.address for record in errors} == {dead}
    assert server.stats.errors_discarded == 0


def receive_into(sock) -> list[bytes]:
    batch = RecvBatch()
    sock.recv_batch(batch)
    return batch.payloads()


RECEIVES = {
    "recv": lambda sock: [sock.recv(100)],
    "recv long": lambda sock: [sock.recv(100_000)],
    "recvfrom": lambda sock: [sock.recvfrom(100)[0]],
    "recvmsg": lambda sock: [sock.recvmsg(100, 100)[0]],
    "recv_many": lambda sock: sock.recv_many(),
    "recv_many 1000": lambda sock: sock.recv_many(1000),
    "recvfrom_many": lambda sock: [payload for payload, _ in sock.recvfrom_many()],
    "recv_batch": receive_into,
}


@pytest.mark.parametrize("receive", RECEIVES)
def test_a_dead_peer_does_not_stop_a_receive(server, client, dead, receive, wait_s):
    server.settimeout(wait_s)
    for _ in range(2):
        client.sendto(b"hello", server.getsockname())
        server.sendto(b"lost", dead)
        assert RECEIVES[receive](server) == [b"hello"]
    assert [record.payload for record in server.recv_errors()] == [b"lost"] * 2


@pytest.mark.parametrize("receive", RECEIVES)
def test_nothing_but_errors_is_nothing_to_receive(server, dead, receive):
    for timeout, error in ((0, BlockingIOError), (0.01, TimeoutError)):
        server.settimeout(timeout)
        server.sendto(b"lost", dead)
        with pytest.raises(error):
            RECEIVES[receive](server)
    assert [record.payload for record in server.recv_errors()] == [b"lost"] * 2


def test_dead_peers_among_others_in_one_call(server, client, family):
    with fastsock.bind_udp(family.address()) as one, fastsock.bind_udp(family.address()) as two:
        gone = [one.getsockname(), two.getsockname()]
    peers = [gone[0], client.getsockname(), gone[1], client.getsockname()] * 16
    payloads = [b"%d" % i for i in range(64)]
    assert server.sendto_many(payloads, peers) == 64
    batch = SendBatch()
    for payload, peer in zip(payloads, peers, strict=True):
        batch.append(payload, peer)
    assert server.send_batch(batch) == 64
    assert drain(client) == payloads[1::2] * 2
    assert [record.payload for record in server.recv_errors()] == payloads[::2] * 2


def test_more_dead_peers_than_a_call_retries(server, client, dead):
    # Every datagram is refused anew, and none of the refusals is the call's own.
    for _ in range(3):
        assert server.sendto_many([b"lost"] * 200, [dead] * 200) == 200
        assert server.sendto(b"x", client.getsockname()) == 1
    assert drain(client) == [b"x"] * 3
    assert len(server.recv_errors()) > 0


def test_records_are_kept_up_to_4096(server, client, dead):
    for _ in range(5000):
        server.sendto(b"lost", dead)
    records = server.recv_errors()
    # The one that the kernel still held is read beside those that were kept.
    assert 4096 <= len(records) <= 4097
    assert len(records) + server.stats.errors_discarded == 5000
    server.sendto(b"lost", dead)
    server.sendto(b"x", client.getsockname())
    assert len(server.recv_errors()) == 1
    assert len(records) + server.stats.errors_discarded == 5000


def test_a_thread_may_read_the_records_while_others_are_in_a_call(isolated):
    # A receive that was woken by an ICMP error found the queue empty, and raised the error.
    isolated("""
import threading
import fastsock
with fastsock.bind_udp(("127.0.0.1", 0)) as dead:
    peer = dead.getsockname()
with fastsock.bind_udp(("127.0.0.1", 0), error_queue=True) as sock:
    failures = []
    def receive():
        while True:
            try:
                if sock.recv_many() == [b"end"]:
                    return
            except OSError as error:
                failures.append(error)
    thread = threading.Thread(target=receive)
    thread.start()
    records = []
    for _ in range(20_000):
        sock.sendto(b"x", peer)
        records += sock.recv_errors()
    sock.sendto(b"end", sock.getsockname())
    thread.join(20)
    assert not failures, failures[:3]
    assert len(records + sock.recv_errors()) + sock.stats.errors_discarded == 20_000
""")


# --- a connected socket raises -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda sock: sock.send(b"x"),
        lambda sock: sock.sendall(b"x"),
        lambda sock: sock.sendmsg([b"x"]),
        lambda sock: sock.send_many([b"x"]),
        lambda sock: sock.send_many([b"x", b"yy"]),
        lambda sock: sock.send_many([b"x"] * 70),
        lambda sock: sock.sendto_many([b"x"] * 2, sock.getpeername()),
        lambda sock: sock.send_segments(b"xxx", 2),
        lambda sock: sock.recv(10),
        lambda sock: sock.recv_many(),
        lambda sock: sock.recv_batch(RecvBatch()),
        lambda sock: [sock.send_batch(batch) for batch in [batch_to(None)]],
    ],
)
@pytest.mark.parametrize("error_queue", [True, False])
def test_a_connected_socket_raises_once(closing, dead, call, error_queue):
    sock = closing(fastsock.connect_udp(dead, error_queue=error_queue))
    sock.settimeout(10)
    sock.send(b"lost")
    with pytest.raises(ConnectionRefusedError):
        call(sock)
    assert [record.payload for record in sock.recv_errors()] == [b"lost"] * error_queue
    assert sock.send(b"again") == 5  # told once
    assert len(sock.recv_errors()) == error_queue


def test_connected_meanwhile(server, client, dead):
    server.sendto(b"lost", dead)
    server.connect(client.getsockname())
    with pytest.raises(ConnectionRefusedError):
        server.send(b"x")
    assert server.send(b"x") == 1
    assert [record.payload for record in server.recv_errors()] == [b"lost"]


def test_a_refusal_of_a_send_is_no_matter_of_the_queue(server, dead):
    # Its own fault: raised, with the record of the dead peer kept.
    for _ in range(2):
        server.sendto(b"lost", dead)
        with pytest.raises(OSError, match="too long"):
            server.sendto(bytes(70_000), dead)
    assert [record.payload for record in server.recv_errors() if record.origin != "local"] == [b"lost"] * 2


def test_epoll_is_quiet_once_drained(server, dead, client):
    with select.epoll() as epoll:
        epoll.register(server.fileno(), select.EPOLLIN)
        server.sendto(b"lost", dead)
        assert epoll.poll(0)[0][1] & select.EPOLLERR
        # A send that comes upon the record takes it away, and the record is kept.
        assert server.sendto(b"x", client.getsockname()) == 1
        assert epoll.poll(0) == []
    assert len(server.recv_errors()) == 1
