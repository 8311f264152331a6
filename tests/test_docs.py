"""Every example of the documents runs, and strace shows what they say that it shows."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import needs, needs_ipv6
from doc_examples import MARK, Session, read_sessions
from tracing import Call, trace

ROOT = Path(__file__).parent.parent
CHAPTER = ROOT / "docs" / "sockets.md"
DOCUMENTS = [CHAPTER, ROOT / "README.md", ROOT / "docs" / "guide.md", ROOT / "docs" / "reference.md"]

RUN = "import sys\nfrom doc_examples import run_session\nrun_session(*sys.argv[1:])"
TRACED = "from doc_examples import run_session\nrun_session({path!r}, {title!r}, marks=True)"
TRACED_CALLS = "%network,ppoll,close"  # close for the marks alone: imports and tracebacks read files


def needs_package(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


WANTED = {
    "import numpy": needs_package("numpy"),
    "import polars": needs_package("polars"),
    "import pyarrow": needs_package("pyarrow"),
    "AF_INET6": needs_ipv6,
    "gro=True": needs("gro"),
    "gso = True": needs("gso"),
    ".drops": needs("drop_counter"),
    "error_queue=True": needs("error_queue"),
}
"""What an example that has such a word needs: of the kernel, or beside fastsock."""

FLAG = re.compile(r"\b(?:AF|SOCK|IPPROTO|SOL|SO|MSG|SHUT|UDP)_\w+|\bPOLL\w+")
SHOWN = re.compile(r"^(\w+)(\(.*)$", re.MULTILINE)


def marked(session: Session) -> list[pytest.MarkDecorator]:
    text = "".join(block.text for block in session.examples)
    return [mark for word, mark in WANTED.items() if word in text]


SESSIONS = [
    pytest.param(path, session.title, marks=marked(session), id=f"{path.name}: {session.title}")
    for path in DOCUMENTS
    for session in read_sessions(path)
    if session.examples
]
TRACES = [
    pytest.param(session, index, block.text, marks=marked(session), id=f"{session.title}, line {block.line}")
    for session in read_sessions(CHAPTER)
    for index, block in session.traces
]


def result_of(line: str) -> str:
    """What a call returned: a number, without that of a descriptor, or the error."""
    value = re.split(r"\) += ", line)[-1].split()
    return value[1] if value[0] in ("-1", "?") else value[0]


def differences(shown: str, calls: list[Call]) -> list[str]:
    """What a document shows and the kernel did not, or the other way round."""
    wrong = []
    expected = [Call(*match) for match in SHOWN.findall(shown)]
    if [call.name for call in expected] != [call.name for call in calls]:
        return [f"calls: {[call.name for call in expected]}, made: {[call.name for call in calls]}"]
    for claimed, made in zip(expected, calls, strict=True):
        missing = set(FLAG.findall(claimed.line)) - set(FLAG.findall(made.line))
        if missing:
            wrong.append(f"{sorted(missing)} of {claimed.line} not in {made.line}")
        if claimed.name not in ("socket", "accept4") and result_of(claimed.line) != result_of(made.line):
            wrong.append(f"result of {claimed.line} was that of {made.line}")
    return wrong


@pytest.mark.parametrize(("path", "title"), SESSIONS)
def test_examples(isolated: Callable[..., str], path: Path, title: str) -> None:
    isolated(RUN, path, title)


def test_every_block_of_the_chapter_is_an_example() -> None:
    blocks = [block for session in read_sessions(CHAPTER) for block in session.blocks]
    python = [block for block in blocks if block.language == "python"]
    assert len(python) > 20
    assert [block.line for block in python if not block.is_example] == []
    others = {block.line for block in blocks if block.language != "python"}
    assert others == {block.line for session in read_sessions(CHAPTER) for _, block in session.traces}


def test_titles_are_unique() -> None:
    for path in DOCUMENTS:
        titles = [session.title for session in read_sessions(path)]
        assert len(titles) == len(set(titles)), path.name


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (">>> 1 + 1\n3\n", "Got:"),
        (">>> 1 / 0\n0\n", "ZeroDivisionError"),
        (">>> print('more than this')\nmore\n", "more than this"),
        (">>> from fastsock import socket\n>>> left_open = [socket.socket()]\n", "unclosed"),
    ],
)
def test_a_wrong_example_fails(isolated: Callable[..., str], tmp_path: Path, example: str, said: str) -> None:
    path = tmp_path / "wrong.md"
    path.write_text(f"# Title\n\n```python\n>>> name = 1\n```\n\n```python\n>>> name\n1\n{example}```\n")
    with pytest.raises(AssertionError, match=re.escape(said)):
        isolated(RUN, path, "Title")


def test_headings_in_blocks_are_none(tmp_path: Path) -> None:
    path = tmp_path / "headings.md"
    path.write_text("# One\n\n```text\n# no heading\n```\n\n```python\n>>> 1\n1\n```\n\n#### below\n\n## Two\n")
    assert [(session.title, len(session.blocks)) for session in read_sessions(path)] == [("One", 2), ("Two", 0)]
    assert [block.line for block in read_sessions(path)[0].examples] == [7]


@pytest.mark.parametrize(("session", "index", "shown"), TRACES)
def test_system_calls(session: Session, index: int, shown: str) -> None:
    calls = trace(TRACED.format(path=str(CHAPTER), title=session.title), TRACED_CALLS).calls
    marks = [f"({MARK + mark})" for mark in (index, index + 1)]
    start, end = (at for at, call in enumerate(calls) if call.name == "close" and call.line.startswith(tuple(marks)))
    assert differences(shown, [call for call in calls[start:end] if call.name != "close"]) == []


def test_differences_are_seen() -> None:
    call = Call("sendto", '(4, "", 4, MSG_DONTWAIT, NULL, 0) = 4')
    none = Call("recvfrom", "(3, 0x7f00, 100, MSG_DONTWAIT, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)")
    shown = 'sendto(7, "ping", 4, MSG_DONTWAIT, ...) = 4\n--- SIGALRM ---\nrecvfrom(3, ...) = -1 EAGAIN (...)\n'
    assert differences(shown, [call, none]) == []
    assert differences(shown, [none, call])
    assert differences(shown, [call])
    assert differences(shown.replace("= 4", "= 5"), [call, none])
    assert differences(shown.replace("MSG_DONTWAIT", "MSG_PEEK"), [call, none])
    assert differences(shown.replace("EAGAIN", "EINTR"), [call, none])
