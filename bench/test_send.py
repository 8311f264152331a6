"""What sending on loopback costs: CPU seconds per 512 datagrams (see extra_info)."""

import time
from collections.abc import Callable

import native
import pytest

from fastsock.cli.contestants import SENDERS, Link, Run, senders

TABLE = {**SENDERS, **native.SENDERS}


@pytest.mark.parametrize("size", [64, 1400])
@pytest.mark.parametrize("name", TABLE)
@pytest.mark.benchmark(timer=time.thread_time, disable_gc=True, group="send")
def test_send(race: Callable[..., None], size: int, name: str) -> None:
    table: dict[str, Callable[[Link], Run]] = {name: TABLE[name]}
    race(size, lambda link: senders(link, table)[0])
