"""`fastsock bench`: its options and what it prints. No figure of time is asserted."""

import argparse
import json

import pytest

import fastsock
from fastsock.cli import bench
from fastsock.cli.contestants import KINDS, VLEN, Kind, has_gro
from fastsock.cli.paired import measure


def parse(*argv):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)


def kinds_here():
    return {name: kind for name, kind in KINDS.items() if has_gro() or not kind.needs_gro}


def test_json(capsys):
    assert bench.run(parse("--json", "--rounds", "1", "--sizes", "64,300", "--seed", "5")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found.keys() == {"environment", "seed", "groups"}
    assert found["seed"] == 5
    assert found["environment"]["fastsock"] == fastsock.__version__
    assert found["environment"].keys() == {
        *("kernel", "machine", "cpus", "max_segments", "python", "implementation", "fastsock")
    }
    assert [(group["kind"], group["size"]) for group in found["groups"]] == [
        (kind, size) for kind in kinds_here() for size in (64, 300)
    ]
    for group in found["groups"]:
        assert group["rounds"] == 1
        assert group["count"] >= VLEN
        assert group["count"] % VLEN == 0
        kind = KINDS[group["kind"]]
        assert [row["name"] for row in group["results"]] == kind.names
        for row in group["results"]:
            assert row["baseline"] == kind.baselines[row["name"]]
            for values in (row["ns"], row["ratio"]):
                assert values.keys() == {"median", "low", "high"}
                assert 0 < values["low"] <= values["median"] <= values["high"]
            if row["name"] == row["baseline"]:
                assert row["ratio"] == {"median": 1, "low": 1, "high": 1}


def test_table(capsys):
    pytest.importorskip("rich")
    assert bench.run(parse("--rounds", "1", "--sizes", "64")) == 0
    out = capsys.readouterr().out
    assert out.startswith("Linux ")
    assert f"fastsock {fastsock.__version__}" in out
    for kind in kinds_here().values():
        assert kind.title in out
        for name in kind.names:
            assert name in out


def test_table_of_two_sizes_fits_80_columns(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")

    def measure(contestants, count, rounds, *, warm_count, budget_s, rng):
        return bench.Samples({contestant.name: [9876.5] for contestant in contestants})

    monkeypatch.setattr(bench, "measure", measure)
    assert bench.run(parse("--rounds", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_quick_keeps_to_its_budget(monkeypatch):
    budgets = []

    def measure(contestants, count, rounds, *, warm_count, budget_s, rng):
        budgets.append(budget_s)
        return bench.Samples({contestant.name: [1.0] for contestant in contestants})

    monkeypatch.setattr(bench, "measure", measure)
    assert bench.run(parse("--json", "--quick")) == 0
    assert sum(budgets) == pytest.approx(bench.QUICK_BUDGET_S)
    budgets.clear()
    assert bench.run(parse("--json")) == 0
    assert sum(budgets) == pytest.approx(bench.BUDGET_S)
    budgets.clear()
    assert bench.run(parse("--json", "--quick", "--rounds", "3")) == 0
    assert budgets == [None] * 2 * len(kinds_here())


def test_what_needs_gro_is_left_out_without_it(capsys, monkeypatch):
    monkeypatch.setattr(bench, "has_gro", lambda: False)
    assert bench.run(parse("--json", "--rounds", "1", "--sizes", "64")) == 0
    assert [group["kind"] for group in json.loads(capsys.readouterr().out)["groups"]] == ["receive", "send"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_contestant_has_a_baseline_of_its_kind(kind):
    assert {kind.baselines[name] for name in kind.names} <= set(kind.names)


# Below one message of joined datagrams, the most that one holds, two messages, many.
@pytest.mark.parametrize("size", [1, 64, 1023, 1024, 1400, 9000])
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.needs_gro])
def test_gro_contestants_move_what_they_say(name, size):
    if not has_gro():
        pytest.skip("no UDP GRO here")
    kind = KINDS[name]
    shorter = Kind(kind.title, kind.contestants, kind.sides, kind.baselines, VLEN, VLEN)
    with shorter.open(size) as (contestants, count):
        assert count == VLEN
        batches = [contestant for contestant in contestants if contestant.name == "recv_batch, GRO"]
        others = [contestant for contestant in contestants if contestant not in batches]
        assert measure(others, count, 1, warm_count=VLEN).rounds == 1
    if batches:  # takes GRO_VLEN messages at once
        with kind.open(size) as (contestants, count):
            assert measure(contestants, count, 1, warm_count=kind.warm_count).rounds == 1


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
