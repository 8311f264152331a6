"""How the rate depends on how many datagrams a call takes."""

from __future__ import annotations

from collections.abc import Callable

from fastsock.bench import native
from fastsock.bench.contestants import RECEIVERS, Link, Links, Run, Side, receive_batch, receive_many, receivers
from fastsock.bench.paired import Samples
from fastsock.bench.question import Plan, Question
from fastsock.bench.races import DRAIN, rate_plot, run_races
from fastsock.bench.results import Answer, Column, Figure, Row, Table

VLENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
BASELINE = "socket.recv"


def batches_of(vlen: int) -> Callable[[Link], Run]:
    return lambda link: receive_batch(link, vlen)


def lists_of(vlen: int) -> Callable[[Link], Run]:
    return lambda link: receive_many(link.receiver.recv_many, vlen)


WAYS: dict[str, Callable[[int], Callable[[Link], Run]]] = {
    "recv_many": lists_of,
    "recv_batch": batches_of,
    "C recvmmsg": lambda vlen: native.receiver("c_recvmmsg", vlen),
}


def ways() -> list[str]:
    return [way for way in WAYS if not (way.startswith("C ") and native.missing())]


def races() -> dict[str, Links]:
    table = {BASELINE: RECEIVERS[BASELINE]}
    # A batch would take more than the warm-up's share of what is queued: it warms up with as much as it takes.
    for way in ways():
        table |= {f"{way}({vlen})": WAYS[way](vlen) for vlen in VLENS}
    return {
        "batch": Links(
            "batch size",
            receivers,
            [Side(table)],
            dict.fromkeys(table, BASELINE),
            count=max(VLENS),
            warm_count=max(VLENS),
        )
    }


def points(samples: Samples, way: str) -> list[tuple[float, float]]:
    return [(vlen, samples.cost(f"{way}({vlen})").median) for vlen in VLENS]


def run(plan: Plan) -> Answer:
    found = run_races(plan, races())
    tables, plots = [], []
    for size, samples in found.samples["batch"].items():
        rows = []
        columns = [Column(BASELINE, BASELINE, "ns", 0)]
        for way in ways():
            columns += [Column(way, way, "ns", 0), Column(f"ratio {way}", "×", "x", 2)]
        for vlen in VLENS:
            cells: dict[str, Figure | float | int | str | None] = {BASELINE: samples.cost(BASELINE)}
            for way in ways():
                cells[way] = samples.cost(f"{way}({vlen})")
                cells[f"ratio {way}"] = samples.ratio(f"{way}({vlen})", BASELINE)
            rows.append(Row(str(vlen), cells))
        tables.append(Table(f"by batch size, {size} B", columns, rows, found.note))
        base = samples.cost(BASELINE).median
        lines = {way: points(samples, way) for way in ways()} | {BASELINE: [(vlen, base) for vlen in VLENS]}
        note = "Datagrams per second of CPU time; nothing is lost."
        plots.append(rate_plot(f"Rate by batch size, {size} B", "datagrams per call", lines, note, x_scale="log"))
    return Answer("batch", QUESTION.title, DRAIN, tables=tables, plots=plots, skipped="" if tables else found.note)


QUESTION = Question("batch", "How many datagrams should a call take?", run, weight=2)
