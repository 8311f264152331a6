"""probe: what it finds, the reason for each finding, and the limits with their commands."""

import dataclasses
import errno
import json
import os
import platform
import socket
from pathlib import Path
from typing import Any

import pytest
from conftest import Namespace, has_ipv6, needs

import fastsock
from fastsock import _limits, _probe
from fastsock._limits import Limit, read_limits
from fastsock._probe import Capability, NoAnswerError, ask, known_bugs, parse_release, refusal

CAPABILITIES = [field.name for field in dataclasses.fields(fastsock.Probe) if field.type == "Capability"]
RELEASE = parse_release(platform.release())


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory in the place of /proc."""
    monkeypatch.setattr(
        _limits, "Path", lambda first, *rest: Path(str(first).replace("/proc", str(tmp_path), 1), *rest)
    )
    return tmp_path


def write(proc: Path, name: str, text: str) -> None:
    path = proc.joinpath(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limit(name: str) -> Limit:
    (found,) = [limit for limit in read_limits() if limit.name == name]
    return found


# --- what it finds --------------------------------------------------------------------------


def test_it_agrees_with_the_machine() -> None:
    found = fastsock.probe()
    assert (found.kernel, found.machine, found.python) == (
        platform.release(),
        platform.machine(),
        platform.python_version(),
    )
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.rmem_max == int(Path("/proc/sys/net/core/rmem_max").read_text())
    assert found.wmem_default == int(Path("/proc/sys/net/core/wmem_default").read_text())
    assert bool(found.ipv6) is has_ipv6()


def test_it_agrees_with_the_kernel() -> None:
    found = fastsock.probe()
    assert bool(found.gso) is (RELEASE >= (4, 18) and os.environ.get("FASTSOCK_GSO") != "0")
    assert bool(found.gro) is (RELEASE >= (5, 0) and os.environ.get("FASTSOCK_GRO") != "0")
    assert found.max_segments in ((64, 128) if found.gso else (1,))
    assert not found.drop_counter or RELEASE >= (4, 12)  # an emulator may have none
    with fastsock.bind_udp(("127.0.0.1", 0)) as sock:
        # The standard library meets the same answer.
        assert not found.gso or sock.getsockopt(socket.IPPROTO_UDP, 103) == 0


def test_each_capability_has_a_reason() -> None:
    found = fastsock.probe()
    assert len(CAPABILITIES) == 22
    for name in CAPABILITIES:
        capability = getattr(found, name)
        assert capability.why
        assert bool(capability) is capability.available
        with pytest.raises(AttributeError):
            capability.available = True
    with pytest.raises(AttributeError):
        found.gso = True
    assert f"{found.max_segments} datagrams" in found.gso.why or not found.gso


SHOW = """
import dataclasses, json, fastsock
print(json.dumps(dataclasses.asdict(fastsock.probe())))
"""
POWERLESS = """
import ctypes, struct
assert ctypes.CDLL(None).capset(struct.pack("=Ii", 0x20080522, 0), bytes(24)) == 0
"""


def test_the_environment_is_a_reason(isolated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSOCK_GSO", "0")
    monkeypatch.setenv("FASTSOCK_GRO", "0")
    found = json.loads(isolated(SHOW))
    assert found["gso"] == {"available": False, "why": "FASTSOCK_GSO=0 is set"}
    assert found["gro"] == {"available": False, "why": "FASTSOCK_GRO=0 is set"}
    assert found["max_segments"] == 1


@needs("txtime")
def test_what_takes_a_capability_of_the_process(isolated: Any) -> None:
    found = json.loads(isolated(POWERLESS + SHOW))
    assert found["rcvbuf_force"] == {"available": False, "why": "SO_RCVBUFFORCE: EPERM; it takes CAP_NET_ADMIN"}
    assert found["txtime_tai"] == {"available": False, "why": "SO_TXTIME: EPERM; it takes CAP_NET_ADMIN"}
    assert found["txtime"]["available"]
    assert found["timestamps"]["available"]


@needs("multicast")
def test_without_loopback_it_still_answers(isolated: Any, namespace: Namespace) -> None:
    down = (*namespace.enter, "sh", "-c", 'ip link set lo down && exec "$@"', "sh")
    found = json.loads(isolated(SHOW, before=down))
    assert not found["recvmmsg"]["available"]
    assert "is lo up?" in found["recvmmsg"]["why"]
    assert found["zerocopy"]["available"]
    assert not found["multicast"]["available"]


@needs("multicast")
def test_multicast_takes_an_interface(isolated: Any, namespace: Namespace) -> None:
    found = json.loads(isolated(SHOW, before=namespace.enter))
    assert found["multicast"]["available"] is False
    assert "ip link set DEVICE up multicast on" in found["multicast"]["why"]
    assert found["recvmmsg"]["available"]


def test_hardware_time_stamps_are_what_interfaces_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _probe.probe_hardware_timestamps()
    assert found or "lo" in found.why  # the loopback device has no clock
    monkeypatch.setattr(_probe, "timestamping_of", lambda sock, name: (0x5F if name == "lo" else 0x1A, 3))
    found = _probe.probe_hardware_timestamps()
    assert found.available
    assert found.why.startswith("lo (/dev/ptp3); ")


@needs("timestamps")
def test_loopback_claims_software_time_stamps() -> None:
    with fastsock.Socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        flags, clock = _probe.timestamping_of(sock, "lo")
        with pytest.raises(OSError, match="No such device"):
            _probe.timestamping_of(sock, "no such one")
    assert (flags & 0b11000, clock) == (0b11000, -1)


# --- reasons ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "release", "why"),
    [
        (OSError(errno.ENOPROTOOPT, ""), "4.15.0-20-generic", "Linux 4.18 has X, this is 4.15: ENOPROTOOPT"),
        (OSError(errno.ENOPROTOOPT, ""), "6.1.0", "X: ENOPROTOOPT"),
        (PermissionError(errno.EPERM, ""), "6.1.0", "X: EPERM; it takes CAP_NET_ADMIN"),
        (TimeoutError("timed out"), "6.1.0", "X: nothing arrived over loopback; is lo up? a firewall there?"),
    ],
)
def test_refusals_in_words(error: OSError, release: str, why: str) -> None:
    assert refusal("X", (4, 18), error, release) == why


def test_an_option_that_does_nothing_is_no_capability() -> None:
    def attempt() -> str:
        raise NoAnswerError("no word of it")

    assert ask("X", (1, 0), attempt) == Capability(False, "X: no word of it")
    assert ask("X", (1, 0), lambda: "fine") == Capability(True, "fine")


@pytest.mark.parametrize(
    ("release", "numbers"),
    [("6.18.44-fc", (6, 18, 44)), ("4.18", (4, 18, 0)), ("7.1.0-rc3+", (7, 1, 0)), ("strange", (0, 0, 0))],
)
def test_releases(release: str, numbers: tuple[int, ...]) -> None:
    assert parse_release(release) == numbers


@pytest.mark.parametrize(
    ("release", "known"),
    [
        ("6.18.44", False),
        ("7.0.0-rc1", True),
        ("7.0.9", True),
        ("7.1.4-1-amd64", True),
        ("7.1.5", False),
        ("8.0", False),
    ],
)
def test_known_bugs_name_the_switch(release: str, known: bool) -> None:
    bugs = list(known_bugs(release))
    assert bool(bugs) is known
    assert all("FASTSOCK_GSO=0" in bug and "FASTSOCK_GRO=0" in bug for bug in bugs)


def test_long_lists_of_interfaces_are_cut() -> None:
    assert _probe.listing([]) == "none"
    assert _probe.listing([f"e{i}" for i in range(10)]) == "e0, e1, e2, e3, e4, e5, e6, e7 and 2 more"


# --- limits --------------------------------------------------------------------------------------


def test_limits_agree_with_the_machine() -> None:
    found = fastsock.probe().limits
    assert found == tuple(read_limits())
    for one in found:
        path = Path("/proc/sys", *one.name.split("."))
        assert one.value == int(path.read_text().split()[0])
        assert (one.command is not None) is (one.value < one.wanted)
        assert one.why


@pytest.mark.parametrize(
    ("value", "command"),
    [("212992\n", "sysctl -w net.core.rmem_max=8388608"), ("8388608\n", None), ("16777216\n", None)],
)
def test_a_limit_has_the_command_that_lifts_it(value: str, command: str | None, proc: Path) -> None:
    write(proc, "sys/net/core/rmem_max", value)
    assert limit("net.core.rmem_max").value == int(value)
    assert limit("net.core.rmem_max").command == command


def test_udp_mem_is_set_as_three_numbers(proc: Path) -> None:
    write(proc, "sys/net/ipv4/udp_mem", "100\t200\t300\n")
    found = limit("net.ipv4.udp_mem")
    assert found.value == 100
    low, middle, high = map(int, found.command.split("'")[1].split())
    assert found.wanted == low < middle < high
    assert found.command.startswith("sysctl -w net.ipv4.udp_mem='")


@pytest.mark.parametrize(
    ("softnet", "backlog", "budget"),
    [
        ("00ffffff 00000000 00000007 0\n" * 2, None, None),
        ("00ffffff 00000001 00000007 0\n" * 2, "sysctl -w net.core.netdev_max_backlog=10000", None),
        ("000000ff 00000000 00000007 0\n" * 2, None, "sysctl -w net.core.netdev_budget=600"),
        ("nonsense\n", None, None),
    ],
)
def test_device_queues_are_too_short_where_the_kernel_says_so(
    softnet: str, backlog: str | None, budget: str | None, proc: Path
) -> None:
    write(proc, "net/softnet_stat", softnet)
    write(proc, "sys/net/core/netdev_max_backlog", "1000")
    write(proc, "sys/net/core/netdev_budget", "300")
    assert limit("net.core.netdev_max_backlog").command == backlog
    assert limit("net.core.netdev_budget").command == budget


def test_without_proc_limits_are_unknown(proc: Path) -> None:
    found = fastsock.probe()
    assert (found.rmem_max, found.rmem_default, found.wmem_max, found.wmem_default) == (None,) * 4
    assert {(one.value, one.command) for one in found.limits} == {(None, None)}
