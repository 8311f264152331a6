"""Requests at a fixed rate, whatever the answers do; and what their latency is then.

A client that waits for each answer before it asks again asks nothing while the server is stalled: a stall of a
second is one sample among thousands, and the percentiles never see it (coordinated omission). Here each request
has a time at which it is due. It is sent then, or as soon after as can be, and its latency counts from when it was
due. Pure: the clock, and what sends and receives, are arguments. Imports only the standard library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Times(Protocol):
    """A list, an array or a memoryview of nanoseconds."""

    def __getitem__(self, index: int, /) -> int: ...
    def __setitem__(self, index: int, value: int, /) -> None: ...


Send = Callable[[int], object]
"""Sends the request of this number, without waiting; BlockingIOError where there is no room."""
Poll = Callable[[], Sequence[int]]
"""The numbers of the answers that are there, without waiting."""


def drive(
    send: Send,
    poll: Poll,
    clock: Callable[[], int],
    sent: Times,
    answered: Times,
    count: int,
    interval_ns: int,
    timeout_ns: int,
) -> tuple[int, int]:
    """Send requests 0 to `count` - 1 at their times, and note when each was sent and answered.

    Ends when all are answered, or `timeout_ns` after the last was sent. It never sleeps.

    Args:
        sent, answered: Times are written here by number. Both must hold 0 in each place; 0 stays where there was
            no answer.

    Returns:
        When request 0 was due, and the time at the end. Request `i` was due ``i * interval_ns`` later.
    """
    first_ns = due_ns = clock() + interval_ns
    number = missing = 0
    last_ns = first_ns
    while True:
        now = clock()
        if number < count:
            if now >= due_ns:
                try:
                    send(number)
                except BlockingIOError:
                    pass  # no room: it is overdue until there is
                else:
                    sent[number] = last_ns = now
                    number += 1
                    missing += 1
                    due_ns += interval_ns
        elif not missing or now - last_ns >= timeout_ns:
            return first_ns, now
        found = poll()
        if found:
            now = clock()
            for answer in found:
                if 0 <= answer < number and not answered[answer]:
                    answered[answer] = now
                    missing -= 1


def latencies(
    answered: Sequence[int], first_ns: int, interval_ns: int, end_ns: int, timeout_ns: int
) -> tuple[list[int], int]:
    """The latency of each request from when it was due, and how many had no answer.

    One without counts as what it had waited for at the end, and as `timeout_ns` at least.
    """
    found = []
    missing = 0
    due_ns = first_ns
    for answer_ns in answered:
        if answer_ns:
            found.append(answer_ns - due_ns)
        else:
            found.append(max(end_ns - due_ns, timeout_ns))
            missing += 1
        due_ns += interval_ns
    return found, missing


def saturate(
    send: Send, poll: Poll, clock: Callable[[], int], window: int, duration_ns: int, least: int, quiet_ns: int
) -> tuple[int, int]:
    """Keep `window` requests unanswered, and count answers: what the other end can do.

    Goes on for `duration_ns`, and until there were `least` answers, but not for more than ten times as long as
    `quiet_ns`. Where no answer comes for `quiet_ns`, the requests that are out are given up.

    Returns:
        Answers, and the nanoseconds in which they came.
    """
    begin = heard = now = clock()
    number = answers = pending = 0
    while now - begin < duration_ns or (answers < least and now - begin < 10 * quiet_ns):
        while pending < window:
            send(number)
            number += 1
            pending += 1
        found = poll()
        now = clock()
        if found:
            answers += len(found)
            pending = max(0, pending - len(found))
            heard = now
        elif now - heard >= quiet_ns:
            pending = 0
            heard = now
    return answers, now - begin
