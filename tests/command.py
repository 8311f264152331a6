"""Runs the ``fastsock`` command, here or in a process of its own. May import conftest."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from conftest import environment

from fastsock.cli import main

DEADLINE_S = 30


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition to come true; returns its value."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"not so after {DEADLINE_S} s: {what}"
        time.sleep(0.002)
    return value


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def exit_code(*words: str) -> int:
    """Run the command here; what the shell would see."""
    try:
        return main(words)
    except SystemExit as error:
        return int(error.code or 0)


class Command:
    """A running command, whose output goes to files."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process, self._out, self._err = process, out, err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON objects on stdout, of lines that are complete."""
        return json_lines(self.out[: self.out.rfind("\n") + 1])

    @property
    def summary(self) -> dict[str, Any]:
        assert self.events[-1]["type"] == "summary", self.out
        return self.events[-1]

    def port(self) -> int:
        """Wait for it to listen; the port that it bound."""

        def listening() -> re.Match[str] | None:
            assert self.process.poll() is None, f"ended early\n{self.out}\n{self.err}"
            return re.search(r'listening on \S+:(\d+),.*\n|"listening".*"port": (\d+),.*\n', self.err + self.out)

        match = wait_until(listening, "listening")
        return int(match[1] or match[2])

    def end(self, number: int | None = None) -> int:
        """Send it a signal, if any is given, and wait for its exit status."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextlib.contextmanager
def running(directory: Path, *words: object, before: Sequence[str] = ()) -> Iterator[Command]:
    """``fastsock`` with these words, by way of the command `before`; killed at the end if need be."""
    name = f"{words[0]}-{time.monotonic_ns()}"
    out, err = directory / f"{name}.out", directory / f"{name}.err"
    command = [*before, sys.executable, "-m", "fastsock", *map(str, words)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment())
    try:
        yield Command(process, out, err)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
