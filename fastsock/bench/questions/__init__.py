"""One module per question; each has it as QUESTION."""

from __future__ import annotations

import importlib
import pkgutil

from fastsock.bench.question import Question

ORDER = (
    *("receive", "send", "gro", "asyncio", "latency", "epoll", "streams", "batch", "payload", "peers", "sockets"),
    *("flood", "busy", "handover"),
)
"""As people read them; any other comes behind."""


def find_questions() -> dict[str, Question]:
    """Every question by its name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    found = [importlib.import_module(f"{__name__}.{name}").QUESTION for name in names]
    return {question.name: question for question in found}
