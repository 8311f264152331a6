"""`fastsock bench`: its options and what it prints. No figure of time is asserted."""

import argparse
import dataclasses
import json
import random

import pytest

import fastsock
from fastsock.bench import guard, native, targets
from fastsock.bench.contestants import VLEN, Links, has_gro
from fastsock.bench.environment import SYSCTLS
from fastsock.bench.paired import measure
from fastsock.bench.question import Plan, Question
from fastsock.bench.questions import batch, epoll, find_questions, gro, payload, peers, receive, send
from fastsock.bench.results import Answer, Bars, Column, Figure, Row, Table
from fastsock.cli import bench, main

RACING = [one.QUESTION for one in (receive, send, gro, epoll, batch, payload, peers)]


def parse(*argv):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)


def as_if(answered, **more):
    """A question that notes the plans it gets."""

    def run(plan):
        answered.append(plan)
        plan.progress("halfway", 0.5)
        return Answer("made-up", "Is it?", "Made up.")

    return Question("made-up", "Is it?", run, **more)


@pytest.fixture
def made_up(monkeypatch):
    """Questions in place of the real ones; returns the plans that they get."""
    plans = []
    known = {
        "one": dataclasses.replace(as_if(plans), name="one"),
        "two": dataclasses.replace(as_if(plans, weight=3), name="two"),
        "rare": dataclasses.replace(as_if(plans, by_default=False), name="rare"),
    }
    monkeypatch.setattr(bench, "find_questions", lambda: known)
    return plans


# --- the answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("question", RACING, ids=lambda question: question.name)
def test_a_question_answers_in_tables_that_hold_together(question):
    answer = question.run(Plan(0, 1, sizes=(64, 300), rounds=1))
    assert answer.question == question.name
    assert answer.title.endswith("?")
    if answer.skipped:
        assert not has_gro()
        return
    assert answer.tables
    for table in answer.tables:
        columns = {column.name: column for column in table.columns}
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names) > 0
        for row in table.rows:
            assert row.cells.keys() == columns.keys()
            assert row.baseline is None or row.baseline in names
            for cell in row.cells.values():
                assert 0 < cell.low <= cell.median <= cell.high
    for bars in answer.bars:
        assert all(value >= 0 for bar in bars.bars for value in bar.parts.values())
    for plot in answer.plots:
        assert all(len(line.points) > 1 for line in plot.lines)
    json.dumps(answer.as_json())


def test_the_receive_question_has_c_in_the_same_table_and_bars():
    if native.missing():
        pytest.skip(native.missing())
    answer = receive.QUESTION.run(Plan(0, 1, sizes=(64,), rounds=1))
    (table,) = answer.tables
    kinds = {row.name: row.kind for row in table.rows}
    assert {"socket", "fastsock", "c"} == set(kinds.values())
    assert kinds["C recvmmsg"] == "c"
    (bars,) = answer.bars
    assert isinstance(bars, Bars)
    assert [list(bar.parts) for bar in bars.bars if bar.name == "recv_many(64)"] == [
        ["kernel", "library", "Python objects"]
    ]


def test_without_a_compiler_every_race_goes_on_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    native.built.cache_clear()
    try:
        assert "no-such-compiler was not found" in native.missing()
        with pytest.raises(OSError, match="was not found"):
            native.library()
        for question in RACING:
            answer = question.run(Plan(0, 1, sizes=(64,), rounds=1))
            if answer.skipped:
                assert not has_gro()
                continue
            assert all(row.kind != "c" for table in answer.tables for row in table.rows)
            assert any("was not found" in table.note for table in answer.tables)
    finally:
        native.built.cache_clear()


