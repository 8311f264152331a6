"""What does asyncio cost per datagram, and how many does it take in?

    python bench/aio.py [--quick] [--samples N] [--seconds S] [--best-of N] [--only PART ...] [--json] [--check]

receive: a second process, on a CPU of its own, floods without a pause: C, with UDP_SEGMENT, 64 bytes. `received/s` is
what the protocol was given, `lost` the share of what was sent meanwhile that it was not, `ns CPU` the time of the
loop's thread per datagram. `timer` is when a timer of 10 ms fired beside that, p50 and p99 of all samples. The bare
loops have no event loop: a batched call again and again.

send: `sendto`, 64 datagrams to a pass of the loop, CPU time per datagram until they are with the kernel. Receivers
are drained between turns, untimed.

aioquic: a download over loopback from a process of its own; both ends on the loop that is named.

Receivers and both ends of aioquic run in processes of their own; aio_ends.py says why, and "freed before" is asyncio's
transport in one that freed 1 MiB once. All contestants of a part take turns in an order shuffled anew. A ratio is the
median of those of the rounds; the best of `--best-of` runs counts, row by row. `--check` exits with 1 where a target
is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from aio_ends import Protocol, new_loop
from flood import flooded

import fastsock.aio
from fastsock import bind_udp
from fastsock.cli.arguments import parse_count, parse_seconds
from fastsock.cli.bench import environment
from fastsock.cli.contestants import RCVBUF, VLEN, Link, has_gro
from fastsock.cli.paired import Spread, collector_off, spread

SIZE = 64
PASSES = 8
"""Passes of the loop per turn of the senders, VLEN datagrams each."""
TRIES = 4
ALONE = 0.9
"""Of a CPU: a receiver that loses datagrams and had less was not alone there."""
NOISE = 0.97
"""A ratio of two equal contestants comes out between this and its inverse."""

ENDS = Path(__file__).with_name("aio_ends.py")
LOOPS = ["asyncio"]
if find_spec("uvloop"):
    LOOPS.append("uvloop")

Timers = dict[str, dict[str, float]]


class Cpus(NamedTuple):
    """Where what is measured runs, and where its other end does; None where there is one CPU only."""

    own: int | None
    other: int | None


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio that should be reached: baseline / contestant, of ns or of seconds, or the inverse, of rates."""

    what: str
    contestant: str
    baseline: str
    measure: str
    least: float | None = None


@dataclass(slots=True)
class Part:
    """What was measured of some contestants: for each measure, a number per round."""

    rounds: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, contestant: str, **measures: float) -> None:
        for name, value in measures.items():
            self.rounds.setdefault(contestant, {}).setdefault(name, []).append(value)

    def median(self, contestant: str, measure: str) -> float:
        return statistics.median(self.rounds[contestant][measure])

    def ratio(self, target: Target) -> Spread:
        own, base = (self.rounds[name][target.measure] for name in (target.contestant, target.baseline))
        if target.measure == "per_s":
            own, base = base, own
        return spread([there / here for here, there in zip(own, base, strict=True)])


# --- receive -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receiver:
    loop: str
    """Or "" for a bare batch loop."""
    ours: bool
    batches: bool
    gro: bool = False
    freed: bool = False
    """Whether the process had freed a large block before: see aio_ends.py."""

    @property
    def name(self) -> str:
        gro = "" if self.gro or not has_gro() else ", gro off"
        if not self.loop:
            return ("recv_batch" if self.batches else "recvfrom_many") + gro
        if not self.ours:
            return f"{self.loop}: own" + (", freed before" if self.freed else "")
        return f"{self.loop}: " + ("batches" if self.batches else "datagrams") + gro


def list_receivers() -> list[Receiver]:
    gro = (True, False) if has_gro() else (False,)
    found = [Receiver("", True, batches, joined) for joined in gro for batches in (False, True)]
    for loop in LOOPS:
        found.append(Receiver(loop, False, False))
        if loop == "asyncio":
            found.append(Receiver(loop, False, False, freed=True))
        found += [Receiver(loop, True, batches, joined) for joined in gro for batches in (False, True)]
    return found


