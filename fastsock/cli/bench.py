"""`fastsock bench`: fastsock beside the standard library, asyncio, uvloop and C, on this machine.

Picks the questions, shares the time between them, and prints what they came to. May import arguments.py and
fastsock.bench; rich only to print.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsock.bench.environment import describe_machine, one_line
from fastsock.bench.question import Plan, Question, nothing
from fastsock.bench.questions import find_questions
from fastsock.bench.results import Answer, Column, Figure, Row, Table
from fastsock.cli.arguments import UsageError, parse_count, size_between

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DEFAULT_S, QUICK_S, FULL_S = 48.0, 12.0, 240.0
"""Of a run without names; what starts processes takes a little more."""
NAMED_S, QUICK_NAMED_S, FULL_NAMED_S = 6.0, 1.5, 20.0
"""Of a question that was named, per weight."""
REFRESH_S = 0.1
"""Between two looks of the progress: drawing takes milliseconds of what is measured."""

parse_size = size_between(1, 65507)

Progress = Callable[[str, float], None]


def parse_sizes(text: str) -> list[int]:
    """Payload sizes from "64,1400", without repetitions."""
    return list(dict.fromkeys(parse_size(part) for part in text.split(",")))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fastsock bench`."""
    parser.add_argument(
        "questions",
        nargs="*",
        metavar="QUESTION",
        help="what to find out (see --list); or `targets`: each target, reached or short; or `guard`: whether a "
        "ratio fell below its floor",
    )
    parser.add_argument("--list", action="store_true", help="print the questions and exit")
    parser.add_argument("--quick", action="store_true", help="a quarter of the time")
    parser.add_argument("--full", action="store_true", help="every question, in under five minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots as well")
    parser.add_argument(
        "--sizes", type=parse_sizes, default=[64, 1400], metavar="BYTES", help="payload sizes (default: 64,1400)"
    )
    parser.add_argument("--rounds", type=parse_count, metavar="N", help="measure exactly N rounds, however long")
    parser.add_argument("--seed", type=int, help="repeat the order in which the contestants took turns")
    parser.add_argument(
        "--best-of", type=parse_count, default=3, metavar="N", help="runs of targets and guard (default: 3)"
    )
    parser.add_argument("--check", action="store_true", help="targets: exit with 1 where one is short")


