"""Scripts under strace: which calls they make, and what they do when one is refused.

A script runs in a process of its own and imports only fastsock and the standard library.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import environment

SEGMENT_ITEM = re.compile(r"cmsg_type=(?:UDP_SEGMENT|0x67)")

PAIR = """
import errno, os, signal, socket, sys, threading, time
import fastsock
def drain(sock):
    sock.setblocking(False)
    found = []
    try:
        while True:
            found += sock.recv_many(1000)
    except BlockingIOError:
        return found
def in_batch(payloads, **options):
    batch = fastsock.SendBatch(len(payloads), max(map(len, payloads)))
    for payload in payloads:
        batch.append(payload, **options)
    return batch
with fastsock.bind_udp(("127.0.0.1", 0)) as receiver, fastsock.connect_udp(receiver.getsockname()) as sender:
"""


class Call(NamedTuple):
    """A line of strace."""

    name: str
    line: str

    @property
    def result(self) -> int:
        """What the call returned."""
        value = self.line.rpartition(") = ")[2].split()[0]
        return -1 if value == "?" else int(value)  # "?" of an errno that is the kernel's own

    @property
    def segmented(self) -> int:
        """How many of its messages ask for segmentation."""
        return len(SEGMENT_ITEM.findall(self.line))


class Traced(NamedTuple):
    out: str
    calls: list[Call]

    def named(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.name in names]


def indented(script: str) -> str:
    """The body of the `with` that PAIR ends in."""
    return "".join(f"    {line}\n" for line in script.strip().splitlines())


def trace(script: str, names: str, *faults: str, before: tuple[str, ...] = (), **variables: str) -> Traced:
    """Run a script, which must end well, and list its calls; each fault is what follows inject=."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    with tempfile.TemporaryDirectory() as directory:
        lines = Path(directory, "trace")
        options = [option for fault in faults for option in ("-e", f"inject={fault}")]
        done = subprocess.run(
            [*before, strace, "-f", "-qq", "-v", "-s", "0", "-o", lines, "-e", f"trace={names}", *options,
             sys.executable, "-X", "faulthandler", "-c", script],
            capture_output=True, text=True, timeout=120, check=False, env={**environment(), **variables},
        )  # fmt: skip
        if "ptrace" in done.stderr.lower():
            pytest.skip("strace cannot trace here")
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Exception ignored" not in done.stderr, done.stderr
        found = re.findall(r"^\d+ +(\w+)(\(.*)$", lines.read_text(), re.MULTILINE)
    return Traced(done.stdout, [Call(*call) for call in found])


def trace_pair(script: str, *faults: str, names: str = "sendmsg,sendmmsg", **variables: str) -> Traced:
    """The same for a script with a `receiver`, and a `sender` connected to it."""
    return trace(PAIR + indented(script), names, *faults, **variables)
