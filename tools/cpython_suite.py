#!/usr/bin/env python3
"""Runs CPython's own tests, unmodified, with another class in place of `socket.socket` or `select.epoll`.

    tools/cpython_suite.py --relevant --impl fastsock:Socket --against-stdlib --fail-on-diff core

Each module of tests runs in a process of its own and, where this process may, in a network
namespace of its own. A test that hangs or ends its process is recorded as such, and a new
process goes on behind it. Exits with 0; with 1 for differences, if asked to; with 2 where
nothing can be run. Imports the standard library only: the interpreter under test runs this
file too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import faulthandler
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unittest
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

GROUPS = {
    "core": "test_socket test_epoll test_poll test_select test_selectors test_socketserver test_timeout",
    "asyncio": "test_asyncio.test_events test_asyncio.test_sock_lowlevel test_asyncio.test_selector_events "
    "test_asyncio.test_base_events test_asyncio.test_buffered_proto test_asyncio.test_sendfile "
    "test_asyncio.test_server test_asyncio.test_streams test_asyncio.test_unix_events "
    "test_asyncio.test_sslproto test_asyncio.test_ssl",
    "apps": "test_ssl test_ftplib test_poplib test_imaplib test_smtplib test_telnetlib test_httplib test_httpservers "
    "test_urllib2_localnet test_xmlrpc test_robotparser test_wsgiref test_logging test_asyncore test_asynchat "
    "test_smtpd test_docxmlrpc test_eintr",
}
REMOVED = {"test_asynchat", "test_asyncore", "test_smtpd", "test_telnetlib"}
"""Modules of the groups that Python 3.12 or 3.13 no longer has."""
NETWORKED = {"test_socketserver", "test_timeout"}
"""Modules whose tests ask for the resource "network", and need no more than a loopback."""
EXOTIC = re.compile(r"CAN|RDS|VSOCK|UDPLITE|SCTP|TIPC|ALG|QIPCRTR|Bluetooth|HyperV|MacOS|MSWindows|IOCTL|SocketSharing")
"""In the names of a test's classes: families, protocols and systems that are none of fastsock's."""
CHILD, LOAD = "--child", "--load"
"""How this file calls itself."""
NAMESPACE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
MESSAGE_CHARS = 1500
LOG_LINES = 30
RERUN_AT_MOST = 10
"""Where more tests differ than that, it is not the machine, and none is run again."""
RESTARTS_AT_MOST = 20
"""The rest of a module that needs more is given up: it would go on for hours."""


class Outcome(enum.StrEnum):
    """What became of a test; the later, the worse."""

    MISSING = "missing"
    PASSED = "passed"
    EXPECTED_FAILURE = "expected failure"
    SKIPPED = "skipped"
    FAILED = "failed"
    ERROR = "error"
    HUNG = "hung"
    CRASHED = "crashed"

    @property
    def severity(self) -> int:
        return list(Outcome).index(self)


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASSED

    @property
    def died(self) -> bool:
        return self.outcome in (Outcome.HUNG, Outcome.CRASHED)


Results = dict[str, Result]
"""Of a module: by the test's id, as in test.test_socket.BasicTCPTest.testRecv."""
Suite = dict[str, Results]
"""By the module, as in test_socket."""
MISSING = Result(Outcome.MISSING)
WHOLE = "(the module itself)"
"""Stands for a test's id where a module was skipped, or ended its process or hung with no test in flight."""


# Comparison


@dataclass(frozen=True, slots=True)
class Difference:
    module: str
    test: str
    base: Result
    here: Result

    @property
    def counts(self) -> bool:
        """It passes there and not here, or it ends or holds up its process here alone."""
        return (self.base.passed and not self.here.passed) or (self.here.died and not self.base.died)

    def repeats(self, again: Difference) -> bool:
        """Whether a second run says the same. Twice a hang or a crash is one, whatever the base did."""
        return again.counts or (self.here.died and again.here.died)


def differences(base: Suite, here: Suite) -> list[Difference]:
    """The tests that count against `here`. Modules that were not run here do not."""
    found = []
    for module, ours in here.items():
        theirs = base.get(module, {})
        both = (
            Difference(module, test, theirs.get(test, MISSING), ours.get(test, MISSING))
            for test in sorted({*theirs, *ours})
        )
        found += [difference for difference in both if difference.counts]
    return found


def idle(base: Suite, here: Suite) -> list[str]:
    """The modules of which no test passed on the other side."""
    return [module for module in here if not any(result.passed for result in base.get(module, {}).values())]