def test_a_compiler_that_fails_is_a_reason(monkeypatch, tmp_path):
    failing = tmp_path / "cc"
    failing.write_text("#!/bin/sh\necho no luck today >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.built.cache_clear()
    try:
        assert "no luck today" in native.missing()
        assert list((tmp_path / "cache" / "fastsock").iterdir()) == []
    finally:
        native.built.cache_clear()


def test_the_library_is_cached_where_only_its_owner_writes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = native.cache_directory()
    assert directory == tmp_path / "fastsock"
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    for cache in (tmp_path, tmp_path / "not there" / "either"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        elsewhere = native.cache_directory()
        assert not elsewhere.is_relative_to(tmp_path)
        assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "not there").exists()


def test_what_has_no_room_is_left_out_and_noted(monkeypatch):
    real = Links.open

    def opened(self, size):
        if size == 300:
            raise OSError(105, "no room for it")
        return real(self, size)

    monkeypatch.setattr(Links, "open", opened)
    (table,) = receive.QUESTION.run(Plan(0, 1, sizes=(64, 300), rounds=1)).tables
    assert [column.name for column in table.columns] == ["ns_64", "ratio_64"]
    assert "receive, 300: no room for it." in table.note
    answer = receive.QUESTION.run(Plan(0, 1, sizes=(300,), rounds=1))
    assert (answer.tables, "no room for it" in answer.skipped) == ([], True)


# Below one message of joined datagrams, the most that one holds, two messages, many.
@pytest.mark.parametrize("size", [1, 64, 1023, 1024, 1400, 9000])
@pytest.mark.parametrize("name", ["receive-gro", "send-gro"])
def test_gro_contestants_move_what_they_say(name, size):
    if not has_gro():
        pytest.skip("no UDP GRO here")
    race = gro.races()[name]
    batched = {"recv_batch, GRO", "C GRO", "C GRO, columns"}
    with dataclasses.replace(race, count=VLEN, warm_count=VLEN).open(size) as (contestants, count):
        assert count == VLEN
        others = [contestant for contestant in contestants if contestant.name not in batched]
        assert measure(others, count, 1, warm_count=VLEN).rounds == 1
    if batched & race.baselines.keys():  # take GRO_VLEN messages at once
        with race.open(size) as (contestants, count):
            assert measure(contestants, count, 1, warm_count=race.warm_count).rounds == 1


# --- which questions, and for how long ------------------------------------------------------------


def test_every_question_is_found_and_named_as_its_module():
    found = find_questions()
    assert {question.name for question in RACING} <= found.keys()
    for name, question in found.items():
        assert question.name == name
        assert question.title.endswith("?")
        assert question.weight > 0


def test_list(capsys):
    assert bench.run(parse("--list")) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(find_questions())
    assert bench.run(parse("--list", "--json")) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(find_questions())


def test_questions_share_the_time_by_weight(made_up, capsys):
    assert bench.run(parse("--json")) == 0
    assert [plan.budget_s for plan in made_up] == pytest.approx([bench.DEFAULT_S / 4, bench.DEFAULT_S * 3 / 4])
    made_up.clear()
    assert bench.run(parse("--json", "--full")) == 0
    assert sum(plan.budget_s for plan in made_up) == pytest.approx(bench.FULL_S)
    assert len(made_up) == 3
    made_up.clear()
    assert bench.run(parse("--json", "--quick", "rare", "two", "rare", "--seed", "7", "--sizes", "9")) == 0
    assert [(plan.budget_s, plan.seed, plan.sizes) for plan in made_up] == [
        (bench.QUICK_NAMED_S, 7, (9,)),
        (3 * bench.QUICK_NAMED_S, 7, (9,)),
    ]
    capsys.readouterr()


def test_budgets_keep_to_what_is_promised():
    assert bench.DEFAULT_S < 60
    assert bench.FULL_S < 300


def test_progress_is_of_the_whole(made_up, monkeypatch, capsys):
    told = []
    monkeypatch.setattr(bench, "nothing", lambda what, share: told.append((what, share)))
    assert bench.run(parse("--json")) == 0
    assert told == [("halfway", pytest.approx(1 / 8)), ("halfway", pytest.approx(1 / 4 + 3 / 8))]
    capsys.readouterr()


@pytest.mark.parametrize(
    "words", [["nonsense"], ["targets", "receive"], ["guard", "targets"], ["--quick", "--full"]], ids=" ".join
)
def test_wrong_usage(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--json", *words])
    assert caught.value.code == 2
    assert "usage: fastsock bench" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "64,", "x", "0", "65508", "-1", "1.5"])
