"""The question about latency: the processes that it starts, its tables and plots. No figure of time is asserted."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import wait_until

from fastsock.bench import echo, native
from fastsock.bench.ends import Ends, connected_pair, parse_cpus, served, two_cpus
from fastsock.bench.question import Plan
from fastsock.bench.questions import latency
from fastsock.bench.results import Figure

WAYS = [*echo.THREADED, *echo.LOOPS]


def here(way):
    if way in echo.LOOPS:
        pytest.importorskip(echo.LOOPS[way][0])
    return way


@pytest.fixture
def library():
    """The path of echo.c's."""
    found = native.built("echo.c")
    return None if isinstance(found, str) else found._name


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- for real ------------------------------------------------------------------------------------------------


def test_answer_of_one_round(library):
    affinity = os.sched_getaffinity(0)
    seen = []
    plan = Plan(0.0, 1, sizes=(64,), rounds=1, progress=lambda what, share: seen.append((what, share)))
    answer = latency.run(plan)
    assert os.sched_getaffinity(0) == affinity
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1)
    assert json.loads(json.dumps(answer.as_json()))["question"] == latency.QUESTION.name == "latency"
    assert answer.elapsed_s > 0
    assert "coordinated omission" in answer.method
    assert len(answer.tables) == (5 if len(affinity) > 1 else 2)
    assert len(answer.plots) == 2 * len(answer.tables)
    ways = latency.available(library)
    assert set(ways) >= {*echo.THREADED, "asyncio", "fastsock.aio"}
    expected = [set(ways) - set(echo.UNTHREADED), set(ways) - set(echo.SPINNING), *[set(ways)] * 3]
    for table, names in zip(answer.tables, expected, strict=False):
        assert {row.name for row in table.rows} == names
        columns = [column.name for column in table.columns]
        for row in table.rows:
            assert set(row.cells) == set(columns)
            assert row.cells["samples"] >= 1
            assert row.cells["missing"] >= 0
            assert row.cells["max"] > 0
            if "requests/s" in table.title:
                assert (row.cells.get("ratio"), row.baseline) == (None, None)
            else:
                assert row.cells["ratio"].median > 0
                assert row.baseline == (None if row.name == "socket.recv" else "socket.recv")
    rates = [table for table in answer.tables if table.title.startswith("Answer at")]
    for table in rates:
        assert len({row.cells["samples"] for row in table.rows}) == 1  # whatever the server does
        assert all(0 < row.cells["cpu"] <= 101 for row in table.rows)
        assert "of what the slowest" in table.note


def test_one_cpu_is_enough(monkeypatch):
    monkeypatch.setattr(latency, "two_cpus", lambda: [min(os.sched_getaffinity(0))])
    answer = latency.run(Plan(0.0, 1, rounds=1))
    assert [table.title for table in answer.tables] == [
        "Round trip, both ends in one thread",
        "Round trip, two processes on one CPU",
    ]
    assert "may use one CPU" in answer.tables[-1].note


def test_without_a_compiler():
    assert set(latency.available("echo.so")) - set(latency.available(None)) == set(echo.NATIVE)


@pytest.mark.parametrize("way", [*WAYS, *echo.NATIVE])
def test_every_way_answers_each_request_once(way, library):
    """Several at once too, with what was sent."""
    if way in echo.NATIVE and library is None:
        pytest.skip("no C compiler")
    with Ends([here(way)]) as ends, served(ends.server(way), way, None, library=library) as near:
        near.settimeout(30)
        sent = [echo.request(number, 14 + 100 * number) for number in range(20)]
        for first in (0, 1, 5):
            for payload in sent[first : 2 * first + 1]:
                near.send(payload)
            assert sorted(near.recv(4096) for _ in range(first + 1)) == sorted(sent[first : 2 * first + 1])


