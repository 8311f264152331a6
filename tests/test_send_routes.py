"""Sends that leave the machine: MTUs, routers, hosts that do not answer, and real back-pressure."""

import pytest
from conftest import needs, needs_large_buffers
from routes import run_hosts

PAIR = """
host("far")
join("here", "far", 1)
family, near_host, far_host = {
    4: (socket.AF_INET, "10.0.1.1", "10.0.1.2"), 6: (socket.AF_INET6, "fd00:1::1", "fd00:1::2"),
}[VERSION]
with at("far"):
    receiver = stack.enter_context(fastsock.bind_udp((far_host, 0)))
"""

ROUTER = """
host("router")
host("far")
join("here", "router", 1)
join("router", "far", 2, mtu=1300)
sysctl("router", "ipv4/ip_forward", 1)
sysctl("router", "ipv6/conf/all/forwarding", 1)
sysctl("router", "ipv4/icmp_ratelimit", 0)
sysctl("router", "ipv6/icmp/ratelimit", 0)
route("here", 2, (1, 2))
route("far", 1, (2, 1))
family, router_host, far_host = {
    4: (socket.AF_INET, "10.0.1.2", "10.0.2.2"), 6: (socket.AF_INET6, "fd00:1::2", "fd00:2::2"),
}[VERSION]
with at("far"):
    receiver = stack.enter_context(fastsock.bind_udp((far_host, 0)))
with fastsock.connect_udp(receiver.getsockname()) as first:      # every link address is known now
    first.send(b"x")
    assert drain(receiver, 1) == [b"x"]
def keep_whole(sock):
    '''IP_PMTUDISC_DO'''
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, 10, 2)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, 23, 2)
"""


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def run(request, isolated):
    return lambda script: run_hosts(isolated, f"VERSION = {request.param}\n{script.strip()}")


# --- segments and the MTU ------------------------------------------------------------------------------


def test_segments_below_the_mtu(run):
    run(
        PAIR
        + """
sender = stack.enter_context(fastsock.connect_udp(receiver.getsockname()))
payload = os.urandom(100_000)
for size in (1452, 1000, 1):
    part = payload[: size * 60 + size // 2]
    assert sender.send_segments(part, size) == len(part)
    assert b"".join(drain(receiver, -(-len(part) // size))) == part
assert sender.stats.gso_fallbacks == 0 and sender.gso
"""
    )


@pytest.mark.parametrize("call", ["send_many", "sendto_many", "send_batch", "send_segments", "send_zerocopy"])
@needs("zerocopy")
def test_segments_above_the_mtu_arrive_in_fragments(run, call):
    out = run(
        PAIR
        + f"""
sender = stack.enter_context(fastsock.connect_udp(receiver.getsockname()))
payloads = [bytes([i]) * 2000 for i in range(30)]
batch = SendBatch(30)
for payload in payloads:
    batch.append(payload)
send = dict(
    send_many=lambda: sender.send_many(payloads),
    sendto_many=lambda: sender.sendto_many(payloads, receiver.getsockname()),
    send_batch=lambda: sender.send_batch(batch),
    send_segments=lambda: sender.send_segments(b"".join(payloads), 2000) // 2000,
    send_zerocopy=lambda: sender.send_zerocopy(b"".join(payloads), segment_size=2000) // 2000,
)["{call}"]
for _ in range(2):
    assert send() == 30
    assert drain(receiver, 30) == payloads
print(sender.gso, sender.stats.gso_fallbacks, sender.stats.sent)
# What fits is still cut by the kernel.
assert sender.send_segments(bytes(14_000), 1400) == 14_000
assert drain(receiver, 10) == [bytes(1400)] * 10
wait_until(lambda: sender.recv_errors() or not sender.zerocopy_pending)
print(sender.stats.gso_fallbacks, sender.zerocopy_pending)
"""
    )
    assert out.split() == ["True", "1", "60", "1", "0"]


def test_what_must_not_be_fragmented_is_refused(run):
    out = run(
        ROUTER
        + """
sender = stack.enter_context(fastsock.connect_udp(receiver.getsockname(), error_queue=True))
keep_whole(sender)
for call in (
    lambda: sender.send(bytes(2000)),
    lambda: sender.send_many([bytes(2000)] * 3),
    lambda: sender.send_segments(bytes(6000), 2000),
):
    try:
        call()
    except OSError as error:
        records = sender.recv_errors()
        print(errno.errorcode[error.errno], {(r.errno == errno.EMSGSIZE, r.origin, r.mtu) for r in records})
assert sender.gso and sender.stats.sent == sender.stats.gso_fallbacks == 0
"""
    )
    assert out.splitlines() == ["EMSGSIZE {(True, 'local', 1500)}"] * 3