def test_bad_sizes(text, capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--sizes", text)
    assert caught.value.code == 2
    assert "--sizes" in capsys.readouterr().err


def test_sizes_are_taken_once():
    assert parse("--sizes", "64,1400,64").sizes == [64, 1400]


@pytest.mark.parametrize("text", ["0", "-1", "many"])
def test_bad_rounds(text, capsys):
    with pytest.raises(SystemExit):
        parse("--rounds", text)
    assert "--rounds" in capsys.readouterr().err


# --- what is printed --------------------------------------------------------------------------------


def test_json(capsys):
    assert bench.run(parse("receive", "--json", "--rounds", "1", "--sizes", "64,300", "--seed", "5")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found.keys() == {"fastsock_bench", "environment", "seed", "answers"}
    assert (found["fastsock_bench"], found["seed"]) == (1, 5)
    about = found["environment"]
    assert about["fastsock"] == fastsock.__version__
    assert about["sysctls"].keys() == set(SYSCTLS)
    assert {"kernel", "cpu", "mitigations", "governor", "virtualised", "load", "date", "compiler"} <= about.keys()
    (answer,) = found["answers"]
    assert answer["question"] == "receive"
    assert answer["elapsed_s"] > 0
    assert [column["name"] for column in answer["tables"][0]["columns"]] == [
        *("ns_64", "ratio_64", "ns_300", "ratio_300")
    ]


def test_table(capsys):
    pytest.importorskip("rich")
    assert bench.run(parse("receive", "--rounds", "1", "--sizes", "64")) == 0
    out = capsys.readouterr().out
    assert out.startswith("Linux ")
    assert f"fastsock {fastsock.__version__}" in out
    assert receive.QUESTION.title in out
    for name in receive.races()["receive"].baselines:
        assert name in out


def drawn(tables, monkeypatch, capsys, width):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", str(width))
    about = {"kernel": "6", "machine": "m", "cpus": 1, "implementation": "C", "python": "3", "fastsock": "0"}
    bench.print_answers([Answer("q", "Is it?", "So.", tables=tables)], about | {"load": [0.0]})
    return capsys.readouterr().out


@pytest.fixture
def wide_table():
    columns = [
        column
        for size in (64, 1400)
        for column in (Column(f"ns_{size}", f"{size} B", "ns", 0), Column(f"ratio_{size}", "×", "x", 2))
    ]
    figure = Figure(9876.5, 8765.4, 10987.6)
    cells = {column.name: figure for column in columns}
    rows = [Row("socket.recv, timeout", cells, "socket"), Row("recv_many", cells, baseline="socket.recv, timeout")]
    return Table("made up", columns, rows)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_table_fits_its_terminal(width, wide_table, monkeypatch, capsys):
    out = drawn([wide_table], monkeypatch, capsys, width)
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    assert "9,876" in out
    assert ("quartiles" in out) == (width >= 80)
    assert ("1400 B" in out) == (width >= 60)


def test_what_is_skipped_says_why(capsys, made_up, monkeypatch):
    pytest.importorskip("rich")
    skipped = Question("one", "Is it?", lambda plan: Answer("one", "Is it?", "", skipped="no such thing here"))
    monkeypatch.setattr(bench, "find_questions", lambda: {"one": skipped})
    assert bench.run(parse("one")) == 0
    assert "Not measured: no such thing here" in capsys.readouterr().out


# --- targets and floors ------------------------------------------------------------------------------


def test_targets_and_floors_name_contestants_that_there_are():
    races = targets.races()
    for row in (*targets.TARGETS, *targets.EXTRAS, *(floor.target for floor in guard.read_floors())):
        name, size = row.group.split()
        if name not in races:
            assert name.endswith("gro")
            continue
        assert int(size) > 0
        race = races[name]
        names = set(race.baselines) or {name for side in race.sides for name in side.table}
        for contestant in (row.contestant, row.baseline):
            assert contestant in names or (contestant.startswith("C ") and native.missing())


def floor_of(ratio):
    return guard.Floor("epoll 1", "Epoll.poll", "select.epoll", ratio, "made up")


def test_guard_measures_again_only_what_is_short(monkeypatch):
    measured = []

    def measure_group(races, group, rounds, rng, **options):
        measured.append(group)
        ns = {name: [1.0] for name in ("Epoll.poll", "select.epoll", "EpollSelector", "selectors.EpollSelector")}
        return targets.Samples(ns)

    monkeypatch.setattr(targets, "measure_group", measure_group)
    held = guard.Floor("epoll 100", "EpollSelector", "selectors.EpollSelector", 1.1, "within 15 %")
    answer, failed = guard.run(Plan(0, 1), floors=[floor_of(2.0), held])
    assert failed
    assert measured == ["epoll 1", "epoll 100", "epoll 1", "epoll 1"]
    assert [row.cells["verdict"] for row in answer.tables[0].rows] == ["short", "holds"]
    answer, failed = guard.run(Plan(0, 1), floors=[floor_of(1.0)])
    assert not failed


def test_guard_exits_with_1_where_a_floor_does_not_hold(monkeypatch, capsys):
    monkeypatch.setattr(guard, "read_floors", lambda: [floor_of(1000.0)])
    assert bench.run(parse("guard", "--json", "--rounds", "1", "--best-of", "1")) == 1
    monkeypatch.setattr(guard, "read_floors", lambda: [floor_of(0.001)])
    assert bench.run(parse("guard", "--json", "--rounds", "1")) == 0
    capsys.readouterr()


def test_floors_have_reasons(tmp_path):
    floors = guard.read_floors()
    assert len({floor.target.what for floor in floors}) == len(floors)
    path = tmp_path / "floors.toml"
    path.write_text('[[floor]]\ngroup = "a 1"\ncontestant = "a"\nbaseline = "b"\nfloor = 1.0\nreason = ""\n')
    with pytest.raises(ValueError, match="a reason"):
        guard.read_floors(path)


def test_a_target_is_short_below_its_ratio_and_an_extra_above_its_cost():
    target, extra = targets.Target("a 1", "own", "base", 2.0), targets.Extra("a 1", "own", "base", 10.0)
    samples = targets.Samples({"own": [10.0, 10.0], "base": [25.0, 15.0]})
    assert targets.come_to(target, samples).median == 2
    assert targets.verdict(target, targets.come_to(target, samples)) == "pass"
    assert targets.verdict(extra, targets.come_to(extra, samples)) == "pass"
    slower = targets.Samples({"own": [11.0], "base": [0.5]})
    assert targets.verdict(target, targets.come_to(target, slower)) == "short"
    assert targets.verdict(extra, targets.come_to(extra, slower)) == "short"
    assert targets.verdict(target, targets.come_to(target, None)) == "not here"


def test_the_best_run_of_each_row_counts():
    target, extra = targets.Target("a 1", "own", "base"), targets.Extra("a 1", "own", "base")
    low, high = Figure(1, 1, 1), Figure(2, 2, 2)
    assert targets.better(target, low, high) == targets.better(target, high, None) == high
    assert targets.better(extra, low, high) == targets.better(extra, None, low) == low


def test_a_terminal_of_80_columns_shows_every_verdict(monkeypatch, capsys):
    monkeypatch.setattr(targets, "measure_live", lambda plan, **options: [])
    for answer in (targets.run(Plan(0, 1, rounds=1), best_of=1)[0], guard.run(Plan(0, 1, rounds=1), best_of=1)[0]):
        out = drawn(answer.tables, monkeypatch, capsys, 80)
        verdicts = [row.cells["verdict"] for table in answer.tables for row in table.rows]
        for word in ("pass", "short", "holds"):
            assert out.count(f" {word} ") == verdicts.count(word)


def test_targets_are_checked_only_where_asked(monkeypatch, capsys):
    answer = Answer("targets", "Is it?", "So.")
    monkeypatch.setattr(targets, "run", lambda plan, **options: (answer, ["something"]))
    assert bench.run(parse("targets", "--json")) == 0
    assert bench.run(parse("targets", "--json", "--check")) == 1
    capsys.readouterr()


def test_one_round_of_the_targets(monkeypatch):
    monkeypatch.setattr(targets, "measure_live", lambda plan, **options: [])
    answer, short = targets.run(Plan(0, 1, rounds=1), best_of=1)
    ratios, live, extras = answer.tables
    assert [row.name for row in ratios.rows] == [target.what for target in targets.TARGETS]
    assert [row.name for row in extras.rows] == [extra.what for extra in targets.EXTRAS]
    assert live.rows == []
    verdicts = {row.name: row.cells["verdict"] for row in (*ratios.rows, *extras.rows)}
    assert [name for name, verdict in verdicts.items() if verdict == "short"] == short


def test_groups_repeat_with_a_seed():
    orders = []

    class Recorded(random.Random):
        def shuffle(self, x):
            super().shuffle(x)
            orders.append([one.name for one in x])

    for _ in range(2):
        targets.measure_group(targets.races(), "epoll 1", 2, Recorded(3))
    assert orders[: len(orders) // 2] == orders[len(orders) // 2 :]
