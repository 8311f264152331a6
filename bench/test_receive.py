"""What draining one queue costs: CPU seconds per drain of 512 datagrams (see extra_info)."""

import time
from collections.abc import Callable

import native
import pytest

from fastsock.cli.contestants import RECEIVERS, Link, Run, receivers

TABLE = {**RECEIVERS, **native.RECEIVERS}


@pytest.mark.parametrize("size", [64, 1400])
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.benchmark(timer=time.thread_time, disable_gc=True, group="receive")
def test_receive(race: Callable[..., None], size: int, name: str) -> None:
    table: dict[str, Callable[[Link], Run]] = {name: TABLE[name]}
    race(size, lambda link: receivers(link, table)[0])
