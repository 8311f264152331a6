"""What each contestant of each race costs: CPU seconds per turn (extra_info has the datagrams, or events)."""

import time
from collections.abc import Callable

import pytest

from fastsock.bench.contestants import Race, has_gro
from fastsock.bench.questions import batch, epoll, gro, payload, peers, receive, send

SIZES = {
    **dict.fromkeys((receive, send, gro, batch), (64, 1400)),
    payload: payload.SIZES[::5],
    epoll: epoll.READY,
    peers: peers.PEERS,
}
RACES = {
    name: (race, sizes)
    for question, sizes in SIZES.items()
    if question is not gro or has_gro()
    for name, race in question.races().items()
}
CASES = [(kind, name, size) for kind, (race, sizes) in RACES.items() for name in race.baselines for size in sizes]


@pytest.mark.parametrize(("kind", "name", "size"), CASES)
@pytest.mark.benchmark(timer=time.thread_time, disable_gc=True)
def test_race(alone: Callable[[Race, int, str], None], kind: str, name: str, size: int) -> None:
    alone(RACES[kind][0], size, name)