def names(waiver: str, test: str) -> bool:
    """Whether a waiver means a test: by its id, or by the end of it."""
    return f".{test}".endswith(f".{waiver}")


def is_waived(difference: Difference, waivers: Iterable[str]) -> bool:
    """A hang or a crash never is."""
    return not difference.here.died and any(names(waiver, difference.test) for waiver in waivers)


def needless(waivers: Iterable[str], here: Suite) -> list[str]:
    """The waivers of tests that were run, and passed."""
    results = [entry for module in here.values() for entry in module.items()]
    found = []
    for waiver in waivers:
        meant = [result for test, result in results if names(waiver, test)]
        if meant and all(result.passed for result in meant):
            found.append(waiver)
    return found


# The child: runs a module's tests, and writes a journal


@dataclass(frozen=True, slots=True)
class Side:
    """What the tests are run with."""

    python: str
    impl: str | None = None
    epoll: str | None = None
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(name for name in (self.impl, self.epoll) if name) or "stdlib"


@dataclass(frozen=True, slots=True)
class Selection:
    only: str = ""
    relevant: bool = False
    alone: str | None = None
    """The one test to run."""

    def takes(self, test: unittest.TestCase) -> bool:
        if self.alone is not None:
            return test.id() == self.alone
        if self.relevant and any(EXOTIC.search(base.__name__) for base in type(test).__mro__):
            return False
        return re.search(self.only, test.id()) is not None


def load(name: str) -> Any:
    """The object that MODULE:NAME means."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def put_in_place(side: Side) -> None:
    """Replace the standard library's classes, where they are and wherever they have been imported to.

    ssl keeps its base class, whose C half takes nothing else.
    """
    sys.path[:0] = side.path
    import multiprocessing.reduction  # noqa: F401
    import select
    import selectors
    import socket
    import socketserver  # noqa: F401

    with contextlib.suppress(ImportError):
        import ssl  # noqa: F401
    if side.impl:
        theirs, ours = socket.socket, load(side.impl)
        package = ours.__module__.partition(".")[0]
        for name, module in list(sys.modules.items()):
            if name in ("ssl", "_socket") or name.partition(".")[0] == package:
                continue
            if getattr(module, "socket", None) is theirs:
                vars(module)["socket"] = ours
    if side.epoll:
        epoll = load(side.epoll)
        vars(select)["epoll"] = epoll
        selectors.EpollSelector._selector_cls = epoll  # type: ignore[attr-defined]


class Journal:
    """One line of JSON for each event, so that what was done outlives the process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str, test: str = "", result: Result = MISSING) -> None:
        line = {"event": event, "test": test, **asdict(result)}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def read(self) -> Iterator[tuple[str, str, Result]]:
        for line in self._path.read_text().splitlines():
            entry = json.loads(line)
            event, test = entry.pop("event"), entry.pop("test")
            yield event, test, Result(Outcome(entry.pop("outcome")), **entry)

    def size(self) -> int:
        return self._path.stat().st_size


class Recorder(unittest.TestResult):
    """Keeps the worst outcome of the test in flight, and writes it down when the test stops."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal
        self._running: unittest.TestCase | None = None
        self._result = MISSING
        self._began = 0.0

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._running, self._result, self._began = test, MISSING, time.monotonic()
        self._journal.write("start", test.id())

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        # Python 3.12.1 stops tests that it skipped and never started.
        if self._running is not None:
            seconds = round(time.monotonic() - self._began, 3)
            self._journal.write("end", test.id(), replace(self._result, seconds=seconds))
            self._running = None
        super().stopTest(test)

    def _add(self, test: unittest.TestCase, outcome: Outcome, message: str = "") -> None:
        result = Result(outcome, message[-MESSAGE_CHARS:])
        if self._running is None:
            # A fixture of a class or a module, or a test skipped without a start.
            self._journal.write("end", test.id(), result)
        elif outcome.severity >= self._result.outcome.severity:
            self._result = result

    def _add_exception(self, test: unittest.TestCase, outcome: Outcome, error: Any) -> None:
        self._add(test, outcome, "".join(traceback.format_exception(*error)))

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._add(test, Outcome.PASSED)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self._add(test, Outcome.SKIPPED, reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._add_exception(test, Outcome.FAILED, err)

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self._add_exception(test, Outcome.ERROR, err)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: ARG002, N802
        self._add(test, Outcome.EXPECTED_FAILURE)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self._add(test, Outcome.FAILED, "unexpected success")

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:  # noqa: N802, ARG002
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            self._add_exception(test, Outcome.FAILED if failed else Outcome.ERROR, err)


def selected(suite: unittest.TestSuite, selection: Selection, done: set[str]) -> unittest.TestSuite:
    """The suite with its shape, which fixtures of classes go by, and the selected tests not yet done."""
    kept = unittest.TestSuite()
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            kept.addTest(selected(test, selection, done))
        elif test.id() not in done and selection.takes(test):
            kept.addTest(test)
    return kept


def child(side: Side, selection: Selection, module: str, journal: Journal, *, network: bool) -> None:
    """Run a module's tests, without those that the journal has."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    support: Any = importlib.import_module("test.support")
    support.use_resources = ["network"] if network else []
    support.verbose = 0
    put_in_place(side)
    done = {test for event, test, _ in journal.read() if event in ("start", "end")}
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{module}")
    except unittest.SkipTest as reason:
        journal.write("end", WHOLE, Result(Outcome.SKIPPED, str(reason)))
    else:
        selected(suite, selection, done).run(Recorder(journal))
    journal.write("finished")