def receive_targets() -> Iterator[Target]:
    for gro in ("", ", gro off"):
        for what, own, least in (("datagram_received", "datagrams", 20), ("datagrams_received", "batches", 26)):
            yield Target(f"{what}, asyncio{gro}", f"asyncio: {own}{gro}", "asyncio: own", "per_s", least)
            yield Target(
                f"{what}, asyncio{gro}; freed before", f"asyncio: {own}{gro}", "asyncio: own, freed before", "per_s"
            )
            yield Target(f"{what}, uvloop{gro}", f"uvloop: {own}{gro}", "uvloop: own", "per_s", 2.2)
        for what, own, bare, least in (
            ("recv_batch / datagrams_received", "batches", "recv_batch", 1 / 1.1),
            ("recvfrom_many / datagram_received", "datagrams", "recvfrom_many", None),
        ):
            for loop in ("asyncio", "uvloop"):
                yield Target(f"CPU of {what}, {loop}{gro}", f"{loop}: {own}{gro}", f"{bare}{gro}", "ns", least)


RECEIVE_TARGETS = list(receive_targets())
TIMER_MOST_MS = 20


def run_end(end: str, fds: tuple[int, ...] = (), **spec: Any) -> Any:
    """Run one of aio_ends.py to its end; what it measured."""
    command = [sys.executable, str(ENDS), json.dumps({"end": end, **spec})]
    done = subprocess.run(command, pass_fds=fds, stdout=subprocess.PIPE, check=True, timeout=60 + 60)
    return json.loads(done.stdout)


def receive_alone(receiver: Receiver, sent_fd: int, seconds: float, cpus: Cpus) -> dict[str, Any]:
    """One sample; another where something else ran on the CPU, and of TRIES the one with the most of it."""
    samples = []
    for _ in range(TRIES):
        with Link(SIZE, rcvbuf=RCVBUF, gso=True, gro=receiver.gro) as link, flooded(link, cpus.other, sent_fd):
            fds = link.receiver.fileno(), sent_fd
            more = {"fd": fds[0], "sent_fd": fds[1], "seconds": seconds, "cpu": cpus.own}
            samples.append(run_end("receive", fds, **asdict(receiver), **more))
        if samples[-1]["cpu"] > ALONE or samples[-1]["lost"] < 0.05:
            return samples[-1]
    return max(samples, key=lambda found: found["cpu"])


def measure_receivers(args: argparse.Namespace, rng: random.Random, cpus: Cpus) -> tuple[Part, Timers]:
    part = Part()
    delays: dict[str, list[float]] = {}
    receivers = list_receivers()
    with open(os.memfd_create("sent"), "rb+") as sent:
        sent.truncate(mmap.PAGESIZE)
        for _ in range(args.samples):
            for receiver in rng.sample(receivers, len(receivers)):
                found = receive_alone(receiver, sent.fileno(), args.seconds, cpus)
                delays.setdefault(receiver.name, []).extend(found.pop("delays", ()))
                part.add(receiver.name, **found)
    part.rounds = {receiver.name: part.rounds[receiver.name] for receiver in receivers}
    timers = {}
    for name, found in delays.items():
        found.sort()
        if found:
            timers[name] = {"p50": statistics.median(found), "p99": found[int(len(found) * 0.99)], "max": found[-1]}
    return part, timers


# --- send ----------------------------------------------------------------------------------------

ONE, JOINED, MANY = "1 peer", "1 GRO peer", f"{VLEN} peers"


def send_targets() -> Iterator[Target]:
    def versus(what: str, own: str, base: str, to: str, least: float | None = None) -> Target:
        return Target(f"{what}, {to}", f"{own}, {to}", f"{base}, {to}", "ns", least)

    off, on = "gso off", "gso on"
    for to in (ONE, JOINED, MANY):
        yield versus("socket.sendto / sendto_many, gso off", "sendto_many, gso off", "socket.sendto", to)
        yield versus("socket.sendto / sendto_many", "sendto_many", "socket.sendto", to)
    for loop, least, least_gso in (("asyncio", 1.4, 5), ("uvloop", None, None)):
        yield versus(f"sendto, {loop}, {off}", f"{loop}: {off}", f"{loop}: own", ONE, least)
        yield versus(f"sendto, {loop}, {off}", f"{loop}: {off}", f"{loop}: own", MANY, least)
        yield versus(f"sendto, {loop}", f"{loop}: {on}", f"{loop}: own", MANY, least)
        yield versus(f"sendto, {loop}", f"{loop}: {on}", f"{loop}: own", ONE, least_gso)
        yield versus(f"sendto, {loop}", f"{loop}: {on}", f"{loop}: own", JOINED)


