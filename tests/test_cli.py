"""The ``fastsock`` command: arguments, exit codes, what needs an extra, info."""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from command import DEADLINE_S, exit_code, json_lines
from conftest import environment

import fastsock
from fastsock.cli.arguments import (
    Endpoint,
    number_between,
    parse_count,
    parse_cpus,
    parse_endpoint,
    parse_membership,
    parse_microseconds,
    parse_rate,
    parse_seconds,
    size_between,
)

Output = pytest.CaptureFixture[str]


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:9995", "127.0.0.1", 9995),
        ("[::1]:9995", "::1", 9995),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        (":9995", "", 9995),
        ("[::]:0", "::", 0),
        ("collector.example:65535", "collector.example", 65535),
    ],
)
def test_endpoints(text: str, host: str, port: int) -> None:
    assert parse_endpoint(text) == (host, port)
    assert str(Endpoint(host, port)) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("9995", "is not HOST:PORT"),
        ("", "is not HOST:PORT"),
        ("[::1]", "is not HOST:PORT"),
        ("::1:9995", "in brackets"),
        ("[::1:9995", "is not HOST:PORT"),
        ("[zz]:1", "is not an IPv6 address"),
        ("a:", "is not a port number"),
        ("a:http", "is not a port number"),
        ("a:-1", "is not a port number"),
        ("a:\u0663", "is not a port number"),
        ("a:65536", "out of range"),
    ],
)
def test_bad_endpoints(text: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=complaint):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_rate, "200k", 200_000),
        (parse_rate, "1.5M", 1_500_000),
        (parse_rate, "0", 0),
        (parse_rate, "max", 0),
        (parse_rate, ".5", 0.5),
        (parse_count, "2G", 2_000_000_000),
        (size_between(1, 1 << 30), "8M", 8 << 20),
        (size_between(1, 1 << 30), "8m", 8 << 20),
        (size_between(1, 1 << 30), "1.5k", 1536),
        (parse_seconds, "0.25", 0.25),
        (parse_microseconds, "0", 0),
        (parse_microseconds, "12.5", 12.5),
        (parse_cpus, "0", [0]),
        (parse_cpus, "2,0,4-6,9-9", [2, 0, 4, 5, 6, 9]),
        (number_between(0, 255), "0", 0),
        (number_between(0, 9999), "2k", 2000),
        (parse_membership, "239.1.1.1", ("239.1.1.1", None, None)),
        (parse_membership, "232.1.1.1@eth0,192.0.2.5", ("232.1.1.1", "eth0", "192.0.2.5")),
    ],
)
def test_values(parse: Callable[[str], object], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_rate, "fast"),
        (parse_rate, "-1"),
        (parse_rate, "1e5"),
        (parse_rate, ""),
        (parse_count, "0"),
        (parse_count, "1.5"),
        (size_between(32, 65507), "31"),
        (size_between(32, 65507), "64k"),
        (parse_seconds, "0"),
        (parse_seconds, "nan"),
        (parse_seconds, "inf"),
        (parse_seconds, "soon"),
        (parse_microseconds, "-1"),
        (parse_microseconds, "1000001"),
        (parse_microseconds, "nan"),
        (parse_microseconds, "1ms"),
        (parse_cpus, ""),
        (parse_cpus, "1,"),
        (parse_cpus, "-1"),
        (parse_cpus, "3-1"),
        (parse_cpus, "1-"),
        (parse_cpus, "all"),
        (parse_cpus, "0-99999999"),
        (number_between(0, 255), "256"),
        (number_between(0, 255), "-1"),
        (parse_membership, "10.0.0.1"),
        (parse_membership, "239.1.1.1@"),
    ],
)
def test_bad_values(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


# --- exit codes ---------------------------------------------------------------------------------------


def test_version_and_help(capsys: Output) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"fastsock {fastsock.__version__}\n"
    for words in (["--help"], ["recv", "--help"], ["send", "--help"], ["info", "--help"]):
        assert exit_code(*words) == 0
        assert "exit codes:" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["fastsock", "fastsock.cli"])
