"""The examples of a markdown file: how they are found, and how they are run.

A ```python block with `>>>` is an example. Each heading down to the third level begins a session: its blocks run in
order, with doctest, and share their names; at its end its sockets are closed. A block after the line "strace:" is what
strace printed for the example before it. May import fastsock and the standard library.
"""

import contextlib
import doctest
import gc
import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import fastsock

MARK = 1_000_000
"""Closing this descriptor, which is none, marks the first block of a session for strace; the next, the second."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)


class Block(NamedTuple):
    language: str
    text: str
    line: int
    """Of the file, where the text begins."""
    before: str
    """What stands above it, to the block before."""

    @property
    def is_example(self) -> bool:
        return self.language == "python" and ">>>" in self.text


class Session(NamedTuple):
    title: str
    blocks: list[Block]

    @property
    def examples(self) -> list[Block]:
        return [block for block in self.blocks if block.is_example]

    @property
    def traces(self) -> list[tuple[int, Block]]:
        """What strace printed: (index of the example that it is of, the block)."""
        found = []
        for index, block in enumerate(self.blocks):
            if block.before.strip() == "strace:":
                found.append((len([before for before in self.blocks[:index] if before.is_example]) - 1, block))
        return found


def read_sessions(path: Path) -> list[Session]:
    """The sessions of a file, also those without an example."""
    text = path.read_text()
    prose = FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)  # without what only looks like a heading
    sessions: list[Session] = []
    end = 0
    for match in sorted([*HEADING.finditer(prose), *FENCE.finditer(text)], key=re.Match.start):
        if match.re is HEADING:
            sessions.append(Session(match[1], []))
        else:
            line = text.count("\n", 0, match.start(2))
            sessions[-1].blocks.append(Block(match[1], match[2], line, text[end : match.start()]))
        end = match.end()
    return sessions


def run_session(path: str, title: str, marks: bool = False) -> None:
    """Run a session here, which must be a process of its own; exits with what went wrong."""
    (session,) = (session for session in read_sessions(Path(path)) if session.title == title)
    names: dict[str, Any] = {"__name__": "__main__"}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for index, block in enumerate(session.examples):
        test = parser.get_doctest(block.text, names, f"{Path(path).name}, {title}", path, block.line)
        test.globs = names  # not a copy: the next block goes on with them
        if marks:
            with contextlib.suppress(OSError):
                os.close(MARK + index)
        if runner.run(test, clear_globs=False).failed:
            sys.exit(1)
    if marks:
        with contextlib.suppress(OSError):
            os.close(MARK + len(session.examples))
    for value in names.values():
        if isinstance(value, fastsock.Socket):
            value.close()
    names.clear()
    gc.collect()  # a socket without a name that was left open warns now
