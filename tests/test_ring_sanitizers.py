"""_ring.h and _feeder.h are plain C: two harnesses run them under the thread and the address sanitizer."""

import fcntl
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
HEADERS = TESTS.parent / "src" / "fastsock"
ENTRY = re.compile(r'^    \{"([a-z0-9-]+)", \w+\},$', re.MULTILINE)
SCENARIOS = [
    (program, name)
    for program in ("ring", "feeder")
    for name in ENTRY.findall((TESTS / f"{program}_harness.c").read_text())
]
SANITIZERS = {"thread": "thread", "address": "address,undefined"}
CANNOT = 77
"""What a harness exits with where the kernel lacks something; it prints what."""
ENVIRONMENT = {
    **os.environ,
    "LD_PRELOAD": "",  # tools/sanitize preloads the runtime of one sanitizer
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
    "ASAN_OPTIONS": "detect_leaks=0",  # it takes ptrace, which containers may forbid
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
    pytest.mark.skipif(not (HEADERS / "_ring.h").exists(), reason="the sources are not beside the tests"),
]


def run_checked(command: list[object]) -> None:
    done = subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Compile one harness with one sanitizer, once; the workers of pytest-xdist share it."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent

    def compile_once(program: str, sanitizer: str) -> Path:
        path = directory / f"{program}_{sanitizer}"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                run_checked(
                    ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
                     f"-fsanitize={SANITIZERS[sanitizer]}", "-fno-sanitize-recover=all",
                     "-isystem", sysconfig.get_path("include"), "-I", HEADERS,
                     TESTS / f"{program}_harness.c", "-o", path],
                )  # fmt: skip
        return path

    return compile_once


def run(*command: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )
    # gcc's runtime before 14, where the kernel places memory more randomly than it can take.
    if "unexpected memory mapping" in done.stderr and command[0] != "setarch":
        return run("setarch", "-R", *command)
    return done


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize(("program", "scenario"), SCENARIOS)
def test_scenario(compiled: Callable[[str, str], Path], program: str, scenario: str, sanitizer: str):
    done = run(compiled(program, sanitizer), scenario)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr, done.stderr


@pytest.mark.parametrize("program", ["ring", "feeder"])
def test_there_are_scenarios_and_no_others(compiled: Callable[[str, str], Path], program: str):
    assert sum(name == program for name, _ in SCENARIOS) > 10
    assert run(compiled(program, "address"), "no-such-thing").returncode == 2