@pytest.mark.parametrize("way", [*WAYS, *echo.NATIVE])
def test_an_answer_that_does_not_come_ends_the_turn(way, library):
    if way in echo.NATIVE and library is None:
        pytest.skip("no C compiler")
    timeout_s = 0.02
    spec = {"library": library, "size": 64, "duration_ns": 10**12, "timeout_s": timeout_s, "most": 100}
    with Ends([here(way)]) as ends, connected_pair() as (near, _):
        client = ends.client(way)
        found = client.call([near], 0, do="trips", way=way, cpu=None, **spec)
        assert found == {"count": 1, "missing": 1}
        assert client.samples[0] >= timeout_s * 1e9 * 0.99


def test_requests_at_a_rate_that_nobody_answers():
    with Ends(["socket.recv"]) as ends, connected_pair() as (near, _):
        spec = {"count": 50, "interval_ns": 1000, "timeout_ns": 10**7, "size": 64, **latency.WARMING, "quiet_ns": 10**6}
        found = ends.generator.call([near], 0, do="load", cpu=None, **spec)
        assert ends.generator.samples[echo.MAX_SAMPLES : echo.MAX_SAMPLES + 50].tolist() == [0] * 50
        assert all(ends.generator.samples[:50])
        assert found["end_ns"] - found["first_ns"] >= 10**7


@pytest.mark.parametrize(("least", "until_s", "takes"), [(0.0, 1e12, 1), (2.0, 1e12, latency.TAKES), (2.0, 0.0, 1)])
def test_a_turn_in_which_the_client_was_kept_waiting_is_taken_again(monkeypatch, least, until_s, takes):
    """Where it had less than `least` of its CPU, as long as there is time."""
    monkeypatch.setattr(latency, "LEAST_CPU", least)
    record = latency.Record()
    with Ends([]) as ends:
        cpus = (min(os.sched_getaffinity(0)),) * 2
        bench = latency.Bench(ends, None, 64, until_s)
        told, heard = ends.server("socket.recv").tell, []
        ends.server("socket.recv").tell = lambda *args, **spec: (heard.append(spec), told(*args, **spec))
        found = bench.at_rate(cpus, 10_000, 0.005, "socket.recv", record)
    assert len(heard) == takes
    assert (record.histogram.count, record.late.count, len(record.cpu)) == (50, 50, 1)  # one take counts
    assert record.late.minimum >= 0
    assert found["p50"] >= record.histogram.minimum > 0


# --- ends ----------------------------------------------------------------------------------------------------


def test_asyncio_alone_does_not_have_fastsock():
    with Ends(["asyncio"]) as ends, served(ends.server("asyncio"), "asyncio", None):
        assert "/fastsock/_" not in Path(f"/proc/{ends.server('asyncio').process.pid}/maps").read_text()


def test_a_failure_in_an_end_is_told():
    with Ends([]) as ends, connected_pair() as (near, _), pytest.raises(RuntimeError, match="KeyError: 'way'"):
        ends.generator.call([near], 0, do="trips", cpu=None)


def test_an_end_that_dies_is_told():
    with Ends([]) as ends:
        ends.generator.process.kill()
        with pytest.raises(RuntimeError, match="exit status -9"):
            ends.generator.hear()


def test_a_busy_end_is_gone_behind_the_block():
    with Ends(["socket.recv, spinning"]) as ends:
        pids = [ends.generator.process.pid, ends.server("socket.recv, spinning").process.pid]
        with connected_pair() as (_, far):
            ends.server("socket.recv, spinning").tell([far], do="serve", way="socket.recv, spinning", cpu=None)
            ends.server("socket.recv, spinning").hear()
    assert not any(map(is_running, pids))


def test_ctrl_c_does_not_reach_the_ends():
    with Ends([]) as ends:
        assert os.getpgid(ends.generator.process.pid) != os.getpgrp()


