"""How many instructions does a datagram take in user space? May import instructions and the shapes."""

from __future__ import annotations

from fastsock.bench import instructions
from fastsock.bench.question import Plan, Question
from fastsock.bench.results import Answer


def run(plan: Plan) -> Answer:
    """Takes what it takes, ten seconds or so under callgrind, whatever the budget."""
    tool, why = instructions.find_tool()
    if not tool:
        return Answer("instructions", instructions.TITLE, "", skipped=why)
    plan.progress(f"under {tool}", 0.0)
    counts = instructions.count(tool)
    plan.progress("counted", 1.0)
    return instructions.answer(tool, counts, {}, {})


QUESTION = Question("instructions", instructions.TITLE, run, by_default=False)
