"""Each program of examples/ as a process of its own, with real traffic, to the last datagram."""

import asyncio
import os
import re
import runpy
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from command import Command, wait_until
from conftest import environment, needs_multicast
from namespaces import LEFT, RIGHT, linked, skip_unless_linked
from test_traffic import needs, receive_plainly, replay, write_capture

import fastsock
import fastsock.aio

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
FLOWS = 1500
"""What softflowd exports: no more than the default receive buffer holds while a program is stopped."""
BOTH_SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])

Start = Callable[..., Command]


@contextmanager
def started(directory: Path, name: str, *words: object) -> Iterator[Command]:
    out, err = directory / "out", directory / "err"
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, words)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment())
    try:
        yield Command(process, out, err)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda *words: stack.enter_context(started(tmp_path, *words))


@pytest.fixture
def sender(closing: Callable[[Any], Any]) -> Callable[[Command], socket.socket]:
    """Make a socket of the standard library that is connected to a program."""

    def connect(program: Command) -> socket.socket:
        sock = closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect(("127.0.0.1", program.port()))
        return sock

    return connect


def end(program: Command, number: int | None = None) -> dict[str, int]:
    """Stop it, unless that was done; the counts on stderr."""
    assert program.end(number) == 0, program.err
    assert "Traceback" not in program.err
    return {name: int(count) for name, count in re.findall(r"^(\S.*?)  +(\d+)$", program.err, re.MULTILINE)}


@contextmanager
def stopped(program: Command) -> Iterator[None]:
    """Keep it from running, so that what is sent meanwhile is there all at once when it goes on."""
    program.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, program.process.pid, os.WSTOPPED | os.WNOWAIT)
    yield
    program.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("name", NAMES)
def test_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", "--help"], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert f"python {name}.py" in done.stdout


def test_the_guide_has_them_all() -> None:
    guide = (EXAMPLES.parent / "docs" / "guide.md").read_text()
    assert re.findall(r"^\| \[(\w+)\.py\]\(\.\./examples/\1\.py\)", guide, re.MULTILINE) == NAMES


class Recorder(asyncio.DatagramProtocol):
    received = 0

    def datagrams_received(self, batch: fastsock.RecvBatch) -> None:
        self.received += len(batch)


GROUP = "239.77.8.9"


