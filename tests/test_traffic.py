"""Real senders into ``fastsock recv``: every datagram is accounted for.

softflowd exports NetFlow, sockperf floods, and what they and the kernel counted is compared
with what recv says. No rate is asserted.
"""

import contextlib
import re
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from command import DEADLINE_S, running, wait_until
from conftest import NO_DROPS, Namespace, needs_drop_counter

FLOWS = 4000


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


# --- softflowd ------------------------------------------------------------------------------------------


def write_capture(path: Path, flows: int) -> None:
    """A pcap of one packet per flow, TCP and UDP in turn, over Ethernet and IPv4."""
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)]
    for i in range(flows):
        if i % 2:
            proto, segment = 17, struct.pack("!HHHH", 1024 + i, 53, 12, 0) + b"abcd"
        else:
            proto, segment = 6, struct.pack("!HHIIBBHHH", 1024 + i, 80, 1, 0, 5 << 4, 2, 1000, 0, 0)
        source, peer = bytes([10, 0, i >> 8, i & 0xFF]), bytes([10, 1, 0, 1])
        header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), i, 0, 64, proto, 0, source, peer)
        frame = b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0" + header + segment
        parts += [struct.pack("<IIII", 1_700_000_000 + i // 1000, i % 1000, len(frame), len(frame)), frame]
    path.write_bytes(b"".join(parts))


def replay(capture: Path, version: int, port: int) -> str:
    """Let softflowd export the capture; returns its statistics."""
    # Without "none" it may wait for a client on its control socket for ever.
    done = subprocess.run(
        ["softflowd", "-r", capture, "-n", f"127.0.0.1:{port}", "-v", str(version), "-d", "-t", "maxlife=1",
         "-p", capture.with_suffix(".pid"), "-c", "none"],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    return done.stdout + done.stderr


def receive_plainly(capture: Path, version: int) -> list[bytes]:
    """The same replay into a socket of the standard library."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        # Nobody reads while it sends; twice the usual net.core.rmem_max holds the whole export.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.settimeout(DEADLINE_S)
        statistics = replay(capture, version, sock.getsockname()[1])
        match = re.search(r"in (\d+) packets \(0 failures\)", statistics)
        assert match, statistics
        return [sock.recv(65535) for _ in range(int(match[1]))]


@needs("softflowd")
@pytest.mark.parametrize("version", [5, 9, 10])
def test_softflowd(version: int, tmp_path: Path) -> None:
    capture = tmp_path / "flows.pcap"
    write_capture(capture, FLOWS)
    expected = receive_plainly(capture, version)
    assert len(expected) > 50
    if version == 9:  # RFC 3954: the fifth field of the header counts export packets
        sequences = [struct.unpack_from("!HHIII", payload)[4] for payload in expected]
        assert sequences == list(range(sequences[0], sequences[0] + len(expected)))

    with running(tmp_path, "recv", "127.0.0.1:0", "--json", "--interval", "0.1") as recv:
        statistics = replay(capture, version, recv.port())
        wait_until(
            lambda: sum(event["datagrams"] for event in recv.events if event["type"] == "interval") >= len(expected),
            "all received",
        )
        assert recv.end(signal.SIGINT) == 0
    assert f"in {len(expected)} packets" in statistics
    summary = recv.summary
    assert summary["datagrams"] == summary["other_datagrams"] == len(expected)
    assert summary["bytes"] == sum(map(len, expected))
    assert (summary["kernel_drops"], summary["truncated"], summary["stream"]) == (NO_DROPS, 0, None)


# --- in a network namespace, whose counters nobody else moves ---------------------------------------------


@needs("sockperf")
@pytest.mark.parametrize("rcvbuf", ["8M", "4k"])
def test_sockperf_at_full_speed(rcvbuf: str, namespace: Namespace, tmp_path: Path) -> None:
    options = ("--json", "--interval", "0.1", "--rcvbuf", rcvbuf)
    with running(tmp_path, "recv", "127.0.0.1:0", *options, before=namespace.enter) as recv:
        flood = subprocess.run(
            [*namespace.enter, "sockperf", "throughput", "-i", "127.0.0.1", "-p", str(recv.port()),
             "-m", "200", "-t", "2"],
            capture_output=True, text=True, timeout=DEADLINE_S, check=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip

        def all_taken() -> bool:
            counters = namespace.read_counters()
            return counters["InDatagrams"] + counters["RcvbufErrors"] >= counters["OutDatagrams"] > 0

        wait_until(all_taken, "every datagram read or dropped")
        assert recv.end(signal.SIGTERM) == 0
    counters, summary = namespace.read_counters(), recv.summary
    match = re.search(r"Total of (\d+) messages sent", flood.stdout + flood.stderr)
    assert match, flood.stdout
    # sockperf's total holds its warm-up messages too; the kernel counts what went out.
    assert counters["OutDatagrams"] >= int(match[1]) > 0
    assert summary["datagrams"] + summary["ring_drops"] + summary["kernel_drops"] == counters["OutDatagrams"]
    assert summary["datagrams"] + summary["ring_drops"] == counters["InDatagrams"]
    assert summary["kernel_drops"] == counters["RcvbufErrors"]
    if rcvbuf == "4k":
        assert summary["kernel_drops"] > 0
    intervals = [event for event in recv.events if event["type"] == "interval"]
    assert sum(event["datagrams"] for event in intervals) <= summary["datagrams"]


@needs_drop_counter
def test_a_flood_that_goes_on_is_accounted_for_up_to_the_end(namespace: Namespace, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        recv = stack.enter_context(running(tmp_path, "recv", "127.0.0.1:0", "--json", before=namespace.enter))
        target = f"127.0.0.1:{recv.port()}"
        send = stack.enter_context(
            running(tmp_path, "send", target, "--rate", "max", "--size", "64", "--json", before=namespace.enter)
        )
        wait_until(lambda: namespace.read_counters()["InDatagrams"] > 10_000, "a flood")
        assert recv.end(signal.SIGINT) == 0
        assert send.process.poll() is None
        assert send.end(signal.SIGINT) == 0
    counters, summary, sent = namespace.read_counters(), recv.summary, send.summary
    assert summary["datagrams"] + summary["ring_drops"] == counters["InDatagrams"]
    assert summary["kernel_drops"] == counters["RcvbufErrors"]
    # What is neither found its port closed: nothing was left in the queue.
    assert counters["OutDatagrams"] == sum(counters[name] for name in ("InDatagrams", "RcvbufErrors", "NoPorts"))
    assert counters["OutDatagrams"] == sent["sent"] + sent["end_markers"]
    assert sent["refused"] > 0
