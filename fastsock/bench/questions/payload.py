"""How the rate depends on the size of the payloads."""

from __future__ import annotations

from fastsock.bench import native
from fastsock.bench.contestants import RECEIVERS, Links, Side, race, receivers
from fastsock.bench.paired import Samples
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import DRAIN, kind_of, rate_plot, run_races
from fastsock.bench.results import Answer, Column, Figure, Line, Plot, Row, Table

SIZES = (16, 64, 256, 512, 1024, 1400, 2048, 4096, 8192, 16384, 32768, 65507)
BLOCKS = {"socket.recv": ["socket.recv_into", "Socket.recv", "recv_many(64)", "recv_batch", "C recv", "C recvmmsg"]}
COUNT = 128
"""Datagrams per turn: 8 MB of the largest."""
RCVBUF = 64 << 20
"""The largest take about 130 KB of a buffer each, and as many again to warm up."""


def races() -> dict[str, Links]:
    table = {**RECEIVERS, **native.where_built(native.RECEIVERS)}
    return {"payload": race("payload size", receivers, BLOCKS, Side(table, {"rcvbuf": RCVBUF}), count=COUNT)}


def plot_of(samples: dict[int, Samples], names: list[str]) -> list[Plot]:
    costs = {name: [(size, found.cost(name).median) for size, found in samples.items()] for name in names}
    note = "Per second of CPU time; nothing is lost."
    return [
        rate_plot("Rate by payload size", "payload, bytes", costs, note, x_scale="log", y_scale="log"),
        Plot(
            "Throughput by payload size",
            "payload, bytes",
            "gigabits per CPU second",
            [
                Line(name, [(size, size * 8 / ns) for size, ns in points], kind_of(name))
                for name, points in costs.items()
            ],
            x_scale="log",
            y_scale="log",
            note=note,
        ),
    ]


def run(plan: Plan) -> Answer:
    the_races = races()
    found = run_races(plan, the_races, SIZES)
    samples = found.samples["payload"]
    if not samples:
        return Answer("payload", QUESTION.title, DRAIN, skipped=found.note)
    names = list(the_races["payload"].baselines)
    columns = [*(Column(name, name, "ns", 0) for name in names), Column("ratio", "recv_many ×", "x", 2)]
    rows = []
    for size, measured in samples.items():
        cells: dict[str, Figure | float | int | str | None] = {name: measured.cost(name) for name in names}
        cells["ratio"] = measured.ratio("recv_many(64)", "socket.recv")
        rows.append(Row(f"{size:,} B", cells))
    note = (
        "socket.recv and Socket.recv have as much room as the datagram takes, 2 KB at least; recv_many has its "
        "default of 65535, recv_batch slots of the size. × is socket.recv / recv_many(64)."
    )
    table = Table("by payload size", columns, rows, f"{note} {found.note}".strip())
    return Answer("payload", QUESTION.title, DRAIN, tables=[table], plots=plot_of(samples, names))


QUESTION = Question("payload", "What does the size of the payloads change?", run, weight=1.5)