def multicast_sender(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    index = socket.if_nametoindex(interface)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", bytes(4), bytes(4), index))
    return sock


@pytest.mark.parametrize("name", ["netflow_collector", "statsd_server", "syslog_collector"])
def test_what_is_queued_at_the_end_is_taken(name: str, closing: Callable[[Any], Any]) -> None:
    take_rest = runpy.run_path(str(EXAMPLES / f"{name}.py"))["take_rest"]
    sender = closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

    async def run() -> None:
        transport, recorder = await fastsock.aio.create_datagram_endpoint(
            Recorder,
            ("0.0.0.0", 0),
            read_us=1,  # each batch is received in one pass of the loop, and delivered in another
        )
        try:
            address = ("127.0.0.1", transport.get_extra_info("sockname")[1])
            for _ in range(150):
                sender.sendto(b"payload", address)
            await take_rest(transport)
            sender.sendto(b"too late", address)
            assert recorder.received == 150
            with pytest.raises(BlockingIOError):
                transport.get_extra_info("socket").recv_many(1)
        finally:
            transport.abort()
            await asyncio.sleep(0)

    asyncio.run(run())


@needs_multicast
def test_what_a_group_sent_by_the_end_is_taken(closing: Callable[[Any], Any]) -> None:
    example = runpy.run_path(str(EXAMPLES / "multicast_reader.py"))
    sender, reader = closing(multicast_sender("lo")), example["Reader"](0, 4)
    group = (GROUP, "lo", None)

    async def run() -> None:
        async with await fastsock.aio.bind_udp(("", 0), multicast=[group], timestamps=True) as sock:
            address = (GROUP, sock.getsockname()[1])
            following = asyncio.create_task(example["follow"](sock, reader))
            for value in range(150):
                sender.sendto(struct.pack("!I", value), address)
            await example["take_rest"](sock, [group])
            sender.sendto(b"too late", address)
            await example["take_rest"](sock, [])
            following.cancel()

    asyncio.run(run())
    assert (reader.datagrams, reader.too_short) == (150, 0)


# --- udp_echo ------------------------------------------------------------------------------------


@BOTH_SIGNALS
def test_echo(start: Start, sender: Callable[[Command], socket.socket], number: int) -> None:
    program = start("udp_echo", "--host", "127.0.0.1", "--port", 0)
    sock = sender(program)
    sock.settimeout(10)
    payloads = [b"", *(b"%d" % index for index in range(150)), b"x" * 9000]
    with stopped(program):
        for payload in payloads:
            sock.send(payload)
    assert [sock.recv(65535) for _ in payloads] == payloads
    assert end(program, number) == {"received": 152, "answered": 152, "discarded": 0, "errors": 0}


# --- statsd_server -------------------------------------------------------------------------------


@BOTH_SIGNALS
def test_statsd(start: Start, sender: Callable[[Command], socket.socket], number: int) -> None:
    program = start("statsd_server", "--host", "127.0.0.1", "--port", 0, "--json", "--interval", 1000)
    sock = sender(program)
    with stopped(program):
        for index in range(150):
            sock.send(b"hits:1|c\nsize:%d|ms\nusers:u%d|s\ndepth:%d|g" % (index, index % 7, index))
        sock.send(b"hits:2|c|@0.1\nslow:5|h|@0.5|#tag:x")
        sock.send(b"depth:+1|g\ndepth:-11|g\nlevel:-4|g\n")
        sock.send(b"nothing\n:1|c\nn:|c\nn:x|c\nn:nan|c\nn:1|q\nn:1\nn:1|c|@0\nn:1|c|@x\n\xff:1|c\n")
        program.process.send_signal(number)  # waits together with what was sent
    end(program)
    (flush,) = program.events
    assert (flush["datagrams"], flush["kernel_drops"], flush["lines"], flush["bad_lines"]) == (153, 0, 4 * 150 + 15, 9)
    assert {name: row["count"] for name, row in flush["counters"].items()} == {"hits": 170, "\ufffd": 1}
    assert flush["counters"]["hits"]["per_s"] == pytest.approx(170 / flush["seconds"], rel=1e-9)
    assert flush["gauges"] == {"depth": 139, "level": -4}
    assert flush["sets"] == {"users": 7}
    slow = {"count": 2, "min": 5, "mean": 5, "p50": 5, "p90": 5, "p99": 5, "max": 5}
    size = {"count": 150, "min": 0, "mean": 74.5, "p50": 74, "p90": 134, "p99": 148, "max": 149}
    assert flush["timers"] == {"size": size, "slow": slow}


def test_statsd_begins_anew_at_each_flush(start: Start, sender: Callable[[Command], socket.socket]) -> None:
    program = start("statsd_server", "--host", "127.0.0.1", "--port", 0, "--interval", 0.05)
    sock = sender(program)
    for _ in range(3):
        before = program.out.count("lines=2 ")
        sock.send(b"a:3|c\nb:7|g")
        wait_until(lambda before=before: program.out.count("lines=2 ") > before, "a flush")
    end(program, signal.SIGINT)
    assert re.findall(r"^counter a count=(\S+) per_s=", program.out, re.MULTILINE) == ["3", "3", "3"]
    assert program.out.count("gauge b value=7\n") >= 3
    last = program.out.splitlines()[-1]
    assert " lines=0 bad_lines=0 datagrams=3 kernel_drops=0" in last


# --- syslog_collector ----------------------------------------------------------------------------

MESSAGES = {
    # RFC 5424, 6.5: examples 1, 3, 4; and no MSG.
    b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \xef\xbb\xbf'su root' failed for lonvick":
        "auth.crit mymachine.example.com su 'su root' failed for lonvick",
    b'<165>1 2003-10-11T22:14:15.003Z host evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="App"] An event':
        "local4.notice host evntslog An event",
    b'<165>1 2003-10-11T22:14:15.003Z host evntslog - ID47 [a@1 b="c\\"]"][d@1 e="f"]': "local4.notice host evntslog ",
    b"<0>1 - - - - - - ": "kern.emerg - - ",
    # RFC 3164, 5.4: examples 1 and 2.
    b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8\n":
        "auth.crit mymachine su 'su root' failed for lonvick on /dev/pts/8",
    b"<191>Oct  1 22:14:15 10.1.2.3 sched[0]: That's All Folks!": "local7.debug 10.1.2.3 sched That's All Folks!",
    b"<13>Feb  5 17:32:18 10.0.0.99 Use the BFG!": "user.notice 10.0.0.99 - Use the BFG!",
    # Neither.
    b"Use the BFG!": "user.notice - - Use the BFG!",
    b"<192>Oct 11 22:14:15 host app: too high": "user.notice - - <192>Oct 11 22:14:15 host app: too high",
    b"<011>zero in front": "user.notice - - <011>zero in front",
    b"<11>two\nlines\x1b\x00": "user.err - - two\\nlines\\x1b",
    b"<11>no utf-8 \xff": "user.err - - no utf-8 \\xff",
    b"": "user.notice - - ",
}  # fmt: skip


@BOTH_SIGNALS
def test_syslog(start: Start, sender: Callable[[Command], socket.socket], tmp_path: Path, number: int) -> None:
    log = tmp_path / "messages.log"
    program = start("syslog_collector", "--host", "127.0.0.1", "--port", 0, "--output", log)
    sock = sender(program)
    before = time.time_ns()
    with stopped(program):
        for payload in MESSAGES:
            for _ in range(10):
                sock.send(payload)
        program.process.send_signal(number)
    counts = end(program)
    lines = log.read_text().split("\n")
    assert lines.pop() == ""
    assert [line.split(" ", 2)[2] for line in lines] == [line for line in MESSAGES.values() for _ in range(10)]
    assert {line.split(" ")[1] for line in lines} == {"127.0.0.1"}
    stamps = [line.split(" ")[0] for line in lines]
    assert stamps == sorted(stamps)
    assert time.strftime("%Y-%m-%dT", time.gmtime(before / 1e9)) in (stamps[0][:11], stamps[-1][:11])
    assert counts["received"] == counts["written"] == 10 * len(MESSAGES)
    assert (counts["rfc5424"], counts["rfc3164"], counts["other"]) == (40, 30, 60)
    assert (counts["emerg"], counts["crit"], counts["err"], counts["notice"], counts["debug"]) == (10, 20, 20, 70, 10)
    assert counts["kernel drops"] == 0


def test_syslog_opens_its_file_again(start: Start, sender: Callable[[Command], socket.socket], tmp_path: Path) -> None:
    log, rotated = tmp_path / "messages.log", tmp_path / "messages.log.1"
    program = start("syslog_collector", "--host", "127.0.0.1", "--port", 0, "--output", log)
    sock = sender(program)
    sock.send(b"<14>one")
    wait_until(lambda: "one" in log.read_text(), "the first message")
    log.rename(rotated)
    program.process.send_signal(signal.SIGHUP)
    wait_until(log.exists, "a new file")
    sock.send(b"<14>two")
    wait_until(lambda: "two" in log.read_text(), "the second message")
    assert end(program, signal.SIGTERM)["written"] == 2
    assert rotated.read_text().count("\n") == log.read_text().count("\n") == 1


def test_syslog_ends_where_it_cannot_write(start: Start, sender: Callable[[Command], socket.socket]) -> None:
    program = start("syslog_collector", "--host", "127.0.0.1", "--port", 0, "--output", "/dev/full")
    sender(program).send(b"<14>one")
    assert program.end() == 1
    assert "/dev/full: No space left on device" in program.err
    assert re.search(r"^received +1\nwritten +0$", program.err, re.MULTILINE)


# --- netflow_collector ---------------------------------------------------------------------------


@needs("softflowd")
@BOTH_SIGNALS
@pytest.mark.parametrize("version", [5, 9, 10])
def test_netflow(start: Start, tmp_path: Path, version: int, number: int) -> None:
    capture = tmp_path / "flows.pcap"
    write_capture(capture, FLOWS)
    expected = receive_plainly(capture, version)
    program = start("netflow_collector", "--host", "127.0.0.1", "--port", 0)
    port = program.port()
    with stopped(program):
        replay(capture, version, port)
        program.process.send_signal(number)
    counts = end(program)
    assert counts["packets"] == counts[f"v{version} packets"] == len(expected), program.err
    assert counts["flows"] == len(program.events) == FLOWS
    names = ("IPV4_SRC_ADDR", "SRC_PORT") if version == 5 else ("IPV4_SRC_ADDR", "L4_SRC_PORT")
    if version == 10:
        names = ("sourceIPv4Address", "sourceTransportPort")
    found = {tuple(flow[name] for name in names) for flow in program.events}
    sources = [socket.inet_ntoa(bytes([10, 0, index >> 8, index & 0xFF])) for index in range(FLOWS)]
    as_number = {source: int.from_bytes(socket.inet_aton(source)) for source in sources}
    assert found == {
        (as_number[source] if version != 9 else source, 1024 + index) for index, source in enumerate(sources)
    }
    others = ("no template", "malformed", "lost v5 flows", "lost v9 packets", "kernel drops")
    assert [counts[name] for name in others] == [0] * len(others)


def v9_packet(sequence: int, domain: int, *sets: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("!HH", kind, 4 + len(rest)) + rest for kind, rest in sets)
    return struct.pack("!HHIIII", 9, len(sets), 0, 0, sequence, domain) + body


def test_netflow_templates_belong_to_an_exporter(start: Start, sender: Callable[[Command], socket.socket]) -> None:
    program = start("netflow_collector", "--host", "127.0.0.1", "--port", 0)
    sock = sender(program)
    bytes_then_packets = (0, struct.pack("!HHHHHH", 256, 2, 1, 4, 2, 4))
    packets_then_bytes = (0, struct.pack("!HHHHHH", 256, 2, 2, 4, 1, 4))
    data = (256, struct.pack("!II", 10, 20))
    sock.send(v9_packet(0, 1, data))  # before its template
    sock.send(v9_packet(0, 2, packets_then_bytes, data))
    sock.send(v9_packet(1, 1, bytes_then_packets))
    sock.send(v9_packet(5, 1, data))  # 2 to 4 are lost
    sock.send(v9_packet(4, 1, data))  # 4 was late
    sock.send(v9_packet(6, 1, data))
    sock.send(v9_packet(0, 3, data))  # never gets one
    sock.send(v9_packet(7, 1, (256, b""))[:-4] + struct.pack("!HH", 256, 0))  # a set of length 0
    for junk in (b"", b"\0", b"\0\x09", b"\0\x05" + bytes(30), bytes(40), struct.pack("!HH20x", 5, 3)):
        sock.send(junk)
    counts = end(program, signal.SIGTERM)
    found = [(flow["domain"], flow["IN_BYTES"], flow["IN_PKTS"]) for flow in program.events]
    assert found == [(2, 20, 10), *[(1, 10, 20)] * 4]
    assert (counts["packets"], counts["v9 packets"], counts["flows"]) == (14, 6, 5)
    assert (counts["no template"], counts["malformed"], counts["lost v9 packets"]) == (1, 6, 3)


# --- multicast_reader ----------------------------------------------------------------------------


@needs_multicast
@BOTH_SIGNALS
def test_multicast(start: Start, closing: Callable[[Any], Any], number: int) -> None:
    program = start("multicast_reader", f"{GROUP}@lo", "--port", 0, "--json", "--interval", 1000)
    address = (GROUP, program.port())
    one, two = closing(multicast_sender("lo")), closing(multicast_sender("lo"))
    numbers = [*range(10), *range(15, 20), 11, 12, 12, 19, *range(20, 150)]
    with stopped(program):
        for value in numbers:
            one.sendto(struct.pack("!I", value) + b"payload", address)
        for value in (0xFFFFFFFE, 0xFFFFFFFF, 0, 2, 100_000, 100_001, 0):
            two.sendto(struct.pack("!I", value), address)
        two.sendto(b"abc", address)
        program.process.send_signal(number)
    end(program)
    (report,) = program.events
    assert (report["datagrams"], report["too_short"], report["kernel_drops"]) == (len(numbers) + 8, 1, 0)
    first, second = report["streams"].values()
    ports = [int(name.rpartition(":")[2]) for name in report["streams"]]
    assert ports == [sock.getsockname()[1] for sock in (one, two)]
    keys = ("received", "lost", "reordered", "duplicated", "restarts")
    assert [first[key] for key in keys] == [len(numbers), 3, 2, 2, 0]
    assert [second[key] for key in keys] == [7, 1 + 99_997, 0, 0, 1]
    for stream in (first, second):
        assert 0 < stream["longest_gap_ms"] / 1000 <= stream["seconds"]


def test_multicast_over_a_link(start: Start) -> None:
    skip_unless_linked()
    with linked() as link:
        with link.right.entered():
            program = start("multicast_reader", f"{GROUP}@right", "--port", 0, "--number", "2:2", "--interval", 0.05)
        address = (GROUP, program.port())
        with link.left.entered(), multicast_sender("left") as sock:
            for value in (65_534, 65_535, 1, 2, 0):
                sock.sendto(struct.pack("!HHQ", 0x8060, value, 0), address)
            sock.sendto(b"abc", (RIGHT[socket.AF_INET], address[1]))
        wait_until(lambda: "datagrams=6 " in program.out, "all read")
        end(program, signal.SIGINT)
    last = program.out.splitlines()[-2:]
    assert last[0] == "datagrams=6 too_short=1 kernel_drops=0"
    assert re.match(rf"  {LEFT[socket.AF_INET]}:\d+ received=5 lost=0 reordered=1 duplicated=0 restarts=0 ", last[1])
