"""What asyncio costs per datagram, and how many it takes in, on its own loop, on uvloop and through fastsock.aio.

Receivers and both ends of aioquic run in processes of their own; aio_ends.py says why, and "freed before" is
asyncio's transport in one that freed 1 MiB once.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fastsock.aio
from fastsock import bind_udp
from fastsock.bench import native
from fastsock.bench.aio_ends import Protocol, new_loop
from fastsock.bench.contestants import RCVBUF, VLEN, Link, has_gro
from fastsock.bench.floods import Cpus, choose_cpus, flooded, on_cpu
from fastsock.bench.paired import Rounds, collector_off, scaled, take_turns
from fastsock.bench.question import Plan, Question
from fastsock.bench.results import Answer, Column, Figure, Row, Table

SIZE = 64
PASSES = 8
"""Passes of the loop per turn of the senders, VLEN datagrams each."""
ALONE = 0.9
"""Of a CPU: a receiver that loses datagrams and had less was not alone there."""
THOROUGH_S = 30
"""With a budget from here on: every contestant, longer samples, aioquic."""
MEGABYTES = 5
"""Of each download."""

ENDS = Path(__file__).parent.parent / "aio_ends.py"
ROOT = Path(fastsock.__file__).parent.parent


def loops() -> list[str]:
    return ["asyncio", *(["uvloop"] if find_spec("uvloop") else [])]


def run_end(end: str, fds: tuple[int, ...] = (), **spec: Any) -> Any:
    """Run one of aio_ends.py to its end; what it measured."""
    command = [sys.executable, "-P", str(ENDS), json.dumps({"end": end, "path": str(ROOT), **spec})]
    done = subprocess.run(command, pass_fds=fds, stdout=subprocess.PIPE, check=True, timeout=60 + 60)
    return json.loads(done.stdout)


# --- receive -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Receiver:
    """One way to receive on a loop; without a loop, a bare batch loop."""

    loop: str
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
            return self.loop + (", freed before" if self.freed else "")
        on = " on uvloop" if self.loop == "uvloop" else ""
        return f"fastsock.aio{on}" + (", batches" if self.batches else "") + gro

    @property
    def kind(self) -> str:
        return "fastsock" if self.ours else self.loop


def list_receivers(thorough: bool) -> list[Receiver]:
    gro = has_gro()
    found = []
    for loop in loops():
        found.append(Receiver(loop, False, False))
        found += [Receiver(loop, True, batches, gro) for batches in (False, True)]
    if thorough:
        found.insert(1, Receiver("asyncio", False, False, freed=True))
        for joined in (True, False) if gro else (False,):
            for loop in loops():
                found += [Receiver(loop, True, batches, joined) for batches in (False, True)]
            found += [Receiver("", True, batches, joined) for batches in (False, True)]
    return list(dict.fromkeys(found))


def receive_once(
    receiver: Receiver, sent_fd: int, seconds: float, cpus: Cpus, tries: int, until: float
) -> dict[str, float]:
    """One sample; another, before `until`, where something else ran on the CPU: the one with the most of it."""
    samples: list[dict[str, Any]] = []
    while True:
        with Link(SIZE, rcvbuf=RCVBUF, gso=True, gro=receiver.gro) as link, flooded(link, cpus.other, sent_fd):
            fds = link.receiver.fileno(), sent_fd
            more = {"fd": fds[0], "sent_fd": fds[1], "seconds": seconds, "cpu": cpus.own}
            samples.append(run_end("receive", fds, **asdict(receiver), **more))
        alone = samples[-1]["cpu"] > ALONE or samples[-1]["lost"] < 0.05
        if alone or len(samples) >= tries or time.monotonic() >= until:
            break
    found = max(samples, key=lambda sample: sample["cpu"])
    delays = sorted(found.pop("delays", ()))
    if delays:
        found["timer"] = delays[int(len(delays) * 0.99)]
    return found


def measure_receivers(
    receivers: list[Receiver],
    budget_s: float,
    *,
    seconds: float,
    tries: int,
    rounds: int | None,
    rng: random.Random,
    progress: Callable[[float], None],
) -> Rounds:
    cpus = choose_cpus()
    until = time.monotonic() + budget_s / 2  # later there is time for the rounds alone
    with open(os.memfd_create("sent"), "rb+") as sent:
        sent.truncate(mmap.PAGESIZE)

        def turn(receiver: Receiver) -> Callable[[], dict[str, float]]:
            return lambda: receive_once(receiver, sent.fileno(), seconds, cpus, tries, until)

        turns = {receiver.name: turn(receiver) for receiver in receivers}
        return take_turns(turns, budget_s, rounds=rounds, rng=rng, progress=progress)


RECEIVE_COLUMNS = [
    Column("per_s", "received/s", "k", 0),
    Column("of_asyncio", "× asyncio", "x", 1),
    Column("of_uvloop", "× uvloop", "x", 1),
    Column("lost", "lost", "%", 1),
    Column("ns", "CPU", "ns", 0),
    Column("cpu_ratio", "× CPU", "x", 1),
    Column("cpu", "of a CPU", "%", 0),
    Column("timer", "10 ms timer, p99", "ms", 1),
]


def receive_table(receivers: list[Receiver], found: Rounds) -> Table:
    rows = []
    for receiver in receivers:
        name = receiver.name

        def times(base: str, name: str = name) -> Figure | None:
            return found.ratio(name, base, "per_s", more_is_better=True) if base in found else None

        cells: dict[str, Figure | float | int | str | None] = {
            "per_s": scaled(found.figure(name, "per_s"), 1e-3),
            "of_asyncio": times("asyncio"),
            "of_uvloop": times("uvloop"),
            "lost": scaled(found.figure(name, "lost"), 100),
            "ns": found.figure(name, "ns"),
            "cpu_ratio": found.ratio(name, "asyncio", "ns"),
            "cpu": scaled(found.figure(name, "cpu"), 100),
            "timer": found.figure(name, "timer") if receiver.loop else None,
        }
        own_loop = not receiver.ours and not receiver.freed
        rows.append(Row(name, cells, receiver.kind, None if own_loop else "asyncio"))
    note = (
        "datagram_received unless it says batches: then the protocol has datagrams_received. Lost is the share of what "
        "was sent meanwhile. CPU is the time of the loop's thread per datagram received, and × CPU asyncio's over it, "
        "which holds where other load makes rates mean little: well below 100 % of a CPU, and with loss. Floods vary "
        "two- or threefold between samples: see the quartiles."
    )
    return Table("receive, live flood of 64 B", RECEIVE_COLUMNS, rows, note)


# --- send ----------------------------------------------------------------------------------------


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

    def turn(self) -> dict[str, float]:
        """OSError where some did not arrive."""
        return {"ns": self.run(self.send()) / drain(self.peers)}

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


def bare_sender(gso: bool | None, peers: list[Any], stack: ExitStack) -> Callable[[], dict[str, float]]:
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

    def turn() -> dict[str, float]:
        began = time.thread_time_ns()
        for _ in range(PASSES):
            send()
        return {"ns": (time.thread_time_ns() - began) / drain(peers)}

    return turn


def sender_names() -> dict[str, str]:
    """Each sender and whose it is."""
    found = {"asyncio": "asyncio", "fastsock.aio": "fastsock", "fastsock.aio, gso off": "fastsock"}
    if "uvloop" in loops():
        on = "fastsock.aio on uvloop"
        found |= {"uvloop": "uvloop", on: "fastsock", f"{on}, gso off": "fastsock"}
    return found | {"socket.sendto": "socket", "sendto_many": "fastsock", "sendto_many, gso off": "fastsock"}


def make_sender(name: str, peers: list[Any], stack: ExitStack) -> Callable[[], dict[str, float]]:
    gso = not name.endswith(", gso off")
    if name == "socket.sendto":
        return bare_sender(None, peers, stack)
    if name.startswith("sendto_many"):
        return bare_sender(gso, peers, stack)
    if name in ("asyncio", "uvloop"):
        return Sender(name, None, peers, stack).turn
    return Sender("uvloop" if "on uvloop" in name else "asyncio", gso, peers, stack).turn


def receiving_ends() -> dict[str, tuple[int, bool]]:
    """How many receivers, and whether with UDP GRO."""
    return {
        "1 peer": (1, False),
        f"{VLEN} peers": (VLEN, False),
        **({"1 GRO peer": (1, True)} if has_gro() else {}),
    }


def measure_senders(
    budget_s: float, *, rounds: int | None, rng: random.Random, progress: Callable[[float], None]
) -> Rounds:
    with ExitStack() as stack, collector_off(), on_cpu(choose_cpus().own):
        turns: dict[str, Callable[[], Mapping[str, float]]] = {}
        for to, (count, gro) in receiving_ends().items():
            peers = [stack.enter_context(bind_udp(("127.0.0.1", 0), rcvbuf=RCVBUF, gro=gro)) for _ in range(count)]
            for peer in peers:
                peer.setblocking(False)
            for name in sender_names():
                turns[f"{name}, {to}"] = make_sender(name, peers, stack)
        return take_turns(turns, budget_s, rounds=rounds, warm_rounds=2, rng=rng, progress=progress)


def send_table(found: Rounds) -> Table:
    columns, rows = [], []
    for to in receiving_ends():
        columns += [Column(f"ns_{to}", to, "ns", 0), Column(f"ratio_{to}", "×", "x", 2)]
    for name, kind in sender_names().items():
        cells: dict[str, Figure | float | int | str | None] = {}
        for to in receiving_ends():
            cells[f"ns_{to}"] = found.figure(f"{name}, {to}", "ns")
            cells[f"ratio_{to}"] = found.ratio(f"{name}, {to}", f"asyncio, {to}", "ns")
        rows.append(Row(name, cells, kind, None if name == "asyncio" else "asyncio"))
    note = (
        "CPU time per datagram, 64 to a pass of the loop, until they are with the kernel; all of them arrived. "
        "socket.sendto and sendto_many have no loop: what no transport can save. To a receiver without UDP GRO the "
        "sender pays for the kernel's cutting of joined datagrams."
    )
    return Table("sendto, 64 B", columns, rows, note)


# --- aioquic -------------------------------------------------------------------------------------

QUIC_LOOPS = {"asyncio": "asyncio", "fastsock.aio.EventLoop": "EventLoop"}


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
        spec |= {"end": "serve", "path": str(ROOT), "cpu": cpu, "ready_fd": far}
        server = subprocess.Popen([sys.executable, "-P", str(ENDS), json.dumps(spec)], pass_fds=[far])
        os.close(far)
        try:
            yield int(ready.read(16))
        finally:
            server.kill()
            server.wait()


def measure_quic(
    budget_s: float, *, rounds: int | None, rng: random.Random, progress: Callable[[float], None]
) -> Rounds:
    cpus = choose_cpus()
    nbytes = MEGABYTES * 1_000_000
    with tempfile.TemporaryDirectory() as directory:
        certificate = make_certificate(Path(directory))

        def turn(loop: str) -> Callable[[], dict[str, float]]:
            def download() -> dict[str, float]:
                with quic_server(cpus.other, loop=loop, nbytes=nbytes, certificate=certificate) as port:
                    found: dict[str, float] = run_end("download", loop=loop, nbytes=nbytes, port=port, cpu=cpus.own)
                return found

            return download

        turns = {name: turn(loop) for name, loop in QUIC_LOOPS.items()}
        return take_turns(turns, budget_s, rounds=rounds, rng=rng, progress=progress)


def quic_table(found: Rounds) -> Table:
    columns = [
        Column("seconds", "download", "s", 2),
        Column("ratio", "×", "x", 2),
        Column("cpu", "CPU of the client", "s", 2),
    ]
    rows = [
        Row(
            name,
            {
                "seconds": found.figure(name, "seconds"),
                "ratio": found.ratio(name, "asyncio", "seconds"),
                "cpu": found.figure(name, "cpu"),
            },
            "asyncio" if name == "asyncio" else "fastsock",
            None if name == "asyncio" else "asyncio",
        )
        for name in QUIC_LOOPS
    ]
    return Table(f"aioquic, {MEGABYTES} MB from a process of its own", columns, rows)


# --- the question --------------------------------------------------------------------------------


def run(plan: Plan) -> Answer:
    rng = random.Random(plan.seed)
    thorough = plan.budget_s >= THOROUGH_S
    quic = thorough and find_spec("aioquic") is not None and find_spec("cryptography") is not None
    receivers = list_receivers(thorough)

    def part(what: str, begin: float, share: float) -> Callable[[float], None]:
        return lambda done: plan.progress(f"asyncio, {what}", begin + done * share)

    shares = (0.6, 0.2, 0.2) if quic else (0.75, 0.25, 0.0)
    received = measure_receivers(
        receivers,
        plan.budget_s * shares[0],
        seconds=0.3,
        tries=3 if thorough else 1,
        rounds=plan.rounds,
        rng=rng,
        progress=part("receive", 0, shares[0]),
    )
    sent = measure_senders(
        plan.budget_s * shares[1], rounds=plan.rounds, rng=rng, progress=part("send", shares[0], shares[1])
    )
    tables = [receive_table(receivers, received), send_table(sent)]
    if quic:
        downloads = measure_quic(
            plan.budget_s * shares[2], rounds=plan.rounds, rng=rng, progress=part("aioquic", 0.8, shares[2])
        )
        tables.append(quic_table(downloads))
    samples = min(len(measures["per_s"]) for measures in received.values.values())
    method = (
        f"A second process, on a CPU of its own, floods without a pause; {samples} samples of each receiver, every one "
        "in a new process, because what a process freed before makes asyncio's transport several times faster "
        "(M_MMAP_THRESHOLD). Only what the protocol was given counts, and loss is beside it. All take a turn in every "
        "round, in an order shuffled anew; ratios are medians of those of the rounds."
    )
    left_out = [] if "uvloop" in loops() else ["uvloop is not installed."]
    if why := native.missing():
        left_out.append(f"The sender is not C: {why}.")
    if not has_gro():
        left_out.append("There is no UDP GRO here.")
    return Answer("asyncio", QUESTION.title, " ".join([method, *left_out]), tables=tables)


QUESTION = Question("asyncio", "What does asyncio cost per datagram, and how many does it take in?", run, weight=4)
