"""recv_many writes into payloads that nobody holds any more: none that is held may change.

Against a model: every payload is also kept as a copy of its own, and compared at the end.
"""

import random

import pytest

SIZES = (0, 1, 2, 64, 255, 256, 257, 700, 1400, 1400, 1400, 1472, 2048, 9000)


def copy_of(payload: bytes) -> bytes:
    return bytes(bytearray(payload))


@pytest.mark.parametrize("seed", range(8))
def test_held_payloads_never_change(udp_pair, seed):
    rng = random.Random(seed)
    receiver, sender = udp_pair
    held: list[tuple[bytes, bytes]] = []
    serial = 0
    size = 1400
    for _ in range(400):
        burst = []
        for _ in range(rng.choice((1, 3, 64, 70))):
            if rng.random() < 0.05:
                size = rng.choice(SIZES)
            if sum(map(len, burst)) + size > 60_000:
                break  # what the default buffer holds
            serial += 1
            burst.append((serial.to_bytes(4, "big") * (size // 4 + 1))[:size])
        assert sender.send_many(burst) == len(burst)
        got = []
        while len(got) < len(burst):
            vlen = rng.choice((1, 2, 16, 64, 65, 128, 1000))
            # The largest makes chunks of two, so that positions and slots differ.
            bufsize = rng.choice((65535, 65535, 65535, 9000, 32 << 20))
            if rng.random() < 0.2:
                got += [payload for payload, _ in receiver.recvfrom_many(vlen, bufsize)]
            else:
                got += receiver.recv_many(vlen, bufsize)
        assert got == burst
        assert [hash(payload) for payload in got] == [hash(copy_of(payload)) for payload in got]
        if rng.random() < 0.5:
            held += [(payload, copy_of(payload)) for payload in got if rng.random() < 0.3]
        if len(held) > 3000:
            rng.shuffle(held)
            del held[1000:]
    for payload, copy in held:
        assert payload == copy
        assert hash(payload) == hash(copy)


@pytest.mark.parametrize("size", [64, 256, 1400])
def test_cut_and_whole_payloads_share_the_slots(udp_pair, size):
    receiver, sender = udp_pair
    lists = []
    for turn in range(12):
        payloads = [bytes([turn, index]) * (size // 2) for index in range(64)]
        sender.send_many(payloads)
        bufsize = size if turn % 3 else size - 10
        got = receiver.recv_many(64, bufsize)
        assert got == [payload[:bufsize] for payload in payloads]
        if turn % 4 == 3:
            lists.append((got, list(map(copy_of, got))))
    for got, copies in lists:
        assert got == copies


def test_a_payload_in_a_dict_is_not_written_again(udp_pair):
    receiver, sender = udp_pair
    seen = {}
    for turn in range(50):
        sender.send_many([turn.to_bytes(2, "big") * 500] * 3)
        for payload in receiver.recv_many():
            seen[payload] = turn
    assert seen == {turn.to_bytes(2, "big") * 500: turn for turn in range(50)}


def test_close_lets_the_payloads_go(isolated):
    isolated("""
import sys
import fastsock
receiver = fastsock.bind_udp(("127.0.0.1", 0))
sender = fastsock.connect_udp(receiver.getsockname())
sender.send(b"x" * 1000)
(payload,) = receiver.recv_many()
before = sys.getrefcount(payload)
receiver.close()
sender.close()
assert sys.getrefcount(payload) <= before
del before
""")
