"""What a question is, and how much of the machine's time it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fastsock.bench.results import Answer


def nothing(_what: str, _share: float) -> None:
    """Tell nobody of progress."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a question is to be measured."""

    budget_s: float
    """Seconds that it may take, about."""
    seed: int
    """Of the order in which contestants take turns."""
    sizes: tuple[int, ...] = (64, 1400)
    """Payload sizes in bytes, where the question has any."""
    rounds: int | None = None
    """Exactly so many, whatever they take; None for the budget."""
    progress: Callable[[str, float], None] = field(default=nothing)
    """Called with what is measured and the share of the question that is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to find out. Each module of ``fastsock.bench.questions`` has one as QUESTION."""

    name: str
    """What people type: "receive"."""
    title: str
    """What they want to know: a question, ending in a question mark."""
    run: Callable[[Plan], Answer]
    weight: float = 1.0
    """Its share of a run of several questions."""
    by_default: bool = True
    """Part of a run without names; the others are of `--full` or named."""