def run_child(plan: str) -> None:
    """What `Runner` starts: the arguments of `child` as JSON."""
    side, selection, module, journal, network = json.loads(plan)
    child(Side(**side), Selection(**selection), module, Journal(Path(journal)), network=network)


# The parent: starts children, and judges what they wrote


def has_namespaces() -> bool:
    """Whether children can have a network of their own, with a loopback that is up."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*NAMESPACE, "true"], stderr=subprocess.DEVNULL).returncode == 0


def last_words(log: str) -> str:
    """The end of what a process wrote, without the frames that every test has above it."""
    frame = re.compile(rf'  File ".*/(unittest/\w+|{Path(__file__).stem})\.py"')
    return "\n".join([line for line in log.splitlines() if not frame.match(line)][-LOG_LINES:])


@dataclass(slots=True)
class ModuleRun:
    tests: Results = field(default_factory=dict)
    seconds: float = 0.0
    restarts: int = 0

    def summary(self) -> str:
        counts = Counter(result.outcome for result in self.tests.values())
        parts = [
            f"{len(self.tests):5d} tests",
            *(f"{outcome} {counts[outcome]}" for outcome in Outcome if counts[outcome]),
        ]
        if self.restarts:
            parts.append(f"restarts {self.restarts}")
        return "  ".join(parts) + f"  [{self.seconds:.1f} s]"


@dataclass(frozen=True, slots=True)
class Runner:
    timeout_s: float
    namespaces: bool

    async def run(self, side: Side, module: str, selection: Selection) -> ModuleRun:
        """Run a module's tests, in as many processes as it takes."""
        run, began = ModuleRun(), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="cpython_suite_", ignore_cleanup_errors=True) as scratch:
            path = Path(scratch) / "journal"
            path.touch()
            journal = Journal(path)
            network = self.namespaces and module in NETWORKED
            plan = json.dumps([asdict(side), asdict(selection), module, str(path), network])
            while True:
                size = journal.size()
                death = await self._child([side.python, os.path.abspath(__file__), CHILD, plan], journal, Path(scratch))
                entries = list(journal.read())
                run.tests |= {test: result for event, test, result in entries if event == "end"}
                in_flight = [test for event, test, _ in entries if event == "start" and test not in run.tests]
                if death is None:
                    break
                run.tests |= dict.fromkeys(in_flight, death)
                finished = any(event == "finished" for event, _, _ in entries)
                if not in_flight and (finished or journal.size() == size):
                    # In an import, in the fixture of a class, or at the interpreter's end.
                    run.tests[WHOLE] = death
                elif run.restarts == RESTARTS_AT_MOST:
                    run.tests[WHOLE] = replace(death, message=f"given up after {run.restarts} restarts")
                if finished or WHOLE in run.tests:
                    break
                run.restarts += 1
        run.seconds = time.monotonic() - began
        return run

    async def _child(self, command: list[str], journal: Journal, scratch: Path) -> Result | None:
        """Start a process and see it out. Returns None for a good end, else what it makes of a test in flight."""
        directory = Path(tempfile.mkdtemp(dir=scratch))
        log = directory.with_suffix(".log")
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(NAMESPACE if self.namespaces else []),
                *command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,
            )
        try:
            hung = await self._is_stuck(process, journal)
            if hung:
                # faulthandler writes the threads' stacks to the log.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGUSR1)
                await asyncio.sleep(0.5)
        finally:
            # What the tests left behind goes too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            status = await process.wait()
        said = last_words(log.read_text(errors="replace"))
        if hung:
            return Result(Outcome.HUNG, f"no progress for {self.timeout_s:g} s\n{said}")
        if status == 0 and any(event == "finished" for event, _, _ in journal.read()):
            return None
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return Result(Outcome.CRASHED, f"{how}\n{said}")

    async def _is_stuck(self, process: asyncio.subprocess.Process, journal: Journal) -> bool:
        """Wait for the process to end, or for the journal to stand still for too long."""
        size, since = journal.size(), time.monotonic()
        while time.monotonic() - since < self.timeout_s:
            try:
                await asyncio.wait_for(process.wait(), 0.2)
            except TimeoutError:
                if journal.size() != size:
                    size, since = journal.size(), time.monotonic()
            else:
                return False
        return True

    async def run_sides(self, sides: list[Side], modules: list[str], selection: Selection) -> list[Suite]:
        """Run the modules on each side, and print a line for each; results in the order of the sides.

        Sides run beside each other if no port of one can be in the way of the other.
        """
        turns = asyncio.Semaphore(len(sides) if self.namespaces else 1)

        async def run_side(side: Side) -> Suite:
            suite = {}
            for module in modules:
                async with turns:
                    run = await self.run(side, module, selection)
                print(f"{module:30} {side!s:32} {run.summary()}", flush=True)
                suite[module] = run.tests
            return suite

        return await asyncio.gather(*(run_side(side) for side in sides))

    async def run_again(
        self, difference: Difference, base: Side | None, here: Side, selection: Selection
    ) -> Difference:
        """Run a test in a process of its own, with nothing beside it. A base that was read from a file stays."""

        async def result(side: Side) -> Result:
            if difference.test == WHOLE:
                run = await self.run(side, difference.module, selection)
                return run.tests.get(WHOLE, Result(Outcome.PASSED))
            run = await self.run(side, difference.module, replace(selection, alone=difference.test))
            # Without the test itself: what kept it from being run.
            worst = max(run.tests.values(), key=lambda result: result.outcome.severity, default=MISSING)
            return run.tests.get(difference.test, worst)

        return replace(difference, base=await result(base) if base else difference.base, here=await result(here))


