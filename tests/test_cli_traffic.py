"""``fastsock recv`` and ``send`` at work: counts, refusals, signals, broken pipes, terminals."""

import argparse
import contextlib
import dataclasses
import errno
import itertools
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from command import DEADLINE_S, exit_code, json_lines, running, wait_until
from conftest import NO_DROPS, environment, needs, needs_drop_counter, needs_ipv6

import fastsock
from fastsock import _udp
from fastsock._constants import SOL_UDP, UDP_GRO
from fastsock.cli import build_parsers, recv
from fastsock.cli.arguments import Stop
from fastsock.cli.report import Reporter
from fastsock.cli.send import Sender, Stamps, connect
from fastsock.cli.stream import END_FLAG, HEADER, encode_header

needs_gro = pytest.mark.skipif(
    not (fastsock.probe().gso and fastsock.probe().gro), reason="the kernel has no UDP GSO and GRO"
)
Closing = Callable[[Any], Any]
Preload = Callable[..., fastsock.Socket]
Output = pytest.CaptureFixture[str]


def receive_all(sock: fastsock.Socket) -> Iterator[bytes]:
    """What is queued."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            yield sock.recv(65535)


# --- recv on a socket that has been filled beforehand -----------------------------------------------------


class Failing(fastsock.Receiver):
    """A receiver that is taken from once and then fails."""

    def take(self, max_datagrams: int | None = None, timeout: float | None = None) -> fastsock.RingBatch:
        if self.stats.taken:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return super().take(max_datagrams, timeout)


@pytest.fixture
def preloaded(monkeypatch: pytest.MonkeyPatch, closing: Closing) -> Callable[..., fastsock.Socket]:
    """Let the next ``recv`` find these payloads waiting; returns its socket."""

    def preload(payloads: list[bytes], **options: Any) -> fastsock.Socket:
        sock = closing(fastsock.bind_udp(("127.0.0.1", 0), **options))
        sender = closing(fastsock.connect_udp(sock.getsockname()))
        assert sender.send_many(payloads) == len(payloads)
        monkeypatch.setattr(recv, "listen", lambda args: [sock])
        return sock

    return preload


@pytest.fixture
def draining() -> Callable[..., recv.Run]:
    """Receive what is queued at these sockets; returns the run."""

    def drain(socks: list[fastsock.Socket], **options: Any) -> recv.Run:
        args = argparse.Namespace(count=None, timestamps=False)
        with fastsock.Receiver(socks, slots=1024, **options) as receiver:
            run = recv.Run(socks, receiver, args, Reporter(as_json=True))
            assert run.drain() is None
            totals = run.read_totals()
        run.read_totals = lambda: totals  # type: ignore[method-assign]
        return run

    return drain


def test_every_datagram_is_counted(preloaded: Preload, capsys: Output) -> None:
    preloaded([b"", b"abc", b"x" * 100, b""] * 50)
    assert exit_code("recv", "127.0.0.1:0", "--json", "--slot-size", "64", "--vlen", "7", "--idle", "0.05") == 0
    listening, *_, summary = json_lines(capsys.readouterr().out)
    assert (listening["type"], listening["slot_size_bytes"], listening["vlen"]) == ("listening", 64, 7)
    assert summary["type"] == "summary"
    assert (summary["datagrams"], summary["other_datagrams"]) == (200, 200)
    assert summary["bytes"] == 50 * (3 + 64)
    assert (summary["truncated"], summary["kernel_drops"], summary["stream"]) == (50, NO_DROPS, None)
    assert summary["batches"] == 29


@pytest.mark.parametrize("count", [1, 64, 70, 128])
def test_count_is_exact(count: int, preloaded: Preload, capsys: Output) -> None:
    preloaded([b"x" * 9] * 200)
    assert exit_code("recv", "127.0.0.1:0", "--json", "--count", str(count)) == 0
    summary = json_lines(capsys.readouterr().out)[-1]
    assert (summary["datagrams"], summary["bytes"], summary["other_datagrams"]) == (count, 9 * count, count)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", pytest.param("::", marks=needs_ipv6)])
@pytest.mark.parametrize(("workers", "steering"), [(1, None), (3, None), (3, "random")])
def test_the_end_lets_nothing_more_in(
    host: str, workers: int, steering: str | None, closing: Closing, draining: Callable[..., recv.Run]
) -> None:
    socks = [closing(sock) for sock in fastsock.bind_udp_group((host, 0), workers, steering=steering)]
    peer = ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), socks[0].getsockname()[1])
    senders = [closing(fastsock.connect_udp(peer)) for _ in range(10)]
    for sender in senders:
        assert sender.send_many([b"x"] * 10) == 10
    run = draining(socks)
    for sender in senders:
        with contextlib.suppress(ConnectionRefusedError):
            assert sender.send(b"late") == 4
    assert [list(receive_all(sock)) for sock in socks] == [[]] * workers
    counts = run.read_totals().all
    assert (counts.datagrams, counts.received, counts.kernel_drops, counts.ring_drops) == (100, 100, NO_DROPS, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("steering", [None, "source"])
def test_streams_that_go_on_are_in_order_to_the_end(
    host: str,
    steering: str | None,
    closing: Closing,
    draining: Callable[..., recv.Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    socks = [closing(sock) for sock in fastsock.bind_udp_group((host, 0), 4, steering=steering)]
    port = socks[0].getsockname()[1]
    addresses = [f"127.0.0.{1 + number}" if host == "0.0.0.0" else host for number in range(16)]
    senders = [closing(fastsock.connect_udp((host, port), local_address=(address, 0))) for address in addresses]
    sent = itertools.count()

    def send() -> None:
        number = next(sent)
        for stream_id, sender in enumerate(senders):
            with contextlib.suppress(ConnectionRefusedError):
                sender.send(encode_header(stream_id, number, 0))

    def send_before_each(sock: fastsock.Socket, own_address: Callable[..., Any] = recv.own_address) -> Any:
        send()
        return own_address(sock)

    monkeypatch.setattr(recv, "own_address", send_before_each)
    send()
    result = draining(socks).tracker.result()
    assert result is not None
    assert (result.streams, result.received, result.reordered) == (16, 16 * 5, 0)


@needs_drop_counter
def test_fail_on_loss(preloaded: Preload, capsys: Output) -> None:
    preloaded([b"x" * 1000] * 100, rcvbuf=1)
    words = ["recv", "127.0.0.1:0", "--json", "--idle", "0.05", "--fail-on-loss"]
    assert exit_code(*words) == 3
    summary = json_lines(capsys.readouterr().out)[-1]
    assert 0 < summary["datagrams"] < 100
    assert summary["datagrams"] + summary["kernel_drops"] == 100
    preloaded([b"x"] * 100)
    assert exit_code(*words) == 0


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next ``recv`` begin to take once its threads have received so many."""
    start = recv.start

    def begin_after(datagrams: int) -> None:
        def start_and_wait(*args: Any) -> fastsock.Receiver:
            receiver = start(*args)

            def received() -> bool:
                stats = receiver.stats
                return stats.received + stats.ring_drops == datagrams

            wait_until(received, "received")
            return receiver

        monkeypatch.setattr(recv, "start", start_and_wait)

    return begin_after


