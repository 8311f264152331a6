"""Segmentation as the kernel sees it: how many calls and messages a send takes, and what is asked for."""

import re

import pytest
from tracing import trace, trace_pair

import fastsock

pytestmark = pytest.mark.skipif(not fastsock.probe().gso, reason="UDP_SEGMENT is Linux 4.18")

# (what is sent, calls, messages, of which segmented); the probe's own sendmsg is not counted.
SENDS = [
    ("sender.send_many([b'x' * 100] * 40)", 1, 1, 1),
    ("sender.send_many([b'x' * 100] * 40 + [b'y'])", 1, 1, 1),
    ("sender.send_many([b'x' * 100] * 64 + [b'y' * 200] * 5)", 1, 2, 2),
    ("sender.send_many([b'', b''])", 1, 2, 0),
    ("sender.send_many([b'x'])", 1, 1, 0),
    ("sender.send_many([b'x', b'yy', b'zzz'])", 1, 3, 0),
    ("sender.send_many([b'x' * 1400] * 100)", 1, 3, 3),
    ("sender.sendto_many([b'x' * 100] * 40, receiver.getsockname())", 1, 1, 1),
    ("sender.sendto_many([b'x' * 100] * 40, [receiver.getsockname()] * 40)", 1, 1, 1),
    ("sender.send_batch(in_batch([b'x' * 100] * 40))", 1, 1, 1),
    ("sender.send_batch(in_batch([b'x' * 100] * 40, ecn=1))", 1, 1, 1),
    ("sender.send_batch(in_batch([b'x' * 100] * 4, segment_size=10))", 1, 4, 4),
    ("sender.send_segments(b'x' * 4000, 100)", 1, 1, 1),
    ("sender.send_segments(b'x' * 100, 100)", 1, 1, 0),
    ("sender.send_segments(b'x' * 130_000, 1000)", 1, 2, 2),
    ("sender.send_segments(b'', 100)", 0, 0, 0),
]


def messages(calls) -> int:
    return sum(call.result if call.name == "sendmmsg" else 1 for call in calls)


@pytest.mark.parametrize(("send", "count", "of_messages", "segmented"), SENDS)
def test_runs_are_one_message(send, count, of_messages, segmented):
    calls = trace_pair(f"sender.gso\n{send}").named("sendmsg", "sendmmsg")[1:]
    assert len(calls) == count
    assert messages(calls) == of_messages
    assert sum(call.segmented for call in calls) == segmented


@pytest.mark.parametrize(
    ("script", "variables"),
    [
        ("sender.gso = False", {}),
        ("assert not sender.gso and fastsock._gso.max_segments() == 1", {"FASTSOCK_GSO": "0"}),
        ("sender.gso = True\nassert not sender.gso", {"FASTSOCK_GSO": "0"}),
    ],
)
def test_switched_off_every_datagram_is_its_own_message(script, variables):
    script += """
payloads = [b"x" * 100] * 40
assert sender.send_many(payloads) == 40
assert sender.send_batch(in_batch(payloads)) == 40
assert sender.send_segments(b"x" * 4000, 100) == 4000
assert sender.send_batch(in_batch([b"x" * 4000], segment_size=100)) == 1
assert drain(receiver) == payloads * 4
assert sender.stats.sent == 160 and not sender.stats.gso
"""
    traced = trace_pair(script, names="sendmsg,sendmmsg,setsockopt", **variables)
    calls = traced.named("sendmmsg")
    assert [call.result for call in calls] == [40] * 4
    assert sum(call.segmented for call in traced.calls) == 0
    if variables:
        assert not any(re.search("UDP_SEGMENT|0x67", call.line) for call in traced.calls)


@pytest.mark.parametrize("value", ["", "1", "yes"])
def test_only_zero_switches_it_off(isolated, value, monkeypatch):
    monkeypatch.setenv("FASTSOCK_GSO", value)
    out = isolated("""
import fastsock
with fastsock.connect_udp(("127.0.0.1", 9)) as sock:
    print(sock.gso)
""")
    assert out.strip() == "True"


def test_the_probe_is_asked_once_and_restores_0():
    script = """
import socket
import fastsock
socks = [fastsock.Socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_UNIX) for _ in range(20)]
assert len({sock.gso for sock in socks[:20]}) == 1
for sock in socks:
    sock.gso = True
    sock.stats
    sock.close()
fastsock._gso.max_segments()
"""
    asked = [call for call in trace(script, "setsockopt").calls if re.search(r"UDP_SEGMENT|SOL_UDP, 0x67", call.line)]
    assert [re.search(r"\[(\d+)\]", call.line)[1] for call in asked] == ["1400", "0"]


def test_threads_that_ask_at_once_hear_the_same():
    # They may all probe; each on a socket of its own, and restores 0.
    script = """
import socket, sys, threading
import fastsock
sys.setswitchinterval(1e-6)
socks = [fastsock.Socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
start, found = threading.Barrier(8), []
def ask(sock):
    start.wait()
    found.append((sock.gso, fastsock._gso.max_segments()))
    sock.close()
threads = [threading.Thread(target=ask, args=(sock,)) for sock in socks]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(found) == 8 and len(set(found)) == 1, found
"""
    values = [
        match[1] for call in trace(script, "setsockopt").calls
        if (match := re.search(r"(?:UDP_SEGMENT|0x67), \[(\d+)\]", call.line))
    ]  # fmt: skip
    assert values.count("0") == values.count("1400") == len(values) / 2 >= 1


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("setsockopt:error=ENOPROTOOPT:when=1", "False 1"),  # before Linux 4.18
        ("setsockopt:error=EINVAL:when=1", "False 1"),
        ("sendmsg:error=EINVAL:when=1", "True 64"),  # before Linux 6.10
        ("socket:error=EMFILE:when=2", "False 128"),  # the first is the script's own; asked again
    ],
)
def test_what_the_probe_makes_of_refusals(fault, expected):
    script = """
import socket
import fastsock
with fastsock.Socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    print(sock.gso, fastsock._gso.max_segments())
"""
    assert trace(script, "socket,setsockopt,sendmsg", fault).out.strip() == expected
