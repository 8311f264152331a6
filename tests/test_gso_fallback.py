"""Where segmentation is refused: the same datagrams go one by one, each once and in order.

Faults are injected with strace, and counted from the first call of their name; the probe's
sendmsg is the first of that name.
"""

import socket

import pytest
from conftest import drain, needs_large_buffers
from tracing import trace_pair

import fastsock
from fastsock import SendBatch

SO_NO_CHECK, UDP_NO_CHECK6_TX, UDP_NO_CHECK6_RX = 11, 101, 102  # linux/udp.h

pytestmark = pytest.mark.skipif(not fastsock.probe().gso, reason="UDP_SEGMENT is Linux 4.18")

# Every way to send the same 30 datagrams: one message of segments, or three.
ONE = "payloads = [bytes([i]) * 100 for i in range(30)]\n"
THREE = "payloads = [bytes([i]) * size for i, size in enumerate([90] * 10 + [100] * 10 + [200] * 10)]\n"
CALLS = {
    "send_many": "sender.send_many(payloads)",
    "sendto_many": "sender.sendto_many(payloads, receiver.getsockname())",
    "each": "sender.sendto_many(payloads, [receiver.getsockname()] * 30)",
    "batch": "sender.send_batch(in_batch(payloads))",
}
SEGMENTS = {
    "segments": "sender.send_segments(b''.join(payloads), 100) // 100",
    "zerocopy": "sender.send_zerocopy(b''.join(payloads), segment_size=100) // 100",
    "cut": "30 * sender.send_batch(in_batch([b''.join(payloads)], segment_size=100))",
}
FIVE_TIMES = """
assert sender.gso
for _ in range(5):
    assert {call} == 30
    assert drain(receiver) == payloads
sender.recv_errors()
print(sender.gso, sender.stats.gso_fallbacks, sender.stats.sent, sender.zerocopy_pending)
"""


def sent(calls, name: str) -> list[int]:
    """What the calls of a name returned, the probe's left out."""
    return [call.result for call in calls if call.name == name][name == "sendmsg" :]


# --- EIO: a device without transmit checksums --------------------------------------------------------


@pytest.mark.parametrize("at", [2, 3, 5])
@pytest.mark.parametrize("call", [*CALLS, *SEGMENTS])
def test_eio_of_one_message(call, at):
    traced = trace_pair(ONE + FIVE_TIMES.format(call={**CALLS, **SEGMENTS}[call]), f"sendmsg:error=EIO:when={at}")
    assert traced.out.split() == ["False", "1", "150", "0"]
    # Before it all in one; then, and from then on, 30 messages in one call.
    assert len(sent(traced.calls, "sendmsg")) == at - 1
    assert sent(traced.calls, "sendmmsg") == [30] * (5 - (at - 2))


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("call", CALLS)
def test_eio_of_the_first_of_several_messages(call, at):
    traced = trace_pair(THREE + FIVE_TIMES.format(call=CALLS[call]), f"sendmmsg:error=EIO:when={at}")
    assert traced.out.split() == ["False", "1", "150", "0"]
    plain = 5 - at
    # The datagrams of the refused message by themselves, then the other two without segmentation.
    assert sent(traced.calls, "sendmmsg") == [3] * (at - 1) + [-1, 10, 20] + [30] * plain


@needs_large_buffers
def test_eio_in_the_middle_of_a_call():
    # The first two messages are beyond what one call of the kernel takes.
    script = """
receiver.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
payloads = [b"%04d" % i + bytes(i // 2 % 2) for i in range(3000)]
assert sender.gso
assert sender.send_many(payloads) == 3000
print(drain(receiver) == payloads, sender.gso, sender.stats.gso_fallbacks)
"""
    traced = trace_pair(script, "sendmmsg:error=EIO:when=2")
    assert traced.out.split() == ["True", "False", "1"]


def test_switching_it_on_again_tries_again():
    script = """
payloads = [b"x"] * 10
sender.gso
assert sender.send_many(payloads) == 10 and not sender.gso
sender.gso = True
assert sender.gso and sender.send_many(payloads) == 10 and sender.gso
assert drain(receiver) == payloads * 2
"""
    traced = trace_pair(script, "sendmsg:error=EIO:when=2")
    assert [call.segmented for call in traced.named("sendmsg")] == [1, 1, 1]
    assert sent(traced.calls, "sendmmsg") == [10]