def test_what_has_no_room_in_the_ring_is_counted(
    preloaded: Preload, slow: Callable[[int], None], capsys: Output
) -> None:
    words = ["recv", "127.0.0.1:0", "--idle", "0.05", "--fail-on-loss", "--ring-slots", "16"]
    slow(200)
    preloaded([b"x"] * 200)
    assert exit_code(*words, "--json") == 3
    listening, *_, summary = json_lines(capsys.readouterr().out)
    assert (listening["ring_slots"], summary["ring_slots"], summary["ring_high_water"]) == (16, 16, 16)
    assert (summary["datagrams"], summary["kernel_drops"], summary["ring_drops"]) == (16, NO_DROPS, 184)
    assert summary["workers"] == [{"datagrams": 16, "kernel_drops": NO_DROPS, "ring_drops": 184, "share": 1.0}]
    preloaded([b"x"] * 200)
    assert exit_code(*words) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines if line.startswith("ring drops")] == ["184"]
    assert [line.split(maxsplit=3)[3] for line in lines if line.startswith("ring high water")] == ["16 of 16 slots"]


def test_a_system_call_that_fails_exits_1_after_the_summary(
    preloaded: Preload, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastsock, "Receiver", Failing)
    preloaded([b"x"] * 10)
    assert exit_code("recv", "127.0.0.1:0") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split() == ["datagrams", "10"]
    last = err.splitlines()[-1]
    assert last.startswith("fastsock: receiving on 127.0.0.1:")
    assert last.endswith(os.strerror(errno.ENOMEM))


