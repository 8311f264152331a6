"""How many instructions does a datagram take in user space?

hot_calls.py makes the calls, under valgrind's callgrind or with a counter of the processor; here is what was counted
between its marks, and whether it is more than before. A count does not depend on what else the machine does: two
runs of one build differ by 1 % at most, which is the digits of ports in addresses and malloc's state. May import
hot_calls, native and the shapes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastsock
from fastsock.bench import hot_calls, native
from fastsock.bench.results import Answer, Column, Row, Table

PACKAGE = Path(fastsock.__file__).parent
MARK = "getloadavg"
TIMEOUT_S = 600
TITLE = "How many instructions does a datagram take in user space?"


@dataclass(frozen=True, slots=True)
class Count:
    """Instructions per datagram, or per event."""

    total: float
    own: float | None
    """Of them in fastsock's modules; the rest are Python's and libc's. None where that cannot be told."""


Counts = dict[str, Count]


# --- counting -------------------------------------------------------------------------------------------------


def find_tool() -> tuple[str, str]:
    """What can count here: "callgrind" or "perf", or "" and why neither can."""
    if shutil.which("valgrind"):
        return "callgrind", ""
    try:
        hot_calls.Counter().close()
    except OSError as error:
        return "", f"valgrind is not installed, and the processor's counter cannot be had: {error.strerror}"
    return "perf", ""


def count(tool: str, names: Sequence[str] = tuple(hot_calls.CALLS)) -> Counts:
    """Have the calls made under a tool. RuntimeError where that fails."""
    with tempfile.TemporaryDirectory(prefix="fastsock-") as directory:
        dump = Path(directory, "callgrind.out")
        valgrind = [
            *("valgrind", "--tool=callgrind", f"--callgrind-out-file={dump}", "--combine-dumps=yes"),
            *(f"--dump-before={MARK}", "--compress-strings=no", "--compress-pos=no"),
        ]
        command = [sys.executable, "-P", "-m", "fastsock.bench.hot_calls", tool, *names]
        done = subprocess.run(
            [*valgrind, *command] if tool == "callgrind" else command,
            env={**os.environ, "PYTHONPATH": python_path(), "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed under {tool}:\n{done.stderr}")
        if tool != "callgrind":
            return per_datagram(names, [(found, None) for found in json.loads(done.stdout)])
        with dump.open() as lines:
            return per_datagram(names, list(between_marks(read_parts(lines, f"{PACKAGE}{os.sep}"))))


def python_path() -> str:
    return os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))


def read_parts(lines: Iterable[str], own: str) -> Iterator[tuple[int, int]]:
    """Instructions of each dump in a callgrind file, and of them in objects whose path begins with `own`."""
    total = inside = 0
    is_own = skip = False
    for line in lines:
        if skip:  # what a call costs inclusively: counted where it is spent
            skip = False
        elif line.startswith("ob="):
            is_own = line[3:].startswith(own)
        elif line.startswith("calls="):
            skip = True
        elif line[:1].isdigit():
            spent = int(line.split()[1])
            total += spent
            inside += spent if is_own else 0
        elif line.startswith("totals:"):
            yield total, inside
            total = inside = 0
            is_own = False


def between_marks(parts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int | None]]:
    """Every second part: the others are what is between the sections."""
    for number, part in enumerate(parts):
        if number % 2:
            yield part


def per_datagram(names: Sequence[str], sections: Sequence[tuple[int, int | None]]) -> Counts:
    """From the sections in the order of the names: what a batch more adds, the median of the repetitions."""
    each = hot_calls.REPEATS * len(hot_calls.LENGTHS)
    if len(sections) != each * len(names):
        raise RuntimeError(f"{len(sections)} sections were counted instead of {each * len(names)}")
    counts = {}
    for number, name in enumerate(names):
        totals, owns = zip(*sections[number * each : (number + 1) * each], strict=True)
        counts[name] = Count(added(totals), None if None in owns else added(owns))
    return counts


def added(found: Sequence[int]) -> float:
    """What the second of each two has more than the first, per datagram."""
    return statistics.median(two - one for one, two in zip(found[::2], found[1::2], strict=True)) / hot_calls.BATCH


# --- what it was before ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Build:
    """What instruction counts depend on besides the code: figures of one build say nothing of another."""

    key: str
    """Implementation, minor version and architecture: "cpython-3.13-x86_64"."""
    compiled: str
    """Who compiled fastsock, and with what: Cython, compiler and its options."""
    python: str
    """Which interpreter: its version, date and compiler."""


def this_build() -> Build:
    gil = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else "t"
    version = ".".join(platform.python_version_tuple()[:2]) + gil
    compiled = (cython_version(), compiler(), sysconfig.get_config_var("CFLAGS") or "")
    return Build(
        f"{platform.python_implementation().lower()}-{version}-{platform.machine()}", "; ".join(compiled), sys.version
    )