def test_runs_as_a_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"],
        capture_output=True, text=True, env=environment(), timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert done.stdout == f"fastsock {fastsock.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["listen"],
        ["recv"],
        ["recv", "here"],
        ["recv", "127.0.0.1:0", "--vlen", "0"],
        ["recv", "127.0.0.1:0", "--dual-stack"],
        ["send", ":9"],
        ["send", "127.0.0.1:0"],
        ["send", "127.0.0.1:9", "--size", "31"],
        ["send", "127.0.0.1:9", "--size", "65508"],
        ["send", "127.0.0.1:9", "--count", "1", "--duration", "1"],
        ["recv", "127.0.0.1:0", "--vlen", "1025"],
        ["recv", "127.0.0.1:0", "--slot-size", "0"],
        ["recv", "127.0.0.1:0", "--ring-slots", "0"],
        ["recv", "127.0.0.1:0", "--workers", "0"],
        ["recv", "127.0.0.1:0", "--steering", "source"],
        ["recv", "127.0.0.1:0", "--workers", "2", "--steering", "round_robin"],
        ["recv", "127.0.0.1:0", "--workers", "2", "--cpus", "0"],
        ["recv", "127.0.0.1:0", "--cpus", "0-1"],
        ["recv", "127.0.0.1:0", "--spin", "1000001"],
        ["recv", "127.0.0.1:0", "--priority", "100"],
        ["recv", ":0", "--workers", "2", "--multicast", "239.1.1.1"],
        ["recv", "[::1]:0", "--multicast", "239.1.1.1"],
        ["send", "127.0.0.1:9", "--gso", "--timestamps"],
        ["send", "127.0.0.1:9", "--multicast-ttl", "3"],
        ["send", "127.0.0.1:9", "--no-multicast-loop"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(words: list[str], capsys: Output) -> None:
    assert exit_code(*words) == 2
    out, err = capsys.readouterr()
    assert (out, err.startswith("usage: fastsock")) == ("", True)


@pytest.mark.parametrize(
    "words",
    [
        ["recv", "192.0.2.1:0"],
        ["recv", "name.invalid:1"],
        ["send", "name.invalid:1"],
        ["send", f"{'a' * 70}:1"],
        ["recv", ":0", "--multicast", "239.1.1.1@nosuch"],
        ["send", "239.1.1.1:9", "--multicast-interface", "nosuch"],
    ],
    ids=" ".join,
)
def test_an_address_that_fails_exits_1_with_one_line(words: list[str], capsys: Output) -> None:
    assert exit_code(*words) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("fastsock: cannot ")
    assert words[1] in err


def test_without_rich_only_json_works(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert exit_code("info") == 2
    assert capsys.readouterr().err == "the fastsock command needs its extra: pip install 'fastsock[cli]'\n"
    assert exit_code("info", "--json") == 0


def test_recv_works_without_bench(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastsock.cli.bench", None)
    assert exit_code("recv", "--help") == 0
    assert exit_code("bench") == 2
    assert "pip install 'fastsock[bench]'" in capsys.readouterr().err


# --- info -------------------------------------------------------------------------------------------------


def test_info(capsys: Output) -> None:
    assert exit_code("info") == 0
    text = capsys.readouterr().out
    assert exit_code("info", "--json") == 0
    (found,) = json_lines(capsys.readouterr().out)
    assert (found.pop("type"), found.pop("version")) == ("info", fastsock.__version__)
    # Counts of the device queues move on by themselves.
    probed = dataclasses.asdict(fastsock.probe())
    for fields in (found, probed):
        for limit in fields["limits"]:
            limit["why"] = re.sub(r"[\d,]+ (dropped|rounds)", r"\1", limit["why"])
    assert found == json.loads(json.dumps(probed))
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    for name, value in found.items():
        if isinstance(value, dict):
            assert lines[name].split()[1] == ("yes" if value["available"] else "no")
            assert value["why"] in lines[name]
    for limit in found["limits"]:
        assert f" {limit['wanted']:,} " in lines[limit["name"]]
        assert limit["command"] is None or f"\n  {limit['command']}\n" in text


def test_info_says_what_is_wrong_and_what_helps(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dataclasses.replace(
        fastsock.probe(),
        cpus=1,
        gso=fastsock.Capability(False, "FASTSOCK_GSO=0 is set"),
        known_bugs=("set FASTSOCK_GRO=0",),
        limits=(
            fastsock.Limit("net.core.rmem_max", 212_992, 8 << 20, "bursts", "sysctl -w net.core.rmem_max=8388608"),
            fastsock.Limit("net.core.wmem_max", None, 1 << 20, "sends", None),
        ),
    )
    monkeypatch.setattr(fastsock, "probe", lambda: found)
    assert exit_code("info") == 0
    first, bug, *lines = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    assert "1 CPU: sender and receiver take turns" in first
    assert bug == "known bug: set FASTSOCK_GRO=0"
    assert "gso no FASTSOCK_GSO=0 is set" in lines
    assert "net.core.rmem_max 212,992 8,388,608 bursts" in lines
    assert "net.core.wmem_max unknown 1,048,576 sends" in lines
    assert lines[-1] == "sysctl -w net.core.rmem_max=8388608"
