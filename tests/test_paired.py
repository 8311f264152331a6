"""The measuring harness: with made-up contestants on a made-up clock, and once for real."""

import errno
import gc
import random

import pytest
from conftest import needs_drop_counter

from fastsock.bench.contestants import RECEIVERS, VLEN, Link, Side, race, receivers, senders
from fastsock.bench.paired import Contestant, Rounds, Samples, measure, spread, take_turns
from fastsock.bench.results import Figure


class World:
    """A clock that only contestants move, and a record of what was called."""

    def __init__(self):
        self.ns = 0
        self.calls = []
        self.collecting = []

    def contestant(self, name, costs, lose=0):
        """Takes costs[0] ns per datagram in its first timed run, then costs[1] ..., the last for ever."""
        remaining = list(costs)

        def run(count):
            self.calls.append((name, "run", count))
            self.collecting.append(gc.isenabled())
            self.ns += count * (remaining.pop(0) if len(remaining) > 1 else remaining[0])
            return count - lose

        return Contestant(
            name,
            lambda count: self.calls.append((name, "prepare", count)),
            run,
            lambda count: self.calls.append((name, "settle", count)),
        )

    def measure(self, contestants, count=8, rounds=3, warm_count=0, warm_rounds=0, **options):
        return measure(
            contestants, count, rounds,
            warm_count=warm_count, warm_rounds=warm_rounds, clock=lambda: self.ns, **options,
        )  # fmt: skip


@pytest.fixture
def world():
    return World()


def test_cost_is_per_datagram(world):
    samples = world.measure([world.contestant("a", [7]), world.contestant("b", [21])], count=512)
    assert samples.ns == {"a": [7.0] * 3, "b": [21.0] * 3}
    assert samples.rounds == 3


def test_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians(world):
    own, base = world.contestant("own", [1, 10, 100]), world.contestant("base", [2, 50, 110])
    samples = world.measure([own, base])
    assert samples.cost("own").median == 10
    assert samples.cost("base").median == 50
    assert samples.ratio("own", "base").median == 2


def test_warm_up_is_not_timed(world):
    samples = world.measure([world.contestant("a", [1000, 3])], warm_count=4, rounds=2)
    assert samples.ns["a"] == [3.0, 3.0]
    assert world.calls[:4] == [("a", "prepare", 12), ("a", "run", 4), ("a", "run", 8), ("a", "settle", 12)]


def test_warm_up_rounds_are_not_recorded(world):
    samples = world.measure([world.contestant("a", [900, 800, 3])], warm_rounds=2, rounds=2)
    assert samples.ns["a"] == [3.0, 3.0]


def test_order_changes_and_repeats_with_a_seed(world):
    def order(seed):
        world.calls.clear()
        world.measure([world.contestant(name, [1]) for name in "abcd"], rounds=6, rng=random.Random(seed))
        names = [name for name, call, _ in world.calls if call == "run"]
        return [tuple(names[i : i + 4]) for i in range(0, len(names), 4)]

    first = order(1)
    assert all(sorted(turn) == list("abcd") for turn in first)
    assert len(set(first)) > 1
    assert order(1) == first
    assert order(2) != first


def test_budget_ends_at_a_whole_round(world):
    contestants = [world.contestant("a", [1]), world.contestant("b", [1])]
    # Each turn takes 8 ns; the third round ends at 48.
    samples = world.measure(contestants, rounds=100, budget_s=40, now=lambda: world.ns)
    assert [len(values) for values in samples.ns.values()] == [3, 3]


def test_budget_leaves_at_least_one_round(world):
    assert world.measure([world.contestant("a", [1])], warm_rounds=5, budget_s=0, now=lambda: world.ns).rounds == 1


def test_collector_is_off_meanwhile_and_back_afterwards(world):
    assert gc.isenabled()
    world.measure([world.contestant("a", [1])])
    assert not any(world.collecting)
    assert gc.isenabled()


def test_collector_comes_back_after_a_failure(world):
    with pytest.raises(OSError, match="a moved 7 datagrams instead of 8") as caught:
        world.measure([world.contestant("a", [1], lose=1)])
    assert caught.value.errno == errno.EIO
    assert gc.isenabled()


@pytest.mark.parametrize(("count", "rounds", "names"), [(0, 1, "a"), (1, 0, "a"), (1, 1, "aa")])
def test_refuses_what_cannot_be_measured(world, count, rounds, names):
    with pytest.raises(ValueError, match=r"at least one|names that differ"):
        world.measure([world.contestant(name, [1]) for name in names], count=count, rounds=rounds)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5.0], (5, 5, 5)), ([1.0, 3.0], (2, 1.5, 2.5)), ([9.0, 1.0, 5.0, 3.0, 7.0], (5, 3, 7))],
)
def test_spread(values, expected):
    assert spread(values) == Figure(*expected)


def test_no_samples():
    assert Samples().rounds == 0


def test_progress_is_told_behind_every_round(world):
    told = []
    world.measure([world.contestant("a", [1])], rounds=4, warm_rounds=1, progress=told.append)
    assert told == [0, 0.25, 0.5, 0.75, 1]
    told.clear()
    # Each turn takes 8 ns.
    world.measure([world.contestant("a", [1])], rounds=100, budget_s=32, now=lambda: world.ns, progress=told.append)
    assert told[-1] == 1
    assert told == sorted(told)