def cython_version() -> str:
    """Cython's: it leaves a module behind that is named after it."""
    names = sorted(name for name in sys.modules if name.startswith("_cython_"))
    return names[0].removeprefix("_").replace("_", ".").replace("cython.", "Cython ", 1) if names else "Cython"


def compiler() -> str:
    """The first line that the compiler says of itself."""
    try:
        done = subprocess.run([*native.compiler(), "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return "no compiler"
    return (done.stdout.splitlines() or ["unknown compiler"])[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the counts came to beside the baseline."""

    more: list[str]
    """Failures: what takes more than it may, or has no baseline."""
    notes: list[str]
    """What was not compared and why, and what takes less now."""
    before: Counts


def compare(counts: Counts, build: Build, baseline: dict[str, Any]) -> Verdict:
    """Hold counts against the committed ones."""
    known = baseline["builds"].get(build.key)
    if known is None:
        return Verdict([], [f"not compared: there is no baseline for {build.key}"], {})
    if known["compiled"] != build.compiled:
        return Verdict(
            [], [f"not compared: {build.key} was compiled by {build.compiled}, its baseline by {known['compiled']}"], {}
        )
    notes = []
    totals = known["python"] == build.python
    if not totals:
        notes.append(f"only fastsock's own part was compared: this is Python {build.python}, not {known['python']}")
    more = []
    before = {}
    for name, found in counts.items():
        if name in hot_calls.STANDARD:
            continue
        if name not in known["counts"]:
            more.append(f"{name}: has no baseline")
            continue
        before[name] = was = Count(**known["counts"][name])
        pairs = [("in all", was.total, found.total)] if totals else []
        if was.own is not None and found.own is not None:
            pairs.append(("in fastsock", was.own, found.own))
        for where, old, new in pairs:
            change = f"{name}: {new:.1f} instructions {where}, {old:.1f} before"
            # Half an instruction per datagram is less than one branch: what calls of few instructions vary by.
            slack = max(old * baseline["tolerance"], 0.5)
            if new > old + slack:
                more.append(change)
            elif new < old - slack:
                notes.append(f"{change}: --write makes that the baseline")
    return Verdict(more, notes, before)


def written(counts: Counts, build: Build, baseline: dict[str, Any]) -> dict[str, Any]:
    """The baseline with these counts in it. ValueError where a call has no reason yet."""
    ours = {name: found for name, found in counts.items() if name not in hot_calls.STANDARD}
    unexplained = [name for name in ours if not baseline["reasons"].get(name)]
    if unexplained:
        raise ValueError(f"the baseline needs a reason for {', '.join(unexplained)}")
    entry = {
        "compiled": build.compiled,
        "python": build.python,
        "counts": {
            name: {"total": round(found.total, 2), "own": None if found.own is None else round(found.own, 2)}
            for name, found in ours.items()
        },
    }
    return {**baseline, "builds": {**baseline["builds"], build.key: entry}}


# --- what is shown --------------------------------------------------------------------------------------------


def answer(tool: str, counts: Counts, reasons: Mapping[str, str], before: Mapping[str, Count]) -> Answer:
    """A section for each call of the standard library and what fastsock has in its place; a table of the others."""
    columns = [
        Column("total", "in all", "instructions"),
        Column("ratio", "×", "x", 2),
        Column("own", "in fastsock", "instructions"),
        *([Column("before", "before", "instructions")] if before else []),
        *([Column("why", "what takes them")] if reasons else []),
    ]

    def row(name: str) -> Row:
        found, baseline = counts[name], hot_calls.BASELINES.get(name)
        cells: dict[str, Any] = {"total": found.total, "own": found.own}
        if baseline in counts:
            cells["ratio"] = counts[baseline].total / found.total
        if name in before:
            cells["before"] = before[name].total
        if reasons:
            cells["why"] = reasons.get(name, "")
        return Row(name, cells, "socket" if name in hot_calls.STANDARD else "fastsock", baseline)

    paired = [name for std in hot_calls.STANDARD for name in counts if std in (name, hot_calls.BASELINES.get(name))]
    others = [name for name in counts if name not in paired]
    tables = [
        Table("Instructions per datagram", columns, [row(name) for name in paired]),
        Table(
            "What the standard library has nothing like",
            [column for column in columns if column.name != "ratio"],
            [row(name) for name in others],
        ),
    ]
    method = (
        f"Counted by {'callgrind' if tool == 'callgrind' else 'a counter of the processor'}: what a batch of "
        f"{hot_calls.BATCH} datagrams of {hot_calls.SIZE} bytes adds to one before it, so that what comes once "
        "cancels; the kernel's instructions are not in it. `in all` has Python's and libc's, and the loop in Python "
        "that makes the call. Epoll.poll is per event. Nothing else that runs changes it."
    )
    return Answer("instructions", TITLE, method, [table for table in tables if table.rows])
