"""What a send costs: one by one, in batches, and in segments that the kernel cuts."""

from __future__ import annotations

from fastsock.bench import native
from fastsock.bench.contestants import SENDERS, Links, Side, race, senders
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import DRAIN, Stacks, cost_bars, race_table, run_races
from fastsock.bench.results import Answer

BLOCKS = {
    "socket.sendto": ["Socket.sendto", "sendto_many, gso off", "sendto_many", "C sendto"],
    "socket.send": [
        *("Socket.send", "send_many, gso off", "send_batch, gso off", "send_many", "send_batch", "send_segments"),
        *("C send", "C sendmmsg", "C GSO", "C GSO, gather"),
    ],
    "socket.sendmsg": ["Socket.sendmsg"],
}

STACKS: Stacks = {
    "socket.send": {"kernel": ("C send", None), "library": ("socket.send", "C send")},
    "Socket.send": {"kernel": ("C send", None), "library": ("Socket.send", "C send")},
    "send_many, gso off": {
        "kernel": ("C sendmmsg", None),
        "library": ("send_batch, gso off", "C sendmmsg"),
        "Python objects": ("send_many, gso off", "send_batch, gso off"),
    },
    "send_many": {"kernel": ("C GSO, gather", None), "Python objects": ("send_many", "C GSO, gather")},
    "send_segments": {"kernel": ("C GSO", None), "library": ("send_segments", "C GSO")},
    "C sendmmsg": {"kernel": ("C sendmmsg", None)},
}


def races() -> dict[str, Links]:
    everyone = Side({**SENDERS, **native.where_built({**native.SENDERS, **native.GSO_SENDERS})})
    return {"send": race("send", senders, BLOCKS, everyone)}


def run(plan: Plan) -> Answer:
    the_races = races()
    found = run_races(plan, the_races)
    samples = found.samples["send"]
    note = (
        "GSO is on where a name does not say that it is off; the receiver takes no joined datagrams, so that the "
        "kernel cuts them in the sender's time. send_batch was filled once. On loopback the receiving socket's half "
        "of the kernel's work is in every figure."
    )
    stacks = [
        cost_bars(f"Where the time of a send goes, {size} B", measured, STACKS) for size, measured in samples.items()
    ]
    return Answer(
        "send",
        QUESTION.title,
        DRAIN,
        tables=[race_table("send", samples, the_races["send"].baselines, note=f"{note} {found.note}".strip())]
        if samples
        else [],
        bars=[bars for bars in stacks if bars],
        skipped="" if samples else found.note,
    )


QUESTION = Question("send", "What does sending a datagram cost?", run, weight=2)
