"""What joined datagrams save: UDP GRO on the way in, UDP GSO on the way out."""

from __future__ import annotations

from fastsock.bench import native
from fastsock.bench.contestants import (
    GRO_FILLED,
    GRO_RECEIVERS,
    GRO_WARM_COUNT,
    GSO_FILLED,
    RECEIVERS,
    SENDERS,
    Links,
    Side,
    has_gro,
    race,
    receivers,
    senders,
)
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import DRAIN, Stacks, cost_bars, race_table, run_races
from fastsock.bench.results import Answer

RECEIVE_BLOCKS = {
    "socket.recv": [
        *("recv_many(64)", "recv_many, GRO", "recv_batch, GRO"),
        *("C recv", "C recvmmsg", "C GRO", "C GRO, columns"),
    ],
    "socket.recvfrom": ["recvfrom_many, GRO"],
}
SEND_BLOCKS = {
    "socket.sendto": ["sendto_many"],
    "socket.send": ["send_many", "send_batch", "send_segments", "C GSO", "C GSO, gather"],
}

RECEIVE_STACKS: Stacks = {
    "socket.recv": {"kernel": ("C recv", None), "library": ("socket.recv", "C recv")},
    "recv_many, GRO": {
        "kernel": ("C GRO", None),
        "library": ("recv_batch, GRO", "C GRO"),
        "Python objects": ("recv_many, GRO", "recv_batch, GRO"),
    },
    "recv_batch, GRO": {"kernel": ("C GRO", None), "library": ("recv_batch, GRO", "C GRO")},
    "C GRO": {"kernel": ("C GRO", None)},
}


def races() -> dict[str, Links]:
    c_receivers = native.where_built(native.RECEIVERS)
    return {
        "receive-gro": race(
            "receive, GSO sender",
            receivers,
            RECEIVE_BLOCKS,
            Side({**RECEIVERS, **c_receivers}, GSO_FILLED),
            Side({**GRO_RECEIVERS, **native.where_built(native.GRO_RECEIVERS)}, GRO_FILLED),
            warm_count=GRO_WARM_COUNT,
        ),
        "send-gro": race(
            "send, GRO receiver",
            senders,
            SEND_BLOCKS,
            Side({**SENDERS, **native.where_built(native.GSO_SENDERS)}, GRO_FILLED),
        ),
    }


def run(plan: Plan) -> Answer:
    if not has_gro():
        why = "this kernel has no UDP GRO, or FASTSOCK_GRO=0 is set"
        return Answer("gro", QUESTION.title, DRAIN, skipped=why)
    the_races = races()
    found = run_races(plan, the_races)
    notes = {
        "receive-gro": "The same datagrams from the same sender, which joins 64 at a time (at 1400 B 46 and 18): "
        "without GRO the receiver finds them split.",
        "send-gro": "Into a receiver that takes what is joined, as a network card that can cut does: nobody cuts.",
    }
    notes = {name: f"{note} {found.note}".strip() for name, note in notes.items()}
    stacks = [
        cost_bars(f"Where the time of a joined receive goes, {size} B", measured, RECEIVE_STACKS)
        for size, measured in found.samples["receive-gro"].items()
    ]
    tables = [
        race_table(the_races[name].title, samples, the_races[name].baselines, note=notes[name], digits=0)
        for name, samples in found.samples.items()
        if samples
    ]
    return Answer(
        "gro",
        QUESTION.title,
        DRAIN,
        tables=tables,
        bars=[bars for bars in stacks if bars],
        skipped="" if tables else found.note,
    )


QUESTION = Question("gro", "What do joined datagrams save, UDP GRO and GSO?", run, weight=2)
