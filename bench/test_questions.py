"""The questions that are measured live, once through: streams, many sockets, floods, asyncio, a busy thread."""

import pytest

from fastsock.bench.question import Plan, Question
from fastsock.bench.questions import asyncio, busy, flood, handover, sockets, streams

LIVE = [one.QUESTION for one in (asyncio, busy, flood, handover, sockets, streams)]


@pytest.mark.parametrize("question", LIVE, ids=lambda question: question.name)
def test_question(question: Question) -> None:
    answer = question.run(Plan(budget_s=1, seed=1, rounds=1))
    assert answer.question == question.name
    assert answer.tables
    for table in answer.tables:
        columns = {column.name for column in table.columns}
        assert table.rows
        for row in table.rows:
            assert row.cells.keys() <= columns
