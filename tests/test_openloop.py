"""Requests at a fixed rate, in a world whose clock is ours: a stall must be felt by all whom it delays."""

import pytest

from fastsock.bench.histogram import Histogram
from fastsock.bench.openloop import drive, latencies, saturate

MS = 1_000_000
STEP = 1_000
"""What every call takes."""
TIMEOUT = 50 * MS


class World:
    """A server that answers after `service_ns`, but not while it is stalled, and a network between."""

    def __init__(self, service_ns=10_000, stall=(0, 0), lost=(), send_blocks=False, room=None):
        self.ns = 1_000 * MS
        self.began = self.ns
        self.service_ns, self.stall, self.lost, self.send_blocks, self.room = service_ns, stall, lost, send_blocks, room
        self.free_at = 0
        self.under_way = []

    def clock(self):
        self.ns += STEP
        return self.ns

    def resumes(self, at):
        begin, end = (self.began + part for part in self.stall)
        return end if begin <= at < end else at

    def send(self, number):
        if self.room is not None and len(self.under_way) >= self.room:
            raise BlockingIOError
        if self.send_blocks:
            self.ns = self.resumes(self.ns)
        self.ns += STEP
        if number not in self.lost:
            self.free_at = self.resumes(max(self.ns, self.free_at)) + self.service_ns
            self.under_way.append((self.free_at, number))

    def poll(self):
        self.ns += STEP
        found = [number for at, number in self.under_way if at <= self.ns]
        self.under_way = self.under_way[len(found) :]
        return found

    def drive(self, count, interval):
        self.sent, self.answered = [0] * count, [0] * count
        first, end = drive(self.send, self.poll, self.clock, self.sent, self.answered, count, interval, TIMEOUT)
        return latencies(self.answered, first, interval, end, TIMEOUT)


def percentile(ns, percent):
    histogram = Histogram()
    histogram.update(ns)
    return histogram.percentile(percent)


STALL = (200 * MS, 300 * MS)


def closed_loop(world, count):
    """Each request is sent when the last was answered."""
    found = []
    for number in range(count):
        begin = world.clock()
        world.send(number)
        while not world.poll():
            pass
        found.append(world.clock() - begin)
    return found


def test_a_stall_shows_in_the_percentiles():
    # 1000 requests in a second, of which the stall of 100 ms delays a tenth, by 50 ms in the middle.
    found, missing = World(stall=STALL).drive(1000, MS)
    assert missing == 0
    assert percentile(found, 50) < 0.1 * MS
    assert percentile(found, 89) < 0.1 * MS
    assert percentile(found, 95) == pytest.approx(50 * MS, rel=0.05)
    assert percentile(found, 99) == pytest.approx(90 * MS, rel=0.05)
    assert max(found) == pytest.approx(100 * MS, rel=0.05)


def test_one_request_at_a_time_omits_the_stall():
    # What is measured here is there in the other test: the same server, the same stall, one slow answer.
    found = closed_loop(World(stall=STALL), 25_000)
    assert max(found) > 99 * MS
    assert percentile(found, 99.99) < 0.1 * MS


def test_what_the_client_is_late_counts():
    # The send itself waits for the server, as one behind a full buffer does: what is due meanwhile is sent late.
    world = World(stall=STALL, send_blocks=True)
    found, missing = world.drive(1000, MS)
    assert missing == 0
    assert percentile(found, 95) == pytest.approx(50 * MS, rel=0.05)
    first = world.answered[0] - found[0]
    late = [sent - (first + number * MS) for number, sent in enumerate(world.sent)]
    assert max(late) == pytest.approx(99 * MS, rel=0.05)


def test_no_room_to_send_is_late_and_not_lost():
    found, missing = World(stall=STALL, room=4).drive(1000, MS)
    assert missing == 0
    assert percentile(found, 95) == pytest.approx(50 * MS, rel=0.05)


def test_the_last_answers_are_waited_for():
    found, missing = World(stall=(95 * MS, 140 * MS)).drive(100, MS)
    assert missing == 0
    assert found[-1] == pytest.approx(40 * MS, rel=0.05)


def test_missing_answers_count_as_the_time_out_at_least():
    found, missing = World(lost=range(500, 520)).drive(1000, MS)
    assert missing == 20
    assert sorted(found, reverse=True)[:20] == found[500:520]
    # Those had waited for half a second and more when it ended; the last of all for the time-out.
    assert min(found[500:520]) > 480 * MS
    found, missing = World(lost=[999]).drive(1000, MS)
    assert (missing, found[999]) == (1, pytest.approx(TIMEOUT, rel=0.05))
    assert found[999] >= TIMEOUT


def test_an_answer_that_is_missing_waits_no_less_than_the_time_out():
    assert latencies([0, 30], 10, 10, 35, 1000) == ([1000, 10], 1)


def test_a_server_that_never_answers_ends():
    world = World(lost=range(10))
    found, missing = world.drive(10, MS)
    assert missing == 10
    assert all(ns >= TIMEOUT for ns in found)
    assert world.ns - world.began < 2 * TIMEOUT


def test_answers_twice_and_of_others_do_not_count():
    world = World()
    poll = world.poll
    world.poll = lambda: [answer for number in poll() for answer in (number, number, number + (1 << 40), -1)]
    found, missing = world.drive(100, MS)
    assert (len(found), missing) == (100, 0)
    assert max(found) < 0.1 * MS
    assert world.ns - world.began < 110 * MS  # ends when all are there, without waiting for the time-out


def test_requests_are_sent_when_they_are_due():
    world = World()
    found, _ = world.drive(100, MS)
    first = world.answered[0] - found[0]
    assert all(0 <= sent - (first + number * MS) <= 5 * STEP for number, sent in enumerate(world.sent))


# --- what a server can do -----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 16])
def test_saturation_tells_the_rate_of_the_server(window):
    world = World(service_ns=100_000)
    answers, ns = saturate(world.send, world.poll, world.clock, window, 100 * MS, 0, 10 * MS)
    assert 100 * MS <= ns < 101 * MS
    assert answers / (ns / 1e9) == pytest.approx(10_000 if window > 1 else 9_600, rel=0.05)


def test_saturation_goes_on_for_the_least_number_of_answers():
    world = World(service_ns=MS)
    answers, ns = saturate(world.send, world.poll, world.clock, 4, MS, 50, 10 * MS)
    assert answers == 50
    assert ns == pytest.approx(50 * MS, rel=0.05)


def test_saturation_gives_up_what_is_lost():
    world = World(lost=[3, 4, 5, 6])
    answers, _ = saturate(world.send, world.poll, world.clock, 2, 50 * MS, 0, 5 * MS)
    assert answers > 100


def test_saturation_of_a_server_that_never_answers_ends():
    world = World(lost=range(1 << 20))
    answers, ns = saturate(world.send, world.poll, world.clock, 2, MS, 50, 5 * MS)
    assert answers == 0
    assert ns < 60 * MS