# The command


def write_suite(path: Path, side: Side, suite: Suite) -> None:
    modules = {module: {test: asdict(result) for test, result in tests.items()} for module, tests in suite.items()}
    path.write_text(json.dumps({"side": asdict(side), "modules": modules}, indent=1) + "\n")


def read_suite(path: Path, selection: Selection) -> Suite:
    """What `write_suite` wrote, of the tests that `--only` selects."""

    def read(result: dict[str, Any]) -> Result:
        return Result(Outcome(result["outcome"]), result["message"], result["seconds"])

    return {
        module: {
            test: read(result) for test, result in tests.items() if test == WHOLE or re.search(selection.only, test)
        }
        for module, tests in json.loads(path.read_text())["modules"].items()
    }


def show(difference: Difference, word: str) -> None:
    """Print a difference: an exception's last line, or all that a process said before its end."""
    result = difference.here
    print(f"{word}: {difference.test} ({difference.module}): {difference.base.outcome} there, {result.outcome} here")
    lines = result.message.strip().splitlines()
    for line in lines if result.died else lines[-1:]:
        print(f"    {line}")


async def judge(
    runner: Runner,
    base: Suite,
    here: Suite,
    base_side: Side | None,
    side: Side,
    selection: Selection,
    waivers: list[str],
) -> bool:
    """Print what `here` lacks of `base`, and say whether nothing does that is not waived."""
    found = differences(base, here)
    waived = [difference for difference in found if is_waived(difference, waivers)]
    found = [difference for difference in found if difference not in waived]
    for difference in waived:
        show(difference, "waived")
    if len(found) <= RERUN_AT_MOST:
        lasting = []
        for difference in found:
            again = await runner.run_again(difference, base_side, side, selection)
            if difference.repeats(again):
                lasting.append(again if again.here.died or not difference.here.died else difference)
            else:
                show(difference, "flaky")
                print(f"    Run again alone: {again.base.outcome} there, {again.here.outcome} here")
        found = lasting
    for difference in found:
        show(difference, "DIFFERENCE")
    unneeded = needless(waivers, here)
    for waiver in unneeded:
        print(f"NO NEED: {waiver} passes; its waiver can go")
    print(f"differences: {len(found)}, waived: {len(waived)}, waivers without need: {len(unneeded)}")
    empty = idle(base, here)
    if empty and (not selection.only or len(empty) == len(here)):
        print(f"NOTHING PASSED there, so that nothing was compared: {', '.join(empty)}")
        return False
    return not found and not unneeded