def test_a_clamped_buffer_is_one_line(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fastsock.bind_udp

    def clamping(*args: Any, **options: Any) -> fastsock.Socket:
        warnings.warn("receive buffer: wanted more", RuntimeWarning, stacklevel=2)
        return real(*args, **options)

    monkeypatch.setattr(_udp, "bind_udp", clamping)
    words = ["recv", "127.0.0.1:0", "--rcvbuf", "4k", "--ring-slots", "64", "--workers", "3", "--duration", "0.01"]
    assert exit_code(*words) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert first == "fastsock: warning: receive buffer: wanted more"
    assert second.startswith("listening on 127.0.0.1:")
    assert second.endswith(", vlen 64, ring 64 slots of 2,048 bytes, 3 workers")


def test_what_cannot_be_started_is_one_line(capsys: Output) -> None:
    assert exit_code("recv", "127.0.0.1:0", "--cpus", "65535") == 1
    assert exit_code("recv", "127.0.0.1:0", "--ring-slots", "1G") == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("fastsock: cannot start to receive on 127.0.0.1:")
    assert first.endswith(os.strerror(errno.EINVAL))
    assert second == "fastsock: not enough memory for 1000000000 slots of 2048 bytes"


# --- recv with several workers, and how they receive ----------------------------------------------------------


def test_workers_are_counted_each(closing: Closing, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> str:
        socks = [closing(sock) for sock in fastsock.bind_udp_group(("127.0.0.1", 0), 3, steering="random")]
        # A message that the kernel cuts is steered whole.
        sender = closing(fastsock.connect_udp(socks[0].getsockname(), gso=False))
        assert sender.send_many([b"abc"] * 200) == 200
        monkeypatch.setattr(recv, "listen", lambda args: socks)
        assert exit_code("recv", "127.0.0.1:0", "--workers", "3", "--idle", "0.05", *words) == 0
        return capsys.readouterr().out

    summary = json_lines(run("--json"))[-1]
    assert (summary["datagrams"], summary["bytes"]) == (200, 600)
    received = [worker["datagrams"] for worker in summary["workers"]]
    assert (len(received), sum(received), min(received) > 0) == (3, 200, True)
    assert [worker["share"] for worker in summary["workers"]] == [datagrams / 200 for datagrams in received]
    lines = [line.split() for line in run().splitlines() if line.startswith("worker ")]
    assert [line[1] for line in lines] == ["0", "1", "2"]
    assert sum(int(line[2]) for line in lines) == 200
    for line in lines:
        assert line[3:5] == ["datagrams", f"({int(line[2]) / 2:.1f}"]
        assert " ".join(line[5:]) == f"%), {'-' if NO_DROPS is None else 0} kernel drops, 0 ring drops"


def test_an_interval_says_what_each_worker_did_in_it(closing: Closing, capsys: Output) -> None:
    socks = [closing(sock) for sock in fastsock.bind_udp_group(("127.0.0.1", 0), 2, steering="source")]
    sender = closing(fastsock.connect_udp(socks[0].getsockname()))
    with fastsock.Receiver(socks, slots=8) as receiver:
        run = recv.Run(socks, receiver, argparse.Namespace(count=None, timestamps=False), Reporter(as_json=True))

        def pass_on(first: int, end: int, arrived: int, taken: int) -> None:
            for number in range(first, end):
                sender.send(encode_header(7, number, 0))
            wait_until(lambda: receiver.stats.received + receiver.stats.ring_drops == arrived, "received")
            while run.datagrams < taken:
                run._take(receiver, 1)
            run._report(time.monotonic())

        pass_on(0, 20, arrived=20, taken=8)
        pass_on(30, 33, arrived=23, taken=11)
    intervals = json_lines(capsys.readouterr().out)
    assert [interval["datagrams"] for interval in intervals] == [8, 3]
    assert [interval["ring_drops"] for interval in intervals] == [12, 0]
    assert [interval["ring_high_water"] for interval in intervals] == [8, 8]
    assert [interval["lost"] for interval in intervals] == [0, 22]
    for interval in intervals:
        busy, idle = sorted(interval["workers"], key=lambda worker: -worker["datagrams"])
        assert busy == {name: interval[name] for name in ("datagrams", "kernel_drops", "ring_drops")}
        assert idle == {"datagrams": 0, "kernel_drops": NO_DROPS, "ring_drops": 0}


@needs_gro
@pytest.mark.parametrize("at_the_end", [False, True])
def test_one_worker_that_fails_ends_it(
    at_the_end: bool, closing: Closing, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    socks = [closing(sock) for sock in fastsock.bind_udp_group(("127.0.0.1", 0), 2, steering="source")]
    start = recv.start
    silent = []

    def start_and_break(*args: Any) -> fastsock.Receiver:
        receiver = start(*args)
        sender = closing(fastsock.connect_udp(socks[0].getsockname()))
        assert sender.send_many([b"x" * number for number in range(20)]) == 20
        wait_until(lambda: receiver.stats.received == 20, "received")
        (index,) = (i for i, ring in enumerate(receiver.rings) if ring.stats.received)
        silent.append(1 - index)
        # It was not to be: the thread knows not where to split what comes from now on.
        socks[index].setsockopt(SOL_UDP, UDP_GRO, 1)
        assert sender.send_segments(b"x" * 1000, 100) == 1000
        return receiver

    monkeypatch.setattr(recv, "listen", lambda args: socks)
    monkeypatch.setattr(recv, "start", start_and_break)
    if at_the_end:
        monkeypatch.setattr(recv.Run, "receive", lambda run, stop: None)
    assert exit_code("recv", "127.0.0.1:0", "--workers", "2", "--json") == 1
    out, err = capsys.readouterr()
    summary = json_lines(out)[-1]
    assert (summary["datagrams"], summary["workers"][silent[0]]["datagrams"]) == (20, 0)
    assert err.startswith("fastsock: receiving on 127.0.0.1:")
    assert err.endswith(f"{os.strerror(errno.EIO)}\n")


def test_options_reach_the_receiver(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Recording(fastsock.Receiver):
        def __init__(self, socks: Any, *, priority: int, **options: Any) -> None:
            seen.append({"priority": priority, **options})
            super().__init__(socks, **options)  # the priority takes a capability

    monkeypatch.setattr(fastsock, "Receiver", Recording)
    for words, coalesce_us in (([], 50), (["--spin", "2"], 0), (["--spin", "2", "--coalesce", "3"], 3)):
        assert exit_code("recv", "127.0.0.1:0", "--rcvbuf", "4k", *words, "--json", "--duration", "0.01") == 0
        capsys.readouterr()
        rest = {"cpus": None, "priority": 0, "spin_us": 2 if words else 0, "coalesce_us": coalesce_us}
        assert seen.pop() == {"slots": 32768, "slot_size": 2048, "vlen": 64, **rest}
    cpu = min(os.sched_getaffinity(0))
    words = ["--workers", "2", "--steering", "cpu", "--cpus", f"{cpu},{cpu}", "--spin", "5", "--coalesce", "2.5"]
    words += ["--priority", "7"]
    words += ["--ring-slots", "2k", "--slot-size", "100", "--vlen", "9", "--rcvbuf", "4k"]
    assert exit_code("recv", "127.0.0.1:0", *words, "--json", "--duration", "0.01") == 0
    rest = {"cpus": [cpu, cpu], "priority": 7, "spin_us": 5, "coalesce_us": 2.5}
    assert seen == [{"slots": 2000, "slot_size": 100, "vlen": 9, **rest}]
    listening = json_lines(capsys.readouterr().out)[0]
    assert (listening["workers"], listening["steering"], listening["cpus"]) == (2, "cpu", [cpu, cpu])
    assert (listening["priority"], listening["spin_us"], listening["coalesce_us"]) == (7, 5, 2.5)


@needs_gro
def test_a_ring_takes_as_much_memory_with_gro(capsys: Output) -> None:
    sizes = []
    for words in ([], ["--gro"], ["--gro", "--slot-size", "1k"]):
        words += ["--ring-slots", "4096", "--rcvbuf", "4k", "--duration", "0.01", "--json"]
        assert exit_code("recv", "127.0.0.1:0", *words) == 0
        sizes.append(json_lines(capsys.readouterr().out)[0]["ring_bytes"])
    assert max(sizes) < 1.3 * min(sizes)


def test_threads_stay_on_their_cpus(tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    with running(tmp_path, "recv", "127.0.0.1:0", "--workers", "2", "--cpus", f"{cpu},{cpu}") as command:
        command.port()
        tasks = Path(f"/proc/{command.process.pid}/task").iterdir()
        allowed = {}
        for task in tasks:
            fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            allowed[fields["Name"]] = fields["Cpus_allowed_list"]
        assert command.end(signal.SIGINT) == 0
    assert {name: cpus for name, cpus in allowed.items() if name.startswith("fastsock-rx")} == {
        "fastsock-rx0": str(cpu),
        "fastsock-rx1": str(cpu),
    }


# --- recv with GRO and time stamps --------------------------------------------------------------------------


@needs_gro
def test_joined_datagrams_are_counted_each(preloaded: Preload, capsys: Output) -> None:
    preloaded([b"x" * 100] * 300 + [b"y" * 50], gro=True)
    assert exit_code("recv", "127.0.0.1:0", "--json", "--gro", "--idle", "0.05") == 0
    listening, *_, summary = json_lines(capsys.readouterr().out)
    assert (listening["gro"], listening["vlen"], listening["slot_size_bytes"]) == (True, 8, 65535)
    assert (summary["datagrams"], summary["bytes"], summary["other_datagrams"]) == (301, 30_050, 301)
    assert (summary["batches"], summary["kernel_drops"], summary["kernel_drops_unit"]) == (1, NO_DROPS, "messages")


@needs_gro
def test_count_is_exact_within_a_message(preloaded: Preload, closing: Closing, capsys: Output) -> None:
    sock = preloaded([], gro=True)
    sender = closing(fastsock.connect_udp(sock.getsockname()))
    for _ in range(3):
        assert sender.send_segments(b"x" * 1000, 100) == 1000
    assert exit_code("recv", "127.0.0.1:0", "--json", "--gro", "--vlen", "1", "--count", "11") == 0
    summary = json_lines(capsys.readouterr().out)[-1]
    assert (summary["datagrams"], summary["bytes"]) == (11, 1100)


@needs_gro
def test_datagrams_are_cut_with_gro_too(preloaded: Preload, closing: Closing, capsys: Output) -> None:
    words = ["recv", "127.0.0.1:0", "--json", "--gro", "--count", "30", "--slot-size"]
    for slot_size, nbytes, truncated in (("40", 1200, 30), ("100", 3000, 0)):
        sock = preloaded([], gro=True)
        sender = closing(fastsock.connect_udp(sock.getsockname()))
        headers = b"".join(encode_header(7, number, 0).ljust(100, b"p") for number in range(30))
        assert sender.send_segments(headers, 100) == 3000
        assert exit_code(*words, slot_size) == 0
        summary = json_lines(capsys.readouterr().out)[-1]
        assert (summary["bytes"], summary["truncated"]) == (nbytes, truncated)
        assert (summary["stream"]["received"], summary["stream"]["lost"]) == (30, 0)


@needs_gro
@needs_drop_counter
def test_a_drop_with_gro_is_a_whole_message(preloaded: Preload, closing: Closing, capsys: Output) -> None:
    sock = preloaded([], rcvbuf=100_000, gro=True)
    sender = closing(fastsock.connect_udp(sock.getsockname()))
    for _ in range(50):
        assert sender.send_segments(b"x" * 20_000, 400) == 20_000
    assert exit_code("recv", "127.0.0.1:0", "--gro", "--idle", "0.05", "--json", "--fail-on-loss") == 3
    summary = json_lines(capsys.readouterr().out)[-1]
    assert 0 < summary["datagrams"] < 2500
    assert summary["kernel_drops_unit"] == "messages"
    assert summary["datagrams"] + 50 * summary["kernel_drops"] == 2500


@needs_gro
@needs_drop_counter
def test_drops_with_gro_are_not_called_datagrams(preloaded: Preload, closing: Closing, capsys: Output) -> None:
    sock = preloaded([], rcvbuf=1, gro=True)
    sender = closing(fastsock.connect_udp(sock.getsockname()))
    for _ in range(9):
        assert sender.send_segments(b"x" * 20_000, 400) == 20_000
    drops = sock.drops
    assert exit_code("recv", "127.0.0.1:0", "--gro", "--idle", "0.05") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kernel drops")]
    assert drops > 0
    assert line.split(maxsplit=2)[2] == f"{drops} messages, each of one datagram or many that were joined"


def test_without_gro_it_says_why_and_goes_on(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSOCK_GRO", "0")
    assert exit_code("recv", "127.0.0.1:0", "--rcvbuf", "4k", "--gro", "--duration", "0.01", "--json") == 0
    out, err = capsys.readouterr()
    assert err == "fastsock: warning: no UDP GRO: FASTSOCK_GRO=0 is set\n"
    listening, *_, summary = json_lines(out)
    assert (listening["gro"], summary["kernel_drops_unit"]) == (False, "datagrams")


@pytest.fixture
def stamping(closing: Closing) -> None:
    """Let the kernel stamp all that arrives, for as long as the test runs.

    It begins to a moment after the first socket asked for it (net_enable_timestamp), and what
    came before gets the time of the read.
    """
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0), timestamps=True))
    sender = closing(fastsock.connect_udp(sock.getsockname()))
    batch = fastsock.RecvBatch(1)

    def stamped_at_once() -> bool:
        sender.send(b"x")
        behind_ns = time.time_ns()
        sock.recv_batch(batch)
        return batch.timestamps_ns[0] <= behind_ns

    wait_until(stamped_at_once, "time stamps")


@pytest.mark.usefixtures("stamping")
@pytest.mark.parametrize("gro", [False, pytest.param(True, marks=needs_gro)], ids=["plain", "gro"])
@pytest.mark.parametrize("stamped", [True, False], ids=["kernel", "read"])
def test_one_way_delay_is_to_the_clock_that_was_asked_for(
    stamped: bool, gro: bool, preloaded: Preload, capsys: Output
) -> None:
    sent_ns = time.time_ns()
    preloaded([encode_header(7, number, sent_ns) for number in range(100)], timestamps=True, gro=gro)
    queued_ns = time.time_ns() - sent_ns
    words = ["recv", "127.0.0.1:0", "--count", "100", *["--timestamps"] * stamped, *["--gro"] * gro]
    assert exit_code(*words, "--json") == 0
    summary = json_lines(capsys.readouterr().out)[-1]
    stream = summary["stream"]
    assert (stream["received"], stream["lost"]) == (100, 0)
    if stamped:
        assert summary["delay_clock"] == "kernel"
        assert 0 <= stream["delay_min_ns"] <= stream["delay_max_ns"] <= queued_ns
    else:
        assert summary["delay_clock"] == "read"
        assert queued_ns <= stream["delay_min_ns"]


@pytest.mark.parametrize(("words", "until"), [([], "it was read"), (["--timestamps"], "the kernel had it")])
@needs("timestamps")
def test_the_summary_says_which_clock(words: list[str], until: str, preloaded: Preload, capsys: Output) -> None:
    preloaded([encode_header(7, 0, time.time_ns())], timestamps=True)
    assert exit_code("recv", "127.0.0.1:0", "--count", "1", *words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("one-way delay")]
    assert line.endswith(f" us, until {until}")


# --- send -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 100, 512])
@pytest.mark.parametrize("vlen", [1, 7, 64])
@pytest.mark.parametrize("option", ["", "--gso", "--timestamps"])
@needs("transmit_timestamps", "multicast")
def test_what_send_sends(size: int, vlen: int, option: str, closing: Closing, capsys: Output) -> None:
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    target = f"127.0.0.1:{sock.getsockname()[1]}"
    words = ["--count", "100", "--rate", "20k", "--size", str(size), "--vlen", str(vlen), *option.split()]
    assert exit_code("send", target, "--json", *words) == 0
    sending, *_, summary = json_lines(capsys.readouterr().out)
    assert (sending["type"], sending["datagram_bytes"]) == ("sending", size)
    assert sending["gso"] is (option == "--gso" and bool(fastsock.probe().gso))
    assert sending["timestamps"] is (option == "--timestamps")
    assert (summary["sent"], summary["bytes"]) == (100, 100 * size)
    assert (summary["refused"], summary["end_markers"]) == (0, 3)
    payloads = list(receive_all(sock))
    assert {len(payload) for payload in payloads} == {size}
    fields = [HEADER.unpack_from(payload) for payload in payloads]
    assert [sequence for _, _, sequence, _ in fields] == [*range(100), *[END_FLAG | 100] * 3]
    assert {magic for magic, *_ in fields} == {b"fastsock"}
    assert {stream_id for _, stream_id, *_ in fields} == {int(sending["stream_id"], 16)}
    times = [sent_ns for *_, sent_ns in fields[:100]]
    assert times == sorted(times)
    assert all(payload[HEADER.size :].strip(b"\0") == b"" for payload in payloads)


@needs_gro
@needs("timestamps")
def test_send_with_gso_into_recv_with_gro(tmp_path: Path, capsys: Output) -> None:
    words = ["--json", "--gro", "--timestamps", "--idle", "5", "--count", "40003", "--fail-on-loss"]
    with running(tmp_path, "recv", "127.0.0.1:0", *words) as command:
        target = f"127.0.0.1:{command.port()}"
        assert exit_code("send", target, "--gso", "--count", "40k", "--rate", "200k", "--json") == 0
        assert command.end() == 0
    sending, *_, sent = json_lines(capsys.readouterr().out)
    assert (sending["gso"], sending["vlen"]) == (True, 512)
    assert (sent["sent"], sent["gso"], sent["gso_fallbacks"], sent["transmit"]) == (40_000, True, 0, None)
    listening, summary = command.events[0], command.summary
    assert (listening["gro"], listening["timestamps"]) == (True, True)
    assert (summary["stream"]["received"], summary["stream"]["lost"]) == (40_000, 0)
    assert (summary["datagrams"], summary["end_markers"], summary["kernel_drops"]) == (40_003, 3, NO_DROPS)


def test_without_gso_it_says_why_and_goes_on(capsys: Output, closing: Closing, monkeypatch: pytest.MonkeyPatch) -> None:
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    off = dataclasses.replace(fastsock.probe(), gso=fastsock.Capability(False, "FASTSOCK_GSO=0 is set"))
    monkeypatch.setattr(fastsock, "probe", lambda: off)
    real = fastsock.connect_udp
    monkeypatch.setattr(fastsock, "connect_udp", lambda address, **options: real(address, **{**options, "gso": False}))
    assert exit_code("send", f"127.0.0.1:{sock.getsockname()[1]}", "--gso", "--count", "10", "--json") == 0
    out, err = capsys.readouterr()
    assert err == "fastsock: warning: no UDP GSO: FASTSOCK_GSO=0 is set\n"
    sending, *_, summary = json_lines(out)
    assert (sending["gso"], summary["gso"], summary["sent"]) == (False, False, 10)


@needs("transmit_timestamps")
def test_send_reports_when_the_driver_had_each(
    closing: Closing, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As from a slow device: nothing is reported while the stream lasts.
    collect, wait = Stamps.collect, Stamps.wait
    monkeypatch.setattr(Stamps, "collect", lambda stamps: None)
    monkeypatch.setattr(Stamps, "wait", lambda stamps: (collect(stamps), wait(stamps)))
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    target = f"127.0.0.1:{sock.getsockname()[1]}"
    words = ["send", target, "--timestamps", "--count", "200", "--rate", "20k"]
    assert exit_code(*words, "--json") == 0
    transmit = json_lines(capsys.readouterr().out)[-1]["transmit"]
    assert transmit.pop("datagrams") == 200
    delays = list(transmit.values())
    assert delays == sorted(delays)
    assert 0 <= delays[0] <= delays[-1] < DEADLINE_S * 10**9
    assert exit_code(*words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("call to driver")]
    assert line.endswith(" us, of 200 datagrams")


class Reporting:
    """In place of a socket: its error queue."""

    def __init__(self, *records: tuple[int, int]) -> None:
        self._records = [
            fastsock.ErrorRecord(0, "timestamp", 0, 0, ids=range(number, number + 1), timestamp_ns=ns)
            for number, ns in records
        ]

    def recv_errors(self) -> list[fastsock.ErrorRecord]:
        records, self._records = self._records, []
        return [fastsock.ErrorRecord(errno.ECONNREFUSED, "icmp", 3, 3), *records]


@pytest.mark.parametrize("start", [0, 2**32 - 3, 5 * 2**32 + 7])
def test_time_stamps_find_their_bursts(start: int) -> None:
    stamps = Stamps(Reporting(*(((start + i) % 2**32, 1000 + i) for i in (1, 0, 4, 2, 3, 5, 7))))
    stamps.add_burst(start, 1)
    stamps.add_burst(start + 3, 900)
    stamps.add_burst(start + 5, 1001)
    stamps.collect()
    # 0 to 2 were sent at 900, 3 and 4 at 1001; what is above are end markers.
    assert stamps.delays.count == 5
    assert (stamps.delays.minimum, stamps.delays.maximum) == (2, 102)
    assert stamps.delays.percentile(50) == 100


@needs("timestamps")
def test_time_stamps_are_waited_for_in_vain_only_a_moment(closing: Closing) -> None:
    receiver = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    sock = closing(fastsock.connect_udp(receiver.getsockname(), transmit_timestamps=True))
    sock.send(b"x")
    stamps = Stamps(sock)
    stamps.add_burst(1, time.time_ns() - 10**9)
    stamps.wait()
    stamps.add_burst(2, time.time_ns())
    stamps.wait()
    assert stamps.delays.count == 1


class Counting:
    """In place of a socket: takes all, and remembers the sequence numbers."""

    def __init__(self) -> None:
        self.sequences: list[int] = []

    def send_batch(self, batch: fastsock.SendBatch) -> int:
        self.sequences += batch.buffer.cast("Q")[2 :: batch.stride // 8].tolist()[: len(batch)]
        return len(batch)


def test_bursts_of_any_length_are_numbered_through() -> None:
    args = argparse.Namespace(vlen=2500, size=32, rate=0.0, count=6000, duration=None, interval=60.0, timestamps=False)
    sock = Counting()
    assert Sender(sock, args, Reporter(as_json=True)).send(Stop()) is None
    assert sock.sequences == list(range(6000))


@needs("multicast")
def test_multicast(tmp_path: Path, capsys: Output) -> None:
    group = ["--multicast", "239.255.78.1@lo", "--multicast", "239.255.78.2@lo"]
    with running(tmp_path, "recv", ":0", "--json", "--count", "8", *group) as command:
        port = command.port()
        for host in ("239.255.78.1", "239.255.78.2"):
            target = f"{host}:{port}"
            assert exit_code("send", target, "--count", "1", "--multicast-interface", "lo", "--json") == 0
        assert command.end() == 0
    assert command.events[0]["multicast"] == ["239.255.78.1@lo", "239.255.78.2@lo"]
    assert command.summary["stream"]["streams"] == 2


@needs("multicast")
def test_how_groups_are_sent_to(closing: Closing) -> None:
    words = ["send", "239.255.78.3:9", "--multicast-interface", "lo", "--multicast-ttl", "5", "--no-multicast-loop"]
    sock = closing(connect(build_parsers("send")[""].parse_args(words)))
    assert sock.getpeername() == ("239.255.78.3", 9)
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL) == 5
    assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP) == 0


class Recording(fastsock.Socket):
    """A socket that remembers how many datagrams each send_batch took."""

    taken: tuple[int, ...] = ()

    def send_batch(self, batch: fastsock.SendBatch, flags: int = 0) -> int:
        taken = super().send_batch(batch, flags)
        self.taken += (taken,)
        return taken


def test_partial_sends_skip_and_repeat_nothing(unix_pair: Callable[..., Any], closing: Closing) -> None:
    # What an AF_UNIX reader leaves lying fills the sender's buffer: a few datagrams do here.
    reader, inherited = unix_pair()
    writer = closing(Recording(fileno=inherited.detach()))
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    writer.settimeout(Stop.TICK_S)
    args = argparse.Namespace(vlen=64, size=32, rate=0.0, count=500, duration=None, interval=60.0, timestamps=False)
    sender = Sender(writer, args, Reporter(as_json=True))
    with ThreadPoolExecutor(1) as executor:
        sending = executor.submit(sender.send, Stop())
        wait_until(lambda: writer.taken, "the first burst cut short")
        sequences = [HEADER.unpack(reader.recv(65535))[2] for _ in range(500)]
        assert sending.result(DEADLINE_S) is None
    assert sequences == list(range(500))
    assert sender.sent == sum(writer.taken) == 500
    assert 0 < writer.taken[0] < 64
    assert list(receive_all(reader)) == []


def test_refusals_are_counted_and_skip_nothing(closing: Closing, capsys: Output) -> None:
    # A port that is ours, and hears another peer only: what is sent to it is refused.
    closed = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    closed.connect(("127.0.0.1", 9))
    target = f"127.0.0.1:{closed.getsockname()[1]}"
    assert exit_code("send", target, "--count", "500", "--rate", "max", "--vlen", "8", "--json") == 0
    summary = json_lines(capsys.readouterr().out)[-1]
    assert (summary["sent"], summary["end_markers"]) == (500, 3)
    assert summary["refused"] > 0


@pytest.mark.parametrize(
    "options",
    ["", "--spin 50", "--coalesce 50", "--workers 2", "--workers 2 --spin 50", "--workers 2 --steering random"],
)
def test_send_into_recv(options: str, tmp_path: Path, capsys: Output) -> None:
    words = ["--json", "--count", "5003", "--fail-on-loss", *options.split()]
    with running(tmp_path, "recv", "127.0.0.1:0", *words) as command:
        assert exit_code("send", f"127.0.0.1:{command.port()}", "--count", "5k", "--rate", "100k") == 0
        assert command.end() == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "sent     5,000 and 3 end markers"
    assert err.startswith("sending to 127.0.0.1:")
    summary = command.summary
    assert (summary["datagrams"], summary["stream_datagrams"], summary["end_markers"]) == (5003, 5000, 3)
    stream = summary["stream"]
    assert (stream["sent"], stream["received"], stream["lost"]) == (5000, 5000, 0)
    assert (stream["duplicated"], stream["approximate"]) == (0, False)
    received = [worker["datagrams"] for worker in summary["workers"]]
    if "random" in options:
        assert min(received) > 0
    else:
        assert (max(received), stream["reordered"]) == (5003, 0)
    delays = [stream[f"delay_{name}_ns"] for name in ("min", "p50", "p90", "p99", "p99_9", "max")]
    assert delays == sorted(delays)


@needs_ipv6
def test_dual_stack(tmp_path: Path, capsys: Output) -> None:
    with running(tmp_path, "recv", ":0", "--dual-stack", "--json", "--count", "8") as command:
        port = command.port()
        for host in ("127.0.0.1", "[::1]"):
            assert exit_code("send", f"{host}:{port}", "--count", "1") == 0
        assert command.end() == 0
    assert command.events[0]["host"] == "::"
    assert command.summary["stream"]["streams"] == 2


# --- signals, pipes, terminals ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_the_summary_and_all_that_was_queued(number: int, tmp_path: Path, closing: Closing) -> None:
    with running(tmp_path, "recv", "127.0.0.1:0") as command:
        sender = closing(fastsock.connect_udp(("127.0.0.1", command.port())))
        command.process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{command.process.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "stopped")
        assert sender.send_many([b"x"] * 300) == 300
        command.process.send_signal(number)
        command.process.send_signal(signal.SIGCONT)
        assert command.end() == 0
    assert command.out.splitlines()[0].split() == ["datagrams", "300"]
    assert "Traceback" not in command.err


def test_a_signal_ends_a_sender_with_its_end_markers(tmp_path: Path, closing: Closing) -> None:
    sock = closing(fastsock.bind_udp(("127.0.0.1", 0)))
    sock.settimeout(DEADLINE_S)
    with running(tmp_path, "send", f"127.0.0.1:{sock.getsockname()[1]}", "--rate", "100", "--json") as command:
        sock.recv(65535)
        assert command.end(signal.SIGINT) == 0
    *payloads, last = receive_all(sock)
    assert HEADER.unpack_from(last)[2] == END_FLAG | command.summary["sent"]
    assert len(payloads) + 2 == command.summary["sent"] + 3


def test_signals_are_left_as_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("words", ["recv 127.0.0.1:0 --rcvbuf 4k", "send 127.0.0.1:9 --rate 100"])
def test_a_reader_that_goes_away_ends_it_quietly(words: str) -> None:
    command = [sys.executable, "-m", "fastsock", *words.split(), "--json", "--interval", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["type"] in ("listening", "sending")
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == b""


def test_intervals_without_a_terminal_are_lines(tmp_path: Path) -> None:
    with running(tmp_path, "recv", "127.0.0.1:0", "--rcvbuf", "4k", "--interval", "0.02") as command:
        wait_until(lambda: command.err.count("\n") >= 4, "three intervals")
        assert command.end(signal.SIGINT) == 0
    assert "\x1b" not in command.err
    assert all(
        "datagrams/s" in line and "0 kernel drops, 0 ring drops" in line for line in command.err.splitlines()[1:]
    )


def test_on_a_terminal_one_line_updates_itself() -> None:
    master, slave = pty.openpty()
    options = ["--rcvbuf", "4k", "--interval", "0.02", "--duration", "0.3"]
    command = [sys.executable, "-m", "fastsock", "recv", "127.0.0.1:0", *options]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave, timeout=DEADLINE_S,
            env={**environment(), "TERM": "xterm", "COLUMNS": "100"}, check=True,
        )  # fmt: skip
        shown = os.read(master, 1 << 16).decode()
    finally:
        os.close(slave)
        os.close(master)
    assert shown.startswith("listening on 127.0.0.1:")
    assert shown.count("datagrams/s") >= 2
    assert "\x1b[2K" in shown  # erase the line before it is drawn again
    assert shown.count("\n") < shown.count("datagrams/s")
    assert done.stdout.decode().startswith("datagrams")