# --- EINVAL and EMSGSIZE: this size ------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["EINVAL", "EMSGSIZE"])
@pytest.mark.parametrize("call", [*CALLS, *SEGMENTS])
def test_a_refused_size_is_not_asked_for_again(call, error):
    script = f"""
payloads = [bytes([i]) * 100 for i in range(30)]
assert sender.gso
for _ in range(3):
    assert {({**CALLS, **SEGMENTS})[call]} == 30
    assert drain(receiver) == payloads
assert sender.gso
print(sender.stats.gso_fallbacks, sender.stats.sent)
assert sender.send_many([b"x" * 99] * 20) == 20     # one message: smaller sizes still go
assert sender.send_segments(b"x" * 990, 99) == 990
assert drain(receiver) == [b"x" * 99] * 30
sender.gso = True
assert sender.send_many(payloads) == 30             # told to try again, it does
assert drain(receiver) == payloads
print(sender.stats.gso_fallbacks)
"""
    traced = trace_pair(script, f"sendmsg:error={error}:when=2")
    assert traced.out.split() == ["1", "90", "1"]
    assert sent(traced.calls, "sendmmsg") == [30] * 3
    assert [call.segmented for call in traced.named("sendmsg")] == [1] * 5


@pytest.mark.parametrize("error", ["EINVAL", "EMSGSIZE"])
def test_refused_sizes_among_others(error):
    # The message of 200 bytes, with a shorter last one, is refused; those of 100 and 90 go on as segments.
    script = """
payloads = [bytes([i]) * size for i, size in enumerate([200] * 10 + [100] * 10 + [90] * 10)]
assert sender.gso
for _ in range(3):
    assert sender.send_many(payloads) == 30
    assert drain(receiver) == payloads
print(sender.gso, sender.stats.gso_fallbacks)
"""
    traced = trace_pair(script, f"sendmmsg:error={error}:when=1")
    assert traced.out.split() == ["True", "1"]
    assert sent(traced.calls, "sendmmsg") == [-1, 11, 2, 12, 12]


# --- what is no matter of segmentation ------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["EIO", "EINVAL", "EMSGSIZE"])
@pytest.mark.parametrize("call", [*CALLS, *SEGMENTS])
def test_a_refusal_of_the_plain_datagrams_too_is_raised_and_not_remembered(call, error):
    script = f"""
payloads = [bytes([i]) * 100 for i in range(30)]
assert sender.gso
for _ in range(2):
    try:
        {({**CALLS, **SEGMENTS})[call]}
    except OSError as refused:
        print(errno.errorcode[refused.errno])
assert drain(receiver) == []
print(sender.gso, sender.stats.gso_fallbacks, sender.stats.sent, sender.zerocopy_pending)
assert {({**CALLS, **SEGMENTS})[call]} == 30
assert drain(receiver) == payloads
"""
    # Both calls and both resends are refused; the third goes as segments.
    traced = trace_pair(script, f"sendmsg:error={error}:when=2..3", f"sendmmsg:error={error}:when=1+")
    assert traced.out.split() == [error, error, "True", "0", "0", "0"]
    assert traced.named("sendmsg")[-1].segmented == 1


@pytest.mark.parametrize("error", ["EPERM", "ENOBUFS", "EAGAIN", "ECONNREFUSED", "ENETUNREACH"])
def test_other_errors_are_not_taken_for_a_refusal_of_segmentation(error):
    script = """
sender.setblocking(False)
assert sender.gso
payloads = [bytes([i]) * 100 for i in range(30)]
try:
    sender.send_many(payloads)
except OSError as refused:
    print(errno.errorcode[refused.errno])
assert sender.send_many(payloads) == 30
assert drain(receiver) == payloads
assert sender.gso and sender.stats.gso_fallbacks == 0
"""
    traced = trace_pair(script, f"sendmsg:error={error}:when=2")
    assert traced.out.split() == [error]
    assert traced.named("sendmmsg") == []


@pytest.mark.parametrize("error", ["EIO", "EMSGSIZE"])
def test_plain_datagrams_that_are_refused_do_not_switch_it_off(error):
    script = """
sender.gso
for payloads in ([b"1", b"22", b"333"], [b"x"]):
    try:
        sender.send_many(payloads)
    except OSError as refused:
        print(errno.errorcode[refused.errno])
assert sender.gso and sender.stats.gso_fallbacks == 0
"""
    traced = trace_pair(script, f"sendmsg:error={error}:when=2", f"sendmmsg:error={error}:when=1")
    assert traced.out.split() == [error, error]


@pytest.mark.parametrize("wait", ["None", "0", "5"])
def test_a_refusal_behind_progress_is_dealt_with_in_the_same_call(wait):
    # The kernel reports the refusal of a later message only when that is the first.
    script = f"""
sender.settimeout({wait})
payloads = [bytes([i]) * size for i, size in enumerate([100] * 10 + [90] * 10 + [200] * 10)]
assert sender.gso
batch = in_batch(payloads[:10] + [b"x" * 70_000] + payloads[10:])
assert sender.send_batch(batch) == 10
for _ in range(2):
    try:
        sender.send_batch(batch)
    except OSError as refused:
        print(errno.errorcode[refused.errno])
batch.skip()
assert sender.send_batch(batch) == 20
assert drain(receiver) == payloads and sender.gso
"""
    assert trace_pair(script).out.split() == ["EMSGSIZE"] * 2