def absent_modules(python: str, modules: list[str]) -> list[str]:
    """The modules of tests that an interpreter does not have."""
    code = "import test; print(*test.__path__, sep='\\n')"
    places = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.splitlines()
    paths = {module: module.replace(".", "/") for module in modules}
    return [
        module
        for module, path in paths.items()
        if not any(Path(place, path + ".py").exists() or Path(place, path).is_dir() for place in places)
    ]


def cannot_run(side: Side) -> str:
    """Why a side's classes cannot be loaded by its interpreter; empty if they can."""
    command = [side.python, os.path.abspath(__file__), LOAD, json.dumps(asdict(side))]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else [f"status {done.returncode}", *done.stderr.strip().splitlines()][-1]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("tests", nargs="*", default=["core"], help=f"modules, or groups: {', '.join(GROUPS)}")
    parser.add_argument("--impl", metavar="MODULE:CLASS", help="the class in place of socket.socket")
    parser.add_argument("--epoll", metavar="MODULE:CLASS", help="the class in place of select.epoll")
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    parser.add_argument("--path", action="append", default=[], help="imported from first; may be repeated")
    parser.add_argument("--only", metavar="REGEX", default="", help="tests whose id has a match")
    parser.add_argument("--relevant", action="store_true", help="no families that fastsock leaves to socket.socket")
    parser.add_argument("--timeout", type=float, default=40, metavar="S", help="without progress, seconds: a hang")
    parser.add_argument("--out", type=Path, metavar="JSON", help="write the results to a file")
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--compare", type=Path, metavar="JSON", help="hold the results against those of an --out")
    base.add_argument("--against-stdlib", action="store_true", help="hold them against the standard library's")
    parser.add_argument("--waive", action="append", default=[], metavar="TEST", help="may differ; may be repeated")
    parser.add_argument("--fail-on-diff", action="store_true", help="exit with 1 for a difference")
    options = parser.parse_args(arguments)
    if (options.fail_on_diff or options.waive) and not (options.compare or options.against_stdlib):
        parser.error("--fail-on-diff and --waive need --compare or --against-stdlib")
    modules = [module for test in options.tests for module in GROUPS.get(test, test).split()]
    absent = absent_modules(options.python, ["test_socket", *modules])
    if "test_socket" in absent:
        parser.error(
            f"{options.python} lacks CPython's own tests (test.test_socket). pyenv installs them; "
            "Debian and Ubuntu have them in a package: libpython3.X-testsuite for python3.X"
        )
    if unknown := [module for module in absent if module not in REMOVED]:
        parser.error(f"{options.python} has no test.{unknown[0]}")
    options.modules = [module for module in modules if module not in absent]
    options.side = Side(options.python, options.impl, options.epoll, tuple(map(os.path.abspath, options.path)))
    if reason := cannot_run(options.side):
        parser.error(f"{options.side}: {reason}")
    return options


async def run(options: argparse.Namespace) -> int:
    side, selection = options.side, Selection(options.only, options.relevant)
    runner = Runner(options.timeout, has_namespaces())
    if not runner.namespaces:
        print("no network namespaces (they take root and unshare(1)): tests that ask for a network are skipped")
    base_side = Side(options.python) if options.against_stdlib else None
    *bases, here = await runner.run_sides([base_side, side] if base_side else [side], options.modules, selection)
    if options.out:
        write_suite(options.out, side, here)
    if options.compare:
        bases = [read_suite(options.compare, selection)]
    for base in bases:
        same = await judge(runner, base, here, base_side, side, selection, options.waive)
        return 1 if options.fail_on_diff and not same else 0
    return 0


def main() -> int:
    match sys.argv[1:]:
        case [word, plan] if word == CHILD:
            run_child(plan)
            return 0
        case [word, side] if word == LOAD:
            put_in_place(Side(**json.loads(side)))
            return 0
    return asyncio.run(run(parse()))


if __name__ == "__main__":
    sys.exit(main())
