"""What sending on loopback costs: CPU seconds per 512 datagrams (see extra_info)."""

import time
from collections.abc import Callable

import native
import pytest

CASES = [(kind, name) for kind in ("send", "send-gro") for name in native.ALL_KINDS[kind].names]


@pytest.mark.parametrize("size", [64, 1400])
@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.benchmark(timer=time.thread_time, disable_gc=True, group="send")
def test_send(race: Callable[..., None], kind: str, name: str, size: int) -> None:
    race(size, native.ALL_KINDS[kind], name)
