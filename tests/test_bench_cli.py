"""`fastsock bench`: its options and what it prints. No figure of time is asserted."""

import argparse
import json

import pytest

import fastsock
from fastsock.cli import bench
from fastsock.cli.contestants import BASELINES, RECEIVERS, SENDERS, VLEN


def parse(*argv):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)


def test_json(capsys):
    assert bench.run(parse("--json", "--rounds", "1", "--sizes", "64,300", "--seed", "5")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert found.keys() == {"environment", "seed", "groups"}
    assert found["seed"] == 5
    assert found["environment"]["fastsock"] == fastsock.__version__
    assert found["environment"].keys() == {"kernel", "machine", "cpus", "python", "implementation", "fastsock"}
    assert [(group["kind"], group["size"]) for group in found["groups"]] == [
        ("receive", 64),
        ("receive", 300),
        ("send", 64),
        ("send", 300),
    ]
    for group in found["groups"]:
        assert group["rounds"] == 1
        assert group["count"] >= VLEN
        assert group["count"] % VLEN == 0
        assert [row["name"] for row in group["results"]] == list(RECEIVERS if group["kind"] == "receive" else SENDERS)
        for row in group["results"]:
            assert row["baseline"] == BASELINES[row["name"]]
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
    for name in BASELINES:
        assert name in out


def test_table_of_two_sizes_fits_80_columns(capsys, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "80")

    def measure(contestants, count, rounds, *, budget_s, rng):
        return bench.Samples({contestant.name: [9876.5] for contestant in contestants})

    monkeypatch.setattr(bench, "measure", measure)
    assert bench.run(parse("--rounds", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_quick_keeps_to_its_budget(monkeypatch):
    budgets = []

    def measure(contestants, count, rounds, *, budget_s, rng):
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
    assert budgets == [None] * 4


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
