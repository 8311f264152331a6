"""sockperf as an outside check of the latencies that `latency` measures: its client, and its server.

Everything is pinned to one CPU, where round trips are steady; only the order of magnitude is compared, and
again where the machine was busy with something else.
"""

import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess

import pytest
from command import DEADLINE_S, wait_until

from fastsock.bench import echo
from fastsock.bench.ends import Ends, stop
from fastsock.bench.questions.latency import WARMING

FACTOR = 20 if "FASTSOCK_SANITIZED" in os.environ else 4
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # of the sanitizers
ATTEMPTS = 4
SIZE = 64
CPU = min(os.sched_getaffinity(0))
TIMEOUT_NS = DEADLINE_S * 10**9
SPEC = {"library": None, "size": SIZE, "duration_ns": 3 * 10**8, "timeout_s": float(DEADLINE_S), "most": 1 << 18}
OURS = ["Socket.recv", "Socket.recv, time-out", "recv_batch", "Receiver", "fastsock.aio", "fastsock.aio, uvloop"]

pytestmark = pytest.mark.skipif(shutil.which("sockperf") is None, reason="sockperf is not installed")


def pin():
    os.sched_setaffinity(0, {CPU})


def udp_socket(port=0):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", port))
    return sock


def ping_pong(port, client_port=None):
    """Run sockperf's client; its text."""
    command = ["sockperf", "ping-pong", "-i", "127.0.0.1", "-p", str(port), "-m", str(SIZE), "-t", "1"]
    command += ["--full-rtt", *(["--client_port", str(client_port)] if client_port else [])]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        stdin=subprocess.DEVNULL,
        preexec_fn=pin,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def number(pattern, text):
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


def median_us(text):
    if "No valid observations" in text:  # too few, on a machine too busy
        return None
    return number(r"percentile 50\.000 = +([\d.]+)", text)


def our_median_us(ends, near):
    """What the client of `latency` finds, by socket.recv; and how many requests it sent."""
    found = ends.generator.call([near], 1, do="trips", way="socket.recv", cpu=CPU, **SPEC)
    assert found["missing"] == 0
    assert found["count"] > 0
    return statistics.median(ends.generator.samples[: found["count"]]) / 1e3, found["count"] + echo.WARM_TRIPS


@contextlib.contextmanager
def our_server(ends, way):
    """A server for one client; the socket that is its peer."""
    with udp_socket() as near, udp_socket() as far:
        near.connect(far.getsockname())
        far.connect(near.getsockname())
        ends.server(way).tell([far], do="serve", way=way, cpu=CPU, sockperf=True)
        ends.server(way).hear()
        yield near


@pytest.mark.parametrize("way", OURS)
def test_its_client_and_our_server(way):
    if way in echo.LOOPS:
        pytest.importorskip(echo.LOOPS[way][0])
    seen = []
    with Ends([way]) as ends:
        for _ in range(ATTEMPTS):
            with our_server(ends, way) as near:
                ours, asked = our_median_us(ends, near)
                assert stop(ends.server(way), near)["served"] == asked
            with our_server(ends, way) as near:
                own, peer = near.getsockname(), near.getpeername()
                near.close()  # makes room for sockperf's client, which has the same port
                text = ping_pong(peer[1], own[1])
                with udp_socket(own[1]) as again:
                    again.connect(peer)
                    served = stop(ends.server(way), again)["served"]
            sent, received = (number(rf"Total Run\].*{what}Messages=(\d+)", text) for what in ("Sent", "Received"))
            assert 0 < received <= sent <= received + 1
            assert served == sent  # both with the messages of its warm-up
            for fault in ("dropped", "duplicated", "out-of-order"):
                assert number(rf"{fault} messages = (\d+)", text) == 0
            seen.append((ours, median_us(text)))
            if agree(*seen[-1]):
                return
    pytest.fail(f"medians, ours and sockperf's: {seen}")


def agree(ours, theirs):
    return theirs is not None and 1 / FACTOR < ours / theirs < FACTOR


@contextlib.contextmanager
def its_server():
    """sockperf's server, which answers; its port."""
    with udp_socket() as sock:
        port = sock.getsockname()[1]
    process = subprocess.Popen(
        ["sockperf", "server", "-i", "127.0.0.1", "-p", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=pin,
        env=ENVIRONMENT,
    )
    try:
        with udp_socket() as sock:
            sock.settimeout(0.05)
            sock.connect(("127.0.0.1", port))

            def answers():
                assert process.poll() is None
                with contextlib.suppress(ConnectionRefusedError, TimeoutError):
                    sock.send(echo.request(0, SIZE))
                    return sock.recv(2048) == echo.as_server(echo.request(0, SIZE))

            wait_until(answers, "sockperf's server answers")
        yield port
    finally:
        process.kill()
        process.wait()


def test_our_client_and_its_server():
    seen = []
    with Ends([]) as ends, its_server() as port:
        for _ in range(ATTEMPTS):
            with udp_socket() as near:
                near.connect(("127.0.0.1", port))
                ours, _ = our_median_us(ends, near)
            seen.append((ours, median_us(ping_pong(port))))
            if agree(*seen[-1]):
                return
    pytest.fail(f"medians, ours and sockperf's: {seen}")


def test_our_rate_and_its_server():
    count, interval_ns = 500, 10**6
    with Ends([]) as ends, its_server() as port, udp_socket() as near:
        near.connect(("127.0.0.1", port))
        spec = {"count": count, "interval_ns": interval_ns, "timeout_ns": TIMEOUT_NS, "size": SIZE, **WARMING}
        found = ends.generator.call([near], DEADLINE_S, do="load", cpu=None, **spec)
        sent = ends.generator.samples[:count].tolist()
        answered = ends.generator.samples[echo.MAX_SAMPLES :][:count].tolist()
    first_ns, end_ns = found["first_ns"], found["end_ns"]
    assert all(first_ns + i * interval_ns <= at < answered[i] <= end_ns for i, at in enumerate(sent))