# --- turns that measure several things ---------------------------------------------------------


def test_rounds_pair_what_was_measured_in_the_same_round():
    found = Rounds()
    for own, base in ((1, 2), (10, 50), (100, 110)):
        found.add("own", {"ns": own, "per_s": 4 * base})
        found.add("base", {"ns": base, "per_s": base})
    assert found.ratio("own", "base", "ns").median == 2
    assert found.ratio("own", "base", "per_s", more_is_better=True) == Figure(4, 4, 4)
    assert found.figure("base", "ns").median == 50
    assert "own" in found
    assert "other" not in found


def test_a_rate_of_nothing_is_no_division_by_zero():
    found = Rounds()
    found.add("own", {"per_s": 5})
    found.add("base", {"per_s": 0})
    assert found.ratio("own", "base", "per_s", more_is_better=True).median > 1e9


class Turns:
    """Contestants that take so many seconds each, on a clock of their own."""

    def __init__(self, **seconds):
        self.now, self.calls = 0.0, []
        self.turns = {name: lambda name=name: self.take(name, seconds[name]) for name in seconds}

    def take(self, name, seconds):
        self.calls.append(name)
        self.now += seconds
        return {"s": seconds}

    def go(self, budget_s, **options):
        return take_turns(self.turns, budget_s, now=lambda: self.now, **options)


def test_turns_end_before_the_budget_does():
    # A round takes 4 s: the third would end at 12.
    world = Turns(a=1, b=3)
    assert world.go(11).values == {"a": {"s": [1, 1]}, "b": {"s": [3, 3]}}
    assert world.now == 8


def test_turns_take_at_least_one_round_and_exactly_what_is_asked():
    assert Turns(a=9).go(1).values == {"a": {"s": [9]}}
    assert Turns(a=9).go(1, rounds=3).values == {"a": {"s": [9, 9, 9]}}
    world = Turns(a=9)
    assert world.go(1, rounds=2, warm_rounds=1).values == {"a": {"s": [9, 9]}}
    assert world.calls == ["a"] * 3


def test_turns_change_and_repeat_with_a_seed():
    def order(seed):
        world = Turns(a=1, b=1, c=1, d=1)
        world.go(1, rounds=6, rng=random.Random(seed))
        return [tuple(world.calls[at : at + 4]) for at in range(0, 24, 4)]

    first = order(1)
    assert all(sorted(turn) == list("abcd") for turn in first)
    assert len(set(first)) > 1
    assert order(1) == first != order(2)


def test_turns_tell_their_progress():
    told = []
    Turns(a=1, b=1).go(4, progress=told.append)
    assert told == [0.25, 0.5, 0.75, 1]
    told.clear()
    Turns(a=1).go(0, rounds=2, warm_rounds=1, progress=told.append)
    assert told == [0, 0.5, 1]


# --- for real --------------------------------------------------------------------------------


def test_a_race_has_the_contestants_of_its_blocks_alone():
    blocks = {"socket.recv": ["recv_batch", "C recv"], "C send": ["recv_many(64)"]}
    found = race("", receivers, blocks, Side(RECEIVERS), count=VLEN)
    assert found.baselines == {
        "socket.recv": "socket.recv",
        "recv_batch": "socket.recv",
        "recv_many(64)": "recv_many(64)",
    }
    with found.open(64) as (contestants, count):
        assert {one.name for one in contestants} == found.baselines.keys()
        assert count == VLEN


@pytest.mark.parametrize("kind", [receivers, senders])
def test_real_contestants(kind):
    with Link(64) as link:
        contestants = kind(link)
        samples = measure(contestants, VLEN, 2)
    assert samples.ns.keys() == {contestant.name for contestant in contestants}
    assert samples.rounds == 2


def test_real_contestants_with_a_timeout():
    with Link(64, timeout=2.0) as link:
        assert measure(receivers(link, names=["socket.recv", "Socket.recv"]), VLEN, 1).rounds == 1


def test_fitting_is_what_the_buffer_holds():
    with Link(1400) as link:
        assert link.fitting(2 * VLEN, warm_count=0) == 2 * VLEN
    with Link(1400, rcvbuf=300_000) as link:
        count = link.fitting(512)
        assert count < 512
        assert count % VLEN == 0
        assert measure(receivers(link), count, 1).rounds == 1


def test_buffer_too_small():
    with Link(1400, rcvbuf=4096) as link, pytest.raises(OSError, match=r"net\.core\.rmem_max") as caught:
        link.fitting()
    assert caught.value.errno == errno.ENOBUFS


@needs_drop_counter
def test_fill_notices_a_drop():
    with Link(1400, rcvbuf=4096) as link, pytest.raises(OSError, match="dropped") as caught:
        link.fill(VLEN)
    assert caught.value.errno == errno.ENOBUFS


@pytest.mark.parametrize("check", ["drain", "expect_empty"])
def test_datagrams_too_many_are_noticed(check):
    with Link(64) as link:
        link.fill(VLEN + 1)
        with pytest.raises(OSError, match=r"instead of|more than"):
            getattr(link, check)(1 if check == "drain" else 0)