def run(args: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    known = find_questions()
    if args.list:
        list_questions(known, args.json)
        return 0
    if args.quick and args.full:
        raise UsageError("--quick or --full, not both")
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    about = describe_machine()
    judge = next((name for name in args.questions if name in JUDGES), None)
    if judge:
        if len(args.questions) > 1:
            raise UsageError(f"{judge} goes alone")
        with showing_progress(args.json) as progress:
            answer, failed = JUDGES[judge](args, seed, progress)
        answers = [answer]
    else:
        failed = False
        with showing_progress(args.json) as progress:
            answers = answer_all(choose(known, args.questions, args.full), args, seed, progress)
    report = {
        "fastsock_bench": 1,
        "environment": about,
        "seed": seed,
        "answers": [answer.as_json() for answer in answers],
    }
    if args.html:
        args.html.write_text(importlib.import_module("fastsock.bench.html").render(report), encoding="utf-8")
    if args.json:
        print(json.dumps(report))
    else:
        print_answers(answers, about)
    return int(failed)


def judge_targets(args: argparse.Namespace, seed: int, progress: Progress) -> tuple[Answer, bool]:
    from fastsock.bench import targets

    plan = Plan(0, seed, rounds=args.rounds, progress=progress)
    answer, short = targets.run(plan, best_of=args.best_of, quick=args.quick)
    return answer, bool(short) and args.check


def judge_floors(args: argparse.Namespace, seed: int, progress: Progress) -> tuple[Answer, bool]:
    from fastsock.bench import guard

    return guard.run(Plan(0, seed, progress=progress, rounds=args.rounds), best_of=args.best_of)


JUDGES = {"targets": judge_targets, "guard": judge_floors}


def choose(known: dict[str, Question], names: Sequence[str], everything: bool) -> list[Question]:
    """Those that were named, once; all; or what is asked by default."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{unknown[0]} is no question; there are {', '.join(known)}, targets, guard")
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    return [question for question in known.values() if everything or question.by_default]


def share_time(questions: Sequence[Question], named: bool, quick: bool, full: bool) -> dict[str, float]:
    """Seconds for each question, by weight."""
    if named:
        each = QUICK_NAMED_S if quick else FULL_NAMED_S if full else NAMED_S
        return {question.name: each * question.weight for question in questions}
    whole = QUICK_S if quick else FULL_S if full else DEFAULT_S
    weights = sum(question.weight for question in questions)
    return {question.name: whole * question.weight / weights for question in questions}


def answer_all(questions: Sequence[Question], args: argparse.Namespace, seed: int, progress: Progress) -> list[Answer]:
    budgets = share_time(questions, bool(args.questions), args.quick, args.full)
    whole = sum(budgets.values())
    done = 0.0
    answers = []
    for question in questions:
        budget_s = budgets[question.name]

        def tell(what: str, share: float, done: float = done, part: float = budget_s / whole) -> None:
            progress(what, done + share * part)

        began = time.monotonic()
        answer = question.run(Plan(budget_s, seed, tuple(args.sizes), args.rounds, tell))
        answers.append(replace(answer, elapsed_s=round(time.monotonic() - began, 3)))
        done += budget_s / whole
    return answers


def list_questions(known: dict[str, Question], as_json: bool) -> None:
    if as_json:
        rows = [{"name": one.name, "title": one.title, "by_default": one.by_default} for one in known.values()]
        print(json.dumps(rows))
        return
    width = max(map(len, known))
    for one in known.values():
        print(f"{one.name:{width}}  {one.title}{'' if one.by_default else ' (named, or with --full)'}")


# --- on a terminal ----------------------------------------------------------------------------------


@contextmanager
def showing_progress(silent: bool) -> Iterator[Progress]:
    """A bar on stderr where that is a terminal. No thread of its own: it would run beside what is measured."""
    if silent or not sys.stderr.isatty():
        yield nothing
        return
    from rich import progress as drawn
    from rich.console import Console

    columns = (
        drawn.BarColumn(),
        drawn.TaskProgressColumn(),
        drawn.TimeElapsedColumn(),
        drawn.TextColumn("{task.description}"),
    )
    with drawn.Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=1.0)
        shown = 0.0

        def tell(what: str, share: float) -> None:
            nonlocal shown
            if time.monotonic() - shown >= REFRESH_S:
                shown = time.monotonic()
                bar.update(task, description=what, completed=share, refresh=True)

        yield tell


def print_answers(answers: Sequence[Answer], about: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=False)

    say(one_line(about))
    load = about["load"][0]
    if load > 1:
        say(f"Load was {load:.1f} before it began: ratios hold, times and rates less so.", "yellow")
    method = ""
    for answer in answers:
        say(f"\n{answer.title}", "bold")
        if answer.skipped:
            say(f"Not measured: {answer.skipped}")
            continue
        if answer.method != method:
            say(answer.method, "dim")
        method = answer.method
        for table in answer.tables:
            console.print()
            console.print(fitting_table(table, console))
            if table.note:
                say(table.note, "dim")


def fitting_table(table: Table, console: Console) -> RenderableType:
    """With the quartiles where there is room for them, and without the last columns where there is little."""
    from rich.measure import Measurement

    wide = console.options.update(max_width=10_000)
    drawn = draw_table(table, quartiles=True)
    for shown in range(len(table.columns), 0, -1):
        if Measurement.get(console, wide, drawn).maximum <= console.width:
            break
        drawn = draw_table(replace(table, columns=table.columns[:shown]), quartiles=False)
    return drawn


def draw_table(table: Table, *, quartiles: bool) -> RenderableType:
    """A section for each baseline and what is compared with it."""
    from rich import box
    from rich.table import Table as Drawn

    # Two columns share a title and a line for the unit; ratios have their quartiles beside them.
    drawn = Drawn(title=table.title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    drawn.add_column("", no_wrap=True)
    for column in table.columns:
        unit = f"\n{column.unit}" if column.unit and column.unit != column.title else ""
        head = "×" if column.unit == "x" and column.title == "×" else f"{column.title}{unit}"
        drawn.add_column(head, justify="right" if column.unit else "left", no_wrap=bool(column.unit))
        if quartiles and has_quartiles(table, column):
            drawn.add_column("quartiles", justify="right", no_wrap=True)
    started = False
    for row in table.rows:
        if row.baseline is None and started and any(other.baseline for other in table.rows):
            drawn.add_section()
        started = True
        cells = []
        for column in table.columns:
            cell = row.cells.get(column.name)
            of_baseline = column.unit == "x" and row.baseline is None and cell_is_one(cell)
            cells.append("" if of_baseline else show(cell, column))
            if quartiles and has_quartiles(table, column):
                spread = isinstance(cell, Figure) and not of_baseline
                cells.append(f"{times(cell.low)}-{times(cell.high)}" if spread and isinstance(cell, Figure) else "")
        drawn.add_row(row.name, *cells, style=style_of(row))
    return drawn


def has_quartiles(table: Table, column: Column) -> bool:
    return column.unit == "x" and any(isinstance(row.cells.get(column.name), Figure) for row in table.rows)


def cell_is_one(cell: object) -> bool:
    return isinstance(cell, Figure) and cell.low == cell.median == cell.high == 1


def style_of(row: Row) -> str | None:
    if row.cells.get("verdict") == "short":
        return "red"
    return "bold" if row.kind == "fastsock" and row.baseline else "cyan" if row.kind == "c" else None


def show(cell: Figure | float | int | str | None, column: Column) -> str:
    """A cell, without its unit: that is in the head."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    value = cell.median if isinstance(cell, Figure) else cell
    if column.unit == "x":
        return times(value)
    return f"{value:,.{column.digits}f}"


def times(ratio: float) -> str:
    """A ratio in three digits."""
    return f"{ratio:.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"