# --- without strace -----------------------------------------------------------------------------------


def switch_checksums(receiver, sender, on: bool) -> None:
    if sender.family == socket.AF_INET:
        sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, not on)
    else:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_TX, not on)
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, not on)


@pytest.mark.parametrize("call", ["send_many", "sendto_many", "send_batch", "send_segments", "cut"])
def test_a_socket_without_checksums(udp_pair, call):
    receiver, sender = udp_pair
    switch_checksums(receiver, sender, False)
    payloads = [bytes([i]) * 100 for i in range(30)]
    batch = SendBatch(30, 3000)
    for payload in [b"".join(payloads)] if call == "cut" else payloads:
        batch.append(payload, segment_size=100 if call == "cut" else None)
    for _ in range(2):
        assert {
            "send_many": lambda: sender.send_many(payloads),
            "sendto_many": lambda: sender.sendto_many(payloads, receiver.getsockname()),
            "send_batch": lambda: sender.send_batch(batch),
            "cut": lambda: 30 * sender.send_batch(batch),
            "send_segments": lambda: sender.send_segments(b"".join(payloads), 100) // 100,
        }[call]() == 30
        assert drain(receiver) == payloads
    assert (sender.gso, sender.stats.gso_fallbacks, sender.stats.sent) == (True, 1, 60)
    # A smaller size is tried anew, because only a size was refused.
    assert sender.send_many([b"x" * 99] * 5) == 5
    assert sender.stats.gso_fallbacks == 2
    switch_checksums(receiver, sender, True)
    assert sender.send_many([b"x" * 98] * 5) == 5
    assert sender.stats.gso_fallbacks == 2


# --- a split that stops in the middle of a payload ------------------------------------------------------------


@pytest.mark.parametrize("wait_s", [0, 0.01])
def test_a_split_is_resumed_where_it_stopped(unix_pair, wait_s):
    receiver, sender = unix_pair(socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    sender.settimeout(wait_s)
    payloads = [b"".join(b"%d-%04d;" % (i, j) for j in range(300))[:-3] for i in range(4)]
    batch = SendBatch(5, 3000)
    for payload in payloads[:3]:
        batch.append(payload, segment_size=7)
    batch.append(b"plain")
    batch.append(payloads[3], segment_size=7)
    expected = [part[at : at + 7] for part in payloads[:3] for at in range(0, len(part), 7)] + [b"plain"]
    expected += [payloads[3][at : at + 7] for at in range(0, len(payloads[3]), 7)]
    found, calls, stopped_inside = [], 0, 0
    while batch.unsent:
        before = batch.unsent
        assert sender.send_batch(batch) == before - batch.unsent
        if batch.unsent:
            with pytest.raises(BlockingIOError if wait_s == 0 else TimeoutError):
                sender.send_batch(batch)
        found += drain(receiver)
        calls += 1
        stopped_inside += bool(found) and found[-1][-1:] == b";"
        assert found == expected[: len(found)]
    assert found == expected
    assert stopped_inside > 2
    assert sender.stats.sent == len(expected)


@pytest.mark.parametrize("leave", ["skip", "clear", "another socket"])
def test_what_becomes_of_the_rest_of_a_split(unix_pair, udp_pair, leave):
    receiver, sender = unix_pair(socket.SOCK_SEQPACKET)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
    sender.setblocking(False)
    payload = b"".join(b"%04d" % j for j in range(100))
    batch = SendBatch(3, 1000)
    batch.append(payload, segment_size=4)
    assert sender.send_batch(batch) == 0  # some of its segments, but not the whole
    found = drain(receiver)
    assert 0 < len(found) < 100
    if leave == "another socket":
        # It goes on with the rest, though that socket could cut a whole payload.
        assert udp_pair.sender.send_batch(batch) == 1
        assert found + drain(udp_pair.receiver) == [payload[at : at + 4] for at in range(0, 400, 4)]
        assert udp_pair.sender.send_batch(batch) == 1
        assert len(drain(udp_pair.receiver)) == 100
        return
    if leave == "skip":
        batch.skip()
    else:
        batch.clear()
    batch.append(b"abcdefgh", segment_size=4)
    assert sender.send_batch(batch) == 1
    assert drain(receiver) == [b"abcd", b"efgh"]
