"""_ring.h and _feeder.h, which are plain C: ring_harness.c runs them under the thread and address sanitizers."""

import fcntl
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HARNESS = Path(__file__).parent / "ring_harness.c"
HEADERS = ROOT / "src" / "fastsock"
SCENARIOS = re.findall(r'^    \{"([a-z0-9-]+)", \w+\},$', HARNESS.read_text(), re.MULTILINE)
CANNOT = 77
"""What the harness exits with where the kernel lacks something; it prints what."""
ENVIRONMENT = {
    **os.environ,
    "LD_PRELOAD": "",  # tools/sanitize preloads the runtime of one sanitizer
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:second_deadlock_stack=1",
    "ASAN_OPTIONS": "detect_leaks=0",  # it needs ptrace, which containers forbid
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}

pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
    pytest.mark.skipif(not (HEADERS / "_ring.h").exists(), reason="the sources are not beside the tests"),
]


def compile_harness(sanitizers: str, path: Path) -> None:
    subprocess.run(
        ["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread",
         f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all",
         "-isystem", sysconfig.get_path("include"), "-I", HEADERS, HARNESS, "-o", path],
        check=True, env=ENVIRONMENT, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="session", params=["thread", "address,undefined"])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled harness, which the workers of pytest-xdist share."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    path = directory / f"ring_harness_{request.param.partition(',')[0]}"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compile_harness(request.param, path)
    return path


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(harness: Path, scenario: str):
    done = run(harness, scenario)
    if "unexpected memory mapping" in done.stderr:  # gcc before 14, where addresses vary by more than 28 bits
        done = run("setarch", "-R", harness, scenario)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert not done.stderr, done.stderr


def test_the_harness_knows_its_scenarios(harness: Path):
    assert len(SCENARIOS) > 10
    assert run(harness, "no-such-thing").returncode == 2
