"""Counting instructions: callgrind's files, what is taken from what, and the baseline that it is held against."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from fastsock.bench import hot_calls, instructions
from fastsock.bench.instructions import Build, Count, compare, written
from fastsock.bench.question import Plan
from fastsock.bench.questions.instructions import QUESTION

FILE = """\
# callgrind format
version: 1
part: 1

desc: Trigger: --dump-before=getloadavg
positions: line
events: Ir
summary: 1000

ob=/usr/lib/libc.so.6
fl=???
fn=malloc
0 600
ob=/own/fastsock/_receive.so
fl=???
fn=0x1234
0 300
cob=/usr/lib/libc.so.6
cfi=???
cfn=malloc
calls=7 0
0 600
16 100
totals: 1000

part: 2
ob=/own/fastsock_other/x.so
fn=f
+3 4
7 1

ob=/own/fastsock/_gso.so
fn=g
5 2
totals: 7
"""


def test_a_file_of_callgrind():
    # What a call costs inclusively is no cost of the caller's, and +3 is no position without --compress-pos.
    parts = list(instructions.read_parts(FILE.splitlines(), "/own/fastsock/"))
    assert parts == [(1000, 400), (3, 2)]


def test_every_second_part_is_between_marks():
    assert list(instructions.between_marks([(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)])) == [(2, 2), (4, 4)]


def sections(*calls):
    """What REPEATS of one batch and two come to, where a batch takes so much, and each section something more."""
    return [
        (100 + lengths * total, None if own is None else 10 + lengths * own)
        for total, own in calls
        for _ in range(hot_calls.REPEATS)
        for lengths in hot_calls.LENGTHS
    ]


def test_what_comes_once_cancels():
    found = instructions.per_datagram(["recv", "send"], sections((6400, 640), (64, 32)))
    assert found == {"recv": Count(100.0, 10.0), "send": Count(1.0, 0.5)}


def test_a_counter_knows_no_objects():
    assert instructions.per_datagram(["recv"], sections((6400, None))) == {"recv": Count(100.0, None)}


def test_one_repetition_that_differs_does_not_count():
    found = sections((6400, 640))
    found[3] = (10**9, 10**8)
    assert instructions.per_datagram(["recv"], found) == {"recv": Count(100.0, 10.0)}


def test_sections_that_are_missing():
    with pytest.raises(RuntimeError, match="13 sections were counted instead of 14"):
        instructions.per_datagram(["recv"], sections((1, 1))[1:])


# --- the baseline ------------------------------------------------------------------------------------------------

HERE = Build("cpython-3.13-x86_64", "Cython 3; cc 12; -O2", "3.13.0 (main)")
BASE = {
    "tolerance": 0.03,
    "reasons": {"recv": "because", "send": "because"},
    "builds": {
        HERE.key: {
            "compiled": HERE.compiled,
            "python": HERE.python,
            "counts": {"recv": {"total": 600.0, "own": 200.0}, "send": {"total": 10.0, "own": 5.0}},
        }
    },
}


def counts(recv=(600.0, 200.0), send=(10.0, 5.0), **more):
    return {name: Count(*found) for name, found in {"recv": recv, "send": send, **more}.items()}


def test_the_same_is_no_more():
    found = compare(counts(), HERE, BASE)
    assert (found.more, found.notes) == ([], [])
    assert found.before == counts()


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"recv": (617.0, 205.0)}, []),
        ({"recv": (619.0, 200.0)}, ["recv: 619.0 instructions in all, 600.0 before"]),
        ({"recv": (600.0, 206.5)}, ["recv: 206.5 instructions in fastsock, 200.0 before"]),
        ({"send": (10.4, 5.4)}, []),  # less than half an instruction
        ({"send": (10.0, 5.6)}, ["send: 5.6 instructions in fastsock, 5.0 before"]),
    ],
)
def test_more_than_the_tolerance_fails(change, more):
    assert compare(counts(**change), HERE, BASE).more == more


def test_less_is_told():
    found = compare(counts(recv=(500.0, 200.0)), HERE, BASE)
    assert found.more == []
    assert found.notes == ["recv: 500.0 instructions in all, 600.0 before: --write makes that the baseline"]


def test_a_call_without_a_baseline_fails():
    assert compare(counts(recvfrom=(1.0, 1.0)), HERE, BASE).more == ["recvfrom: has no baseline"]


def test_the_standard_library_is_held_against_nothing():
    assert compare(counts(**{"socket.recv": (1e9, 0.0)}), HERE, BASE).more == []


def test_another_interpreter_of_the_same_version_is_compared_in_fastsock_alone():
    other = Build(HERE.key, HERE.compiled, "3.13.9 (other)")
    found = compare(counts(recv=(9999.0, 200.0)), other, BASE)
    assert found.more == []
    assert "only fastsock's own part" in found.notes[0]
    assert compare(counts(recv=(600.0, 300.0)), other, BASE).more == [
        "recv: 300.0 instructions in fastsock, 200.0 before"
    ]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (Build("cpython-3.99-x86_64", HERE.compiled, HERE.python), "there is no baseline for cpython-3.99-x86_64"),
        (Build(HERE.key, "Cython 4", HERE.python), "was compiled by Cython 4"),
    ],
)
def test_another_build_is_not_compared_and_says_so(other, why):
    found = compare(counts(recv=(9999.0, 9999.0)), other, BASE)
    assert found.more == []
    (note,) = found.notes
    assert note.startswith("not compared")
    assert why in note


def test_writing_makes_a_baseline_that_is_met():
    other = Build("cpython-3.14t-aarch64", "Cython 4", "3.14.0")
    new = counts(recv=(1.0, 0.5), **{"socket.recv": (5.0, 0.0)})
    found = json.loads(json.dumps(written(new, other, BASE)))
    assert found["builds"].keys() == {HERE.key, other.key}
    assert found["builds"][HERE.key] == BASE["builds"][HERE.key]
    assert compare(new, other, found).more == []
    assert "socket.recv" not in found["builds"][other.key]["counts"]


def test_writing_wants_a_reason():
    with pytest.raises(ValueError, match="a reason for recvfrom"):
        written(counts(recvfrom=(1.0, 1.0)), HERE, BASE)


COMMITTED = Path(__file__).parent.parent / "bench" / "instructions.json"


@pytest.mark.skipif(not COMMITTED.exists(), reason="the benchmarks are not here")
def test_the_committed_baseline_has_every_call_and_its_reason():
    baseline = json.loads(COMMITTED.read_text())
    ours = set(hot_calls.CALLS) - set(hot_calls.STANDARD)
    assert baseline["reasons"].keys() == ours
    assert all(baseline["reasons"].values())
    for build in baseline["builds"].values():
        assert build["counts"].keys() == ours


def test_this_build_has_a_name():
    build = instructions.this_build()
    assert build.key.startswith("cpython-3.")
    assert build.key.endswith(os.uname().machine)
    assert build.compiled.startswith("Cython 3")
    assert build == instructions.this_build()


# --- for real ------------------------------------------------------------------------------------------------------


def test_every_call_can_be_made():
    ticks = iter(range(1 << 30))
    found = hot_calls.measure(lambda: next(ticks), hot_calls.CALLS)
    assert found == [1] * len(hot_calls.CALLS) * hot_calls.REPEATS * len(hot_calls.LENGTHS)


def test_baselines_are_calls():
    assert set(hot_calls.BASELINES) | set(hot_calls.STANDARD) <= set(hot_calls.CALLS)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif("FASTSOCK_SANITIZED" in os.environ, reason="the sanitizers do not run under valgrind")
def test_callgrind_counts():
    names = ["recv_batch", "recv_many", "socket.recv"]
    found = instructions.count("callgrind", names)
    assert list(found) == names
    for name, count in found.items():
        assert 0 <= count.own < count.total, name
    assert found["socket.recv"].own < 1  # what is not fastsock's
    assert 1 < found["recv_batch"].own < found["recv_many"].own
    assert found["recv_batch"].total < found["recv_many"].total < found["socket.recv"].total


def test_what_fails_under_a_tool_is_told():
    with pytest.raises(RuntimeError, match="KeyError: 'nothing'"):
        instructions.count("plain", ["nothing"])


def test_a_counter_of_the_kernel():
    """Of CPU time here, which every machine has: the instructions of many virtual ones cannot be counted."""
    software, task_clock = 1, 1
    try:
        counter = hot_calls.Counter(software, task_clock)
    except OSError as error:
        assert error.errno in (errno.EACCES, errno.EPERM, errno.ENOSYS)  # noqa: PT017
        return
    try:
        before = counter.read()
        sum(range(100_000))
        assert counter.read() > before
    finally:
        counter.close()


def test_without_any_tool_the_question_is_skipped_with_a_reason(monkeypatch):
    class Refused:
        def __init__(self):
            raise FileNotFoundError(errno.ENOENT, "none such")

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(hot_calls, "Counter", Refused)
    found = QUESTION.run(Plan(0, 1))
    assert found.tables == []
    assert "valgrind is not installed" in found.skipped
    assert "none such" in found.skipped


def test_answer():
    made = {name: Count(100.0 * number, 10.0) for number, name in enumerate(hot_calls.CALLS, 1)}
    found = instructions.answer("callgrind", made, {"recv": "because"}, {"recv": Count(50.0, 5.0)})
    assert [row.name for table in found.tables for row in table.rows][:2] == ["socket.recv", "recv"]
    assert {row.name for table in found.tables for row in table.rows} == set(made)
    rows = {row.name: row for row in found.tables[0].rows}
    assert rows["recv"].cells["ratio"] == made["socket.recv"].total / made["recv"].total
    assert (rows["recv"].cells["before"], rows["recv"].cells["why"]) == (50.0, "because")
    assert (rows["socket.recv"].kind, rows["recv"].kind, rows["recv"].baseline) == ("socket", "fastsock", "socket.recv")
    json.dumps(found.as_json())