SEND_TARGETS = list(send_targets())


class Sender:
    """An endpoint on a loop of its own, and the receivers that it sends to."""

    def __init__(self, loop: str, gso: bool | None, peers: list[Any], stack: ExitStack) -> None:
        runner = stack.enter_context(asyncio.Runner(loop_factory=lambda: new_loop(loop)))
        self.run, self.peers = runner.run, peers
        self.addresses = [peer.getsockname() for peer in peers] * (VLEN // len(peers))
        self.payloads = [bytes([index]) * SIZE for index in range(VLEN)]
        self.transport: Any = self.run(self.open(gso))
        stack.callback(lambda: self.run(self.close()))

    async def open(self, gso: bool | None) -> Any:
        if gso is None:
            made = await asyncio.get_running_loop().create_datagram_endpoint(Protocol, ("127.0.0.1", 0))
            return made[0]
        return (await fastsock.aio.create_datagram_endpoint(Protocol, ("127.0.0.1", 0), gso=gso))[0]

    async def close(self) -> None:
        self.transport.abort()
        await asyncio.sleep(0)

    def turn(self) -> float:
        """Nanoseconds per datagram; OSError where some did not arrive."""
        return self.run(self.send()) / drain(self.peers)

    async def send(self) -> int:
        sendto, waiting = self.transport.sendto, self.transport.get_write_buffer_size
        pairs = list(zip(self.payloads, self.addresses, strict=True))
        began = time.thread_time_ns()
        for _ in range(PASSES):
            for payload, address in pairs:
                sendto(payload, address)
            await asyncio.sleep(0)
            while waiting():
                await asyncio.sleep(0)
        return time.thread_time_ns() - began


def drain(peers: list[Any]) -> int:
    """Take what one turn sent; OSError where that is not all of it."""
    arrived = 0
    for peer in peers:
        with suppress(BlockingIOError):
            while True:
                arrived += len(peer.recv_many(VLEN))
    if arrived != PASSES * VLEN:
        raise OSError(f"{arrived} of {PASSES * VLEN} datagrams arrived")
    return arrived


def bare_sender(gso: bool | None, peers: list[Any], stack: ExitStack) -> Callable[[], float]:
    """The same without an event loop: sendto_many, or the standard library's sendto, again and again."""
    addresses = [peer.getsockname() for peer in peers] * (VLEN // len(peers))
    payloads = [bytes([index]) * SIZE for index in range(VLEN)]
    if gso is None:
        std = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        def send() -> None:
            for payload, address in zip(payloads, addresses, strict=True):
                std.sendto(payload, address)
    else:
        own = stack.enter_context(bind_udp(("127.0.0.1", 0), gso=gso))

        def send() -> None:
            if own.sendto_many(payloads, addresses) != VLEN:
                raise OSError("not all were sent")

    def turn() -> float:
        began = time.thread_time_ns()
        for _ in range(PASSES):
            send()
        return (time.thread_time_ns() - began) / drain(peers)

    return turn


@contextmanager
def on_cpu(cpu: int | None) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_senders(args: argparse.Namespace, rng: random.Random, cpus: Cpus) -> Part:
    part = Part()
    with ExitStack() as stack, collector_off(), on_cpu(cpus.own):
        contestants: dict[str, Callable[[], float]] = {}
        for count, gro, words in ((1, False, ONE), (1, True, JOINED), (VLEN, False, MANY)):
            if gro and not has_gro():
                continue
            peers = [stack.enter_context(bind_udp(("127.0.0.1", 0), rcvbuf=RCVBUF, gro=gro)) for _ in range(count)]
            for peer in peers:
                peer.setblocking(False)
            for gso, which in ((None, "socket.sendto"), (False, "sendto_many, gso off"), (True, "sendto_many")):
                contestants[f"{which}, {words}"] = bare_sender(gso, peers, stack)
            for loop in LOOPS:
                for gso, which in ((None, "own"), (False, "gso off"), (True, "gso on")):
                    contestants[f"{loop}: {which}, {words}"] = Sender(loop, gso, peers, stack).turn
        for number in range(-2, args.rounds):
            for name in rng.sample(list(contestants), len(contestants)):
                ns = contestants[name]()
                if number >= 0:
                    part.add(name, ns=ns)
    part.rounds = {name: part.rounds[name] for name in contestants}
    return part


# --- aioquic -------------------------------------------------------------------------------------

QUIC_TARGETS = [Target("aioquic, download", "EventLoop", "asyncio", "seconds", NOISE)]
QUIC_LOOPS = ["asyncio", "EventLoop"]


def make_certificate(directory: Path) -> list[str]:
    """A self-signed certificate and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    paths = [directory / "cert.pem", directory / "key.pem"]
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return [str(path) for path in paths]


@contextmanager
def quic_server(cpu: int | None, **spec: Any) -> Iterator[int]:
    """Serve until the end of the block; gives the port."""
    near, far = os.pipe()
    with open(near, "rb", buffering=0) as ready:
        command = [sys.executable, str(ENDS), json.dumps({"end": "serve", "cpu": cpu, "ready_fd": far, **spec})]
        server = subprocess.Popen(command, pass_fds=[far])
        os.close(far)
        try:
            yield int(ready.read(16))
        finally:
            server.kill()
            server.wait()


def measure_quic(args: argparse.Namespace, rng: random.Random, cpus: Cpus) -> Part:
    part = Part()
    nbytes = args.megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as directory:
        certificate = make_certificate(Path(directory))
        for _ in range(args.downloads):
            for loop in rng.sample(QUIC_LOOPS, len(QUIC_LOOPS)):
                with quic_server(cpus.other, loop=loop, nbytes=nbytes, certificate=certificate) as port:
                    part.add(loop, **run_end("download", loop=loop, nbytes=nbytes, port=port, cpu=cpus.own))
    part.rounds = {loop: part.rounds[loop] for loop in QUIC_LOOPS}
    return part


# --- what is printed -----------------------------------------------------------------------------


@dataclass(slots=True)
class Report:
    """One run, or the best rows of several."""

    parts: dict[str, Part]
    timers: Timers
    ratios: dict[str, Spread]


TARGETS = {"receive": RECEIVE_TARGETS, "send": SEND_TARGETS, "aioquic": QUIC_TARGETS}


def measure(args: argparse.Namespace, rng: random.Random, cpus: Cpus) -> Report:
    parts: dict[str, Part] = {}
    timers: Timers = {}
    if "receive" in args.only:
        parts["receive"], timers = measure_receivers(args, rng, cpus)
    if "send" in args.only:
        parts["send"] = measure_senders(args, rng, cpus)
    if "aioquic" in args.only:
        parts["aioquic"] = measure_quic(args, rng, cpus)
    ratios = {
        target.what: part.ratio(target)
        for name, part in parts.items()
        for target in TARGETS[name]
        if {target.contestant, target.baseline} <= part.rounds.keys()
    }
    return Report(parts, timers, ratios)


def best_of(reports: list[Report]) -> Report:
    """The best of each row; the other figures are of the last run."""
    ratios = {
        what: max((report.ratios[what] for report in reports), key=lambda ratio: ratio.median)
        for what in reports[0].ratios
    }
    timers = {
        name: min((report.timers[name] for report in reports), key=lambda timer: timer["p99"])
        for name in reports[0].timers
    }
    return Report(reports[-1].parts, timers, ratios)


def find_short(report: Report) -> list[str]:
    least = {target.what: target.least for targets in TARGETS.values() for target in targets}
    short = [what for what, ratio in report.ratios.items() if ratio.median < (least[what] or 0)]
    ours = [name for name in report.timers if ": own" not in name]
    return short + [f"timer, {name}" for name in ours if report.timers[name]["p99"] > TIMER_MOST_MS]


def print_receivers(report: Report, short: list[str]) -> None:
    part = report.parts["receive"]
    print(
        f"{'receive, flood':24}  received/s, k  [least-most]    lost  ns CPU  of a CPU"
        f"   10 ms timer, ms: p50   p99   max"
    )
    for name, measures in part.rounds.items():
        rates = [rate / 1e3 for rate in measures["per_s"]]
        line = (
            f"{name:24}  {statistics.median(rates):13,.0f}  [{min(rates):,.0f}-{max(rates):,.0f}]".ljust(55)
            + f"  {part.median(name, 'lost'):5.1%}  {part.median(name, 'ns'):6.0f}  {part.median(name, 'cpu'):8.0%}"
        )
        if name in report.timers:
            timer = report.timers[name]
            line += f"   {timer['p50']:20.1f} {timer['p99']:5.1f} {timer['max']:5.1f}"
            if ": own" not in name:
                line += "  short" if f"timer, {name}" in short else "  ok"
        print(line)
    print()


def print_costs(part: Part, measure: str, unit: str) -> None:
    width = max(map(len, part.rounds))
    for name in part.rounds:
        print(f"{name:{width}}  {part.median(name, measure):8.{0 if unit == 'ns CPU' else 2}f} {unit}")
    print()


def print_ratios(report: Report, short: list[str]) -> None:
    rows = [target for name in report.parts for target in TARGETS[name] if target.what in report.ratios]
    width = max(len(target.what) for target in rows)
    print(f"{'':{width}}  ratio  [quartiles]      target")
    for target in rows:
        ratio = report.ratios[target.what]
        least = "" if target.least is None else f"{target.least:5.2f} {'short' if target.what in short else 'ok'}"
        quartiles = f"[{ratio.low:.2f}-{ratio.high:.2f}]"
        print(f"{target.what:{width}}  {ratio.median:5.2f}  {quartiles:15}  {least}".rstrip())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter and fewer samples, rounds and downloads")
    parser.add_argument("--samples", type=parse_count, help="floods of each receiver")
    parser.add_argument("--seconds", type=parse_seconds, help="of each flood")
    parser.add_argument("--rounds", type=parse_count, help="of the senders")
    parser.add_argument("--downloads", type=parse_count)
    parser.add_argument("--megabytes", type=parse_count, default=20, help="of each download")
    parser.add_argument("--best-of", type=parse_count, default=1, metavar="N", help="the best of N runs, per row")
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    for name, quick, usual in (("samples", 3, 7), ("seconds", 0.3, 0.5), ("rounds", 50, 200), ("downloads", 1, 5)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else usual)
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    rng = random.Random(seed)

    left_out = []
    if "uvloop" not in LOOPS:
        left_out.append("uvloop is not installed: its rows are left out")
    if not has_gro():
        left_out.append("this kernel has no UDP GRO, or FASTSOCK_GRO=0 is set: its rows are left out")
    if "aioquic" in args.only and not find_spec("aioquic"):
        args.only.remove("aioquic")
        left_out.append("aioquic is not installed: its row is left out")
    about = environment()
    cpus = sorted(os.sched_getaffinity(0))
    pinned = Cpus(cpus[0], cpus[1]) if len(cpus) > 1 else Cpus(None, None)

    report = best_of([measure(args, rng, pinned) for _ in range(args.best_of)])
    short = find_short(report)
    if args.json:
        found = {
            "environment": about,
            "seed": seed,
            "left_out": left_out,
            "rounds": {name: part.rounds for name, part in report.parts.items()},
            "timers_ms": report.timers,
            "ratios": {what: asdict(ratio) for what, ratio in report.ratios.items()},
            "short": short,
        }
        print(json.dumps(found))
        return int(args.check and bool(short))
    print(f"Linux {about['kernel']}, {about['cpus']} CPUs, Python {about['python']}, fastsock {about['fastsock']};")
    print(f"{SIZE} B, ratios and timers best of {args.best_of}, the rest of the last run")
    print("".join(f"{line}\n" for line in left_out))
    if "receive" in report.parts:
        print_receivers(report, short)
    if "send" in report.parts:
        print_costs(report.parts["send"], "ns", "ns CPU")
    if "aioquic" in report.parts:
        print_costs(report.parts["aioquic"], "seconds", f"s for {args.megabytes} MB")
    print_ratios(report, short)
    return int(args.check and bool(short))


if __name__ == "__main__":
    sys.exit(main())