# --- routers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connected", [True, False])
def test_a_router_says_its_mtu(run, connected):
    out = run(
        ROUTER
        + f"""
if {connected}:
    sender = stack.enter_context(fastsock.connect_udp(receiver.getsockname(), error_queue=True))
else:
    sender = stack.enter_context(fastsock.bind_udp(("", 0), family=family, error_queue=True))
keep_whole(sender)
peer = receiver.getsockname()
assert sender.sendto(bytes(1400), peer) == 1400
records = []
wait_until(lambda: records.extend(sender.recv_errors()) or records)
(record,) = records
assert record.errno == errno.EMSGSIZE
assert record.origin == ("icmp" if family == socket.AF_INET else "icmp6")
assert record.offender == router_host and record.address == peer and record.mtu == 1300, record
assert bytes(1400).startswith(record.payload)
# Now it is known, and the next one never leaves.
try:
    sender.sendto(bytes(1400), peer)
except OSError as error:
    assert error.errno == errno.EMSGSIZE
(record,) = sender.recv_errors()
assert (record.errno, record.origin, record.mtu) == (errno.EMSGSIZE, "local", 1300), record
# Segments that fit go; those that do not are refused, whole and by themselves.
assert sender.send_segments(bytes(12_000), 1200, peer) == 12_000
assert drain(receiver, 10) == [bytes(1200)] * 10
try:
    sender.send_segments(bytes(12_800), 1280, peer)
except OSError as error:
    print(errno.errorcode[error.errno], sender.gso, sender.stats.gso_fallbacks)
assert {{record.mtu for record in sender.recv_errors()}} == {{1300}}
"""
    )
    assert out.split() == ["EMSGSIZE", "True", "0"]


def test_no_route_behind_a_router(run):
    # The router answers for the dead host; the socket goes on serving the one that lives.
    run(
        ROUTER
        + """
ip("router", "route", "add", "unreachable", "10.0.3.0/24")
ip("router", "-6", "route", "add", "unreachable", "fd00:3::/64")
route("here", 3, (1, 2))
nobody = ("10.0.3.9" if family == socket.AF_INET else "fd00:3::9", 53)
sender = stack.enter_context(fastsock.bind_udp(("", 0), family=family, error_queue=True))
sender.settimeout(10)
alive = receiver.getsockname()
records = []
for i in range(3):
    sender.sendto(b"lost", nobody)
    # Met by whatever call comes next, or by the one behind it.
    assert sender.sendto_many([b"%d" % i, b"more"], alive) == 2
wait_until(lambda: records.extend(sender.recv_errors()) or len(records) >= 3)
assert drain(receiver, 6) == [b"0", b"more", b"1", b"more", b"2", b"more"]
for record in records:
    assert record.offender == router_host and record.address[:2] == nobody and record.payload == b"lost", record
    assert record[:4] == (
        (errno.EHOSTUNREACH, "icmp", 3, 1) if family == socket.AF_INET else (errno.ENETUNREACH, "icmp6", 1, 0)
    ), record
"""
    )


def test_no_route_at_all(run):
    out = run(
        PAIR
        + """
nobody = ("10.0.9.9" if family == socket.AF_INET else "fd00:9::9", 53)
sender = stack.enter_context(Socket(family, socket.SOCK_DGRAM))
alive = receiver.getsockname()
payloads, peers = [b"1", b"2", b"3", b"4"], [alive, nobody, alive, alive]
assert sender.sendto_many(payloads, peers) == 1
for _ in range(2):
    try:
        sender.sendto_many(payloads[1:], peers[1:])
    except OSError as error:
        print(errno.errorcode[error.errno])
assert sender.sendto_many(payloads[2:], peers[2:]) == 2
assert drain(receiver, 3) == [b"1", b"3", b"4"]
"""
    )
    assert out.split() == ["ENETUNREACH"] * 2


# --- back-pressure: the link address of the next host is not known yet ------------------------------------
# Datagrams wait for it at the device, and count against SO_SNDBUF; then all of them go.

UNKNOWN = """
host("far")
join("here", "far", 1)
ip("far", "link", "set", "v1b", "arp", "off")
sysctl("", "ipv4/neigh/v1a/retrans_time_ms", 600_000)
sysctl("", "ipv4/neigh/v1a/unres_qlen_bytes", 64 << 20)
with at("far"):
    receiver = stack.enter_context(fastsock.bind_udp(("10.0.1.2", 0), rcvbuf=32 << 20))
link = subprocess.run(
    ["nsenter", "-t", str(processes["far"]), "-n", "ip", "-br", "link", "show", "v1b"],
    capture_output=True, text=True, check=True,
).stdout.split()[2]
def become_known():
    ip("", "neighbour", "replace", "10.0.1.2", "lladdr", link, "dev", "v1a", "nud", "permanent")
def become_unknown():
    ip("", "neighbour", "delete", "10.0.1.2", "dev", "v1a")
try:
    become_known()
    become_unknown()
except subprocess.CalledProcessError as error:
    print("neighbours cannot be set here:", error)
    sys.exit(77)
sender = stack.enter_context(fastsock.connect_udp(receiver.getsockname()))
sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
"""