SCRIPT = """
import sys
from fastsock.bench.ends import Ends, connected_pair
with Ends(["socket.recv, spinning"]) as ends, connected_pair() as (_, far):
    server = ends.server("socket.recv, spinning")
    server.tell([far], do="serve", way="socket.recv, spinning", cpu=None)
    server.hear()
    print(server.process.pid, ends.generator.process.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_ends_go_with_their_parent(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert all(map(is_running, pids))
        process.send_signal(number)
        process.wait(30)
        wait_until(lambda: not any(map(is_running, pids)), "the ends are gone")


def test_ctrl_c_ends_the_command():
    process = subprocess.Popen(
        [sys.executable, "-m", "fastsock", "bench", "latency", "--rounds", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    with process:
        ends = wait_until(lambda: ends_of(process.pid), "it started the ends")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")  # the ends say nothing either
        wait_until(lambda: not any(map(is_running, ends)), "the ends are gone")


def ends_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"echo.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


# --- what it comes to ----------------------------------------------------------------------------------------


def record(values, missing=0):
    found = latency.Record()
    found.add(values, missing)
    return found


SAME = Figure(1.0, 1.0, 1.0)


def test_a_percentile_is_told_where_ten_samples_are_above():
    def cells(count):
        (row,) = latency.table_of(
            "", {"socket.recv": record(range(1000, 1000 + count))}, {"socket.recv": SAME}, ""
        ).rows
        return [name for name in latency.PERCENTILES if row.cells[name] is not None]

    assert cells(19) == []
    assert cells(20) == ["p50"]
    assert cells(999) == ["p50", "p90"]
    assert cells(1000) == ["p50", "p90", "p99"]
    assert cells(99_999) == ["p50", "p90", "p99", "p99.9"]
    assert cells(100_000) == ["p50", "p90", "p99", "p99.9", "p99.99"]


def test_cells():
    records = {
        "socket.recv": record([2000] * 100),
        "Socket.recv": record([1000] * 99 + [200_000_000], missing=1),
    }
    faster = Figure(2.0, 1.9, 2.1)
    table = latency.table_of("title", records, {"socket.recv": SAME, "Socket.recv": faster}, "note")
    assert [row.name for row in table.rows] == ["socket.recv", "Socket.recv"]
    cells = table.rows[1].cells
    assert cells["p50"] == cells["p90"] == pytest.approx(1.0, rel=0.01)
    assert (cells["max"], cells["samples"], cells["missing"], cells["p99"]) == (200_000.0, 100, 1, None)
    assert cells["ratio"] == faster
    assert "late" not in cells


def test_a_turn_tells_its_median_and_adds_to_the_histogram():
    found = latency.Record()
    assert found.add([1000, 3000, 2000], 0) == {"p50": 2000}
    assert found.add([9000], 1) == {"p50": 9000}
    assert (found.histogram.count, found.histogram.maximum, found.missing) == (4, 9000, 1)


def test_curves_end_where_samples_do():
    plot = latency.curves("title", {"socket.recv": record(range(1000))})
    assert plot.x_scale == "percentile"
    (line,) = plot.lines
    assert line.points[-1][0] == 99
    assert [us for _, us in line.points] == sorted(us for _, us in line.points)


def test_bars_add_up():
    (line,) = latency.bars("title", {"C recv": record([*range(1000, 5000)])}).lines
    assert sum(share for _, share in line.points) == pytest.approx(100)
    assert line.kind == "c"
    assert min(us for us, _ in line.points) <= 1.0 < max(us for us, _ in line.points) < 5.0


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(0, 100), (99.5, 100), (140, 140), (149.9, 140), (12_682, 12_000), (38_999, 38_000), (199_999.9, 190_000)],
)
def test_rates_are_round(rate, expected):
    assert latency.round_down(rate) == expected


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", {0}), ("0-1\n", {0, 1}), ("0,4\n", {0, 4}), ("0-2,7,9-10", {0, 1, 2, 7, 9, 10})]
)
def test_lists_of_cpus(text, cpus):
    assert parse_cpus(text) == cpus


def test_two_cpus_are_ours_and_differ():
    found = two_cpus()
    assert set(found) <= os.sched_getaffinity(0)
    assert len(set(found)) == len(found) == min(2, len(os.sched_getaffinity(0)))


def test_answers_for_sockperf():
    asked = echo.request(7, 20)
    answer = echo.as_server(asked)
    assert echo.HEADER.unpack_from(asked) == (7, echo.IS_CLIENT | echo.WANTS_ANSWER, 20)
    assert echo.HEADER.unpack_from(answer) == (7, echo.WANTS_ANSWER, 20)
    assert (len(asked), answer[14:]) == (20, asked[14:])
