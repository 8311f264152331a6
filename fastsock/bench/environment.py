"""What the figures of a run depend on: the machine, its kernel and settings, and the versions of everything.

Reads /proc and /sys, and asks the compiler for its name; what cannot be read is None. May import native.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import fastsock
from fastsock.bench import native

SYSCTLS = (
    *("net.core.rmem_default", "net.core.rmem_max", "net.core.wmem_default", "net.core.wmem_max"),
    *("net.core.busy_poll", "net.core.busy_read", "net.core.netdev_max_backlog", "net.core.netdev_budget"),
    *("net.core.default_qdisc", "net.ipv4.udp_mem", "net.ipv4.udp_rmem_min", "net.ipv4.udp_wmem_min"),
    *("kernel.sched_rt_runtime_us", "kernel.perf_event_paranoid"),
)
COMPARED = ("uvloop", "aioquic", "trio")
"""Packages whose versions matter, where they are installed."""
CPU_NAMES = ("model name", "Hardware", "cpu model", "Processor")


def read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def describe_machine() -> dict[str, Any]:
    """Everything, for JSON."""
    found = fastsock.probe()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": found.kernel,
        "machine": found.machine,
        "cpu": cpu_model(),
        "cpus": found.cpus,
        "cpus_online": os.cpu_count(),
        "virtualised": virtualised(),
        "governor": governor(),
        "mitigations": mitigations(),
        "load": list(os.getloadavg()),
        "sysctls": {name: read(f"/proc/sys/{name.replace('.', '/')}") for name in SYSCTLS},
        "max_segments": found.max_segments,
        "gro": bool(found.gro),
        "rcvbuf_force": bool(found.rcvbuf_force),
        "libc": found.libc,
        "python": found.python,
        "implementation": platform.python_implementation(),
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "fastsock": fastsock.__version__,
        **{name: version_of(name) for name in COMPARED},
        "compiler": compiler_name(),
        "c_missing": native.missing(),
    }


def cpu_model() -> str | None:
    cpuinfo = read("/proc/cpuinfo") or ""
    for name in CPU_NAMES:
        if match := re.search(rf"^{name}\s*:\s*(.+)$", cpuinfo, re.MULTILINE):
            return match[1]
    # Arm names none: implementer and part say which it is.
    found = dict(re.findall(r"^CPU (implementer|part)\s*:\s*(\S+)$", cpuinfo, re.MULTILINE))
    return " ".join(f"{word} {number}" for word, number in found.items()) or None


def virtualised() -> str | None:
    """By what, or "yes" where only the CPU's flag says so; None for no, as far as can be seen."""
    if kind := read("/sys/hypervisor/type"):
        return kind
    flags = re.search(r"^flags\s*:(.*)$", read("/proc/cpuinfo") or "", re.MULTILINE)
    if flags and "hypervisor" in flags[1].split():
        return read("/sys/class/dmi/id/product_name") or read("/sys/class/dmi/id/sys_vendor") or "yes"
    return None


def governor() -> str | None:
    """Of the CPUs, "powersave" or "performance" and such; None where the kernel does not scale them."""
    found = {read(path) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(name for name in found if name)) or None


def mitigations() -> dict[str, str]:
    """What the kernel does against each known fault of this CPU, and what does not affect it."""
    directory = Path("/sys/devices/system/cpu/vulnerabilities")
    return {path.name: read(path) or "" for path in sorted(directory.glob("*"))} if directory.is_dir() else {}


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def compiler_name() -> str | None:
    """The first line of what it says of itself."""
    try:
        done = subprocess.run([*native.compiler(), "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return next(iter(done.stdout.splitlines()), None) if done.returncode == 0 else None


def one_line(about: dict[str, Any]) -> str:
    """For the head of a table."""
    return (
        f"Linux {about['kernel']} {about['machine']}, {about['cpus']} CPUs, "
        f"{about['implementation']} {about['python']}, fastsock {about['fastsock']}"
    )