@needs_large_buffers
@pytest.mark.parametrize("wait_s", ["0", "0.01"])
@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("call", ["send_many", "sendto_many", "send_batch", "cut", "send_segments", "send_zerocopy"])
def test_a_full_send_buffer(isolated, call, gso, wait_s):
    # Follow the count until all is sent: every datagram once, and in order.
    out = run_hosts(
        isolated,
        UNKNOWN
        + f"""
sender.gso = {gso}
sender.settimeout({wait_s})
expected = [b"%04d" % i * 100 for i in range(1000)]
whole = b"".join(expected)
batch = SendBatch(1000, 20_000)
for at_once in range(0, 1000, 50 if "{call}" == "cut" else 1):
    batch.append(whole[at_once * 400 :][:20_000 if "{call}" == "cut" else 400], segment_size=400)
done = 0
def send():
    if "{call}" == "send_many":
        return sender.send_many(expected[done:])
    if "{call}" == "sendto_many":
        return sender.sendto_many(expected[done:], receiver.getsockname())
    if "{call}" in ("send_batch", "cut"):
        return sender.send_batch(batch)
    nbytes = getattr(sender, "{call}")(memoryview(whole)[done * 400 :], segment_size=400)
    assert nbytes % 400 == 0
    return nbytes // 400
rounds = refusals = 0
found = []
while len(found) < 1000:
    become_unknown() if rounds else None
    before = sender.stats.sent
    while done < len(expected):
        try:
            sent = send()
        except (BlockingIOError, TimeoutError):
            refusals += 1
            break
        if "{call}" == "cut":
            done = sender.stats.sent
            if not batch.unsent:
                break
        else:
            assert sent == sender.stats.sent - done, (sent, done)
            done += sent
    become_known()
    found += drain(receiver, sender.stats.sent - len(found))
    assert found == expected[: len(found)]
    rounds += 1
assert rounds > 1 and refusals > 0
assert sender.gso == {gso} and sender.stats.gso_fallbacks == 0
wait_until(lambda: sender.recv_errors() or not sender.zerocopy_pending)
print(len(found), sender.stats.sent, batch.unsent if "{call}" in ("send_batch", "cut") else 0)
""",
    )
    assert out.split() == ["1000", "1000", "0"]


@needs_large_buffers
def test_a_blocking_send_waits_for_room(isolated):
    run_hosts(
        isolated,
        UNKNOWN
        + """
import threading
payload = b"".join(b"%04d" % i * 100 for i in range(1000))
results = []
thread = threading.Thread(target=lambda: results.append(sender.send_segments(payload, 400)))
thread.start()
def queued():
    with open("/proc/net/udp") as table:
        return sum(int(line.split()[4].split(":")[0], 16) for line in table.readlines()[1:])
wait_until(lambda: queued() >= 50_000)
assert not results and sender.stats.sent == 0
become_known()
thread.join(20)
assert results == [len(payload)]
assert b"".join(drain(receiver, 1000)) == payload
""",
    )


@needs_large_buffers
@needs("zerocopy")
def test_zero_copy_holds_what_has_not_left(isolated):
    out = run_hosts(
        isolated,
        UNKNOWN
        + """
payload = bytearray(os.urandom(12_000))
assert sender.send_zerocopy(payload, segment_size=1000) == 12_000
print(sender.recv_errors(), sender.zerocopy_pending)
try:
    payload.append(0)
except BufferError:
    print("held")
become_known()
assert b"".join(drain(receiver, 12)) == payload
records = []
wait_until(lambda: records.extend(sender.recv_errors()) or not sender.zerocopy_pending)
print([record.ids for record in records])
payload.append(0)
# Closed while it waits: let go of, and the kernel has what it needs.
become_unknown()
other = fastsock.connect_udp(receiver.getsockname())
del payload[-1]
assert other.send_zerocopy(payload, segment_size=1000) == 12_000
other.close()
payload.append(0)
become_known()
assert len(drain(receiver, 12)) == 12
""",
    )
    assert out.splitlines() == ["[] 1", "held", "[range(0, 1)]"]


@needs_large_buffers
def test_a_batch_stops_inside_a_payload_that_goes_in_single_segments(isolated):
    # Refused above the MTU, it goes one by one, and the send buffer is full in the middle of it.
    run_hosts(
        isolated,
        UNKNOWN
        + """
sender.settimeout(0)
batch = SendBatch(4, 60_000)
expected = []
for i in range(4):
    segments = [b"%02d%02d" % (i, j) * 400 for j in range(30)]
    batch.append(b"".join(segments), segment_size=1600)
    expected += segments
found, inside, refusals = [], 0, 0
while batch.unsent:
    if found:
        become_unknown()
    try:
        while batch.unsent:
            sender.send_batch(batch)
            inside += sender.stats.sent % 30 != 0
    except BlockingIOError:
        refusals += 1
    become_known()
    found += drain(receiver, sender.stats.sent - len(found))
    assert found == expected[: len(found)]
assert len(found) == 120 and inside > 0 and refusals > 0 and sender.gso
""",
    )
