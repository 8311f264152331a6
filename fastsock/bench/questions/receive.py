"""What a receive costs: one by one and in batches, beside the standard library and C."""

from __future__ import annotations

from fastsock.bench import native
from fastsock.bench.contestants import RECEIVERS, Links, Side, race, receivers
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import DRAIN, Stacks, cost_bars, race_table, run_races
from fastsock.bench.results import Answer

TIMED = {f"{name}, timeout": RECEIVERS[name] for name in ("socket.recv", "Socket.recv", "recv_many(64)")}

BLOCKS = {
    "socket.recv": [
        *("Socket.recv", "recv_many(64)", "recv_many(1024)", "recv_batch"),
        *("C recv", "C recvmmsg", "C recvmmsg, columns"),
    ],
    "socket.recv_into": ["Socket.recv_into"],
    "socket.recvfrom": ["Socket.recvfrom", "recvfrom_many(64)", "recv_batch, addresses", "C recvmmsg, addresses"],
    "socket.recvmsg": ["Socket.recvmsg"],
    "socket.recv, timeout": ["Socket.recv, timeout", "recv_many(64), timeout"],
}

STACKS: Stacks = {
    "socket.recv": {
        "kernel": ("C recv", None),
        "library": ("socket.recv_into", "C recv"),
        "Python objects": ("socket.recv", "socket.recv_into"),
    },
    "Socket.recv": {
        "kernel": ("C recv", None),
        "library": ("Socket.recv_into", "C recv"),
        "Python objects": ("Socket.recv", "Socket.recv_into"),
    },
    "recv_many(64)": {
        "kernel": ("C recvmmsg", None),
        "library": ("recv_batch", "C recvmmsg"),
        "Python objects": ("recv_many(64)", "recv_batch"),
    },
    "recv_batch": {"kernel": ("C recvmmsg", None), "library": ("recv_batch", "C recvmmsg")},
    "recvfrom_many(64)": {
        "kernel": ("C recvmmsg, addresses", None),
        "library": ("recv_batch, addresses", "C recvmmsg, addresses"),
        "Python objects": ("recvfrom_many(64)", "recv_batch, addresses"),
    },
    "C recvmmsg": {"kernel": ("C recvmmsg", None)},
}


def races() -> dict[str, Links]:
    plain = Side({**RECEIVERS, **native.where_built(native.RECEIVERS)})
    return {"receive": race("receive", receivers, BLOCKS, plain, Side(TIMED, {"timeout": 1.0}))}


def run(plan: Plan) -> Answer:
    the_races = races()
    found = run_races(plan, the_races)
    samples = found.samples["receive"]
    note = (
        "recv_batch leaves payloads in place, recv_many makes a bytes object of each. C recvmmsg takes 64 at a time "
        "and looks at nothing; with columns it notes lengths and truncation, as recv_batch does."
    )
    stacks = [
        cost_bars(f"Where the time of a receive goes, {size} B", measured, STACKS) for size, measured in samples.items()
    ]
    return Answer(
        "receive",
        QUESTION.title,
        DRAIN,
        tables=[race_table("receive", samples, the_races["receive"].baselines, note=f"{note} {found.note}".strip())]
        if samples
        else [],
        bars=[bars for bars in stacks if bars],
        skipped="" if samples else found.note,
    )


QUESTION = Question("receive", "What does receiving a datagram cost?", run, weight=3)
