"""The fixture that both benchmark files share: one contestant on one link, under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastsock.cli.contestants import Kind, Side, has_gro

ROUNDS = 100

Race = Callable[[int, Kind, str], None]


@pytest.fixture
def race(benchmark: BenchmarkFixture) -> Iterator[Race]:
    """Time one contestant of a kind, on a link of its own; extra_info says how many datagrams."""
    with ExitStack() as stack:

        def start(size: int, kind: Kind, name: str) -> None:
            side = next(side for side in kind.sides if name in side.table)
            if side.options.get("gro") and not has_gro():
                pytest.skip("no UDP GRO here")
            alone = replace(kind, sides=[Side({name: side.table[name]}, side.options)])
            (contestant,), count = stack.enter_context(alone.open(size))
            warm_count = kind.warm_count
            moved = []

            def setup() -> None:
                contestant.prepare(warm_count + count)
                contestant.run(warm_count)

            def target() -> None:
                moved.append(contestant.run(count))

            def teardown() -> None:
                contestant.settle(warm_count + count)

            benchmark.pedantic(  # type: ignore[no-untyped-call]
                target, setup=setup, teardown=teardown, rounds=ROUNDS, warmup_rounds=2
            )
            assert set(moved) == {count}
            benchmark.extra_info["datagrams"] = count
            if benchmark.stats is not None:  # None under --benchmark-disable
                benchmark.extra_info["ns_per_datagram"] = benchmark.stats.stats.median / count * 1e9

        yield start
