"""What tools/cpython_suite.py makes of results: differences, second runs, waivers; and how it records tests."""

import importlib.util
import sys
import unittest
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "cpython_suite.py"
if not TOOL.exists():
    pytest.skip("the tools are not beside the tests", allow_module_level=True)
spec = importlib.util.spec_from_file_location("cpython_suite", TOOL)
suite = sys.modules["cpython_suite"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(suite)

Outcome = suite.Outcome
ID = "test.test_socket.BasicTCPTest.testRecv"


def difference(there, here):
    return suite.Difference("test_socket", ID, suite.Result(Outcome(there)), suite.Result(Outcome(here)))


@pytest.mark.parametrize(
    ("there", "here", "counts"),
    [
        ("passed", "passed", False),
        ("passed", "failed", True),
        ("passed", "skipped", True),
        ("passed", "missing", True),
        ("failed", "failed", False),
        ("failed", "passed", False),
        ("skipped", "error", False),
        ("skipped", "crashed", True),
        ("missing", "hung", True),
        ("hung", "crashed", False),
    ],
)
def test_what_counts(there, here, counts):
    assert difference(there, here).counts is counts


@pytest.mark.parametrize(
    ("first", "again", "repeats"),
    [
        (("passed", "failed"), ("passed", "failed"), True),
        (("passed", "failed"), ("passed", "passed"), False),
        (("passed", "failed"), ("failed", "failed"), False),
        (("passed", "hung"), ("failed", "crashed"), True),
        (("passed", "hung"), ("hung", "hung"), True),
        (("passed", "hung"), ("failed", "failed"), False),
        (("passed", "hung"), ("passed", "passed"), False),
    ],
)
def test_what_repeats(first, again, repeats):
    assert difference(*first).repeats(difference(*again)) is repeats


def test_a_module_without_a_pass_compares_nothing():
    passed, skipped = suite.Result(Outcome.PASSED), suite.Result(Outcome.SKIPPED)
    base = {"test_socket": {ID: passed}, "test_epoll": {ID: skipped}, "test_poll": {}}
    assert suite.idle(base, {"test_socket": {}, "test_epoll": {}, "test_poll": {}, "test_select": {}}) == [
        "test_epoll",
        "test_poll",
        "test_select",
    ]
    assert suite.idle(base, {"test_socket": {}}) == []


def test_modules_that_were_not_run_do_not_differ():
    passed, failed = suite.Result(Outcome.PASSED), suite.Result(Outcome.FAILED)
    base = {"test_socket": {ID: passed, "gone": passed, "same": failed}, "test_select": {"other": passed}}
    found = suite.differences(base, {"test_socket": {ID: failed, "same": failed}})
    assert [(difference.test, difference.here.outcome) for difference in found] == [
        ("gone", Outcome.MISSING),
        (ID, Outcome.FAILED),
    ]


@pytest.mark.parametrize(
    ("waiver", "means"),
    [(ID, True), ("testRecv", True), ("BasicTCPTest.testRecv", True), ("Recv", False), ("BasicTCPTest", False)],
)
def test_waivers(waiver, means):
    assert suite.is_waived(difference("passed", "failed"), ["other", waiver]) is means
    assert not suite.is_waived(difference("passed", "crashed"), [waiver])
    ran = {outcome: {"test_socket": {ID: suite.Result(outcome)}} for outcome in Outcome}
    for outcome in Outcome:
        needless = means and outcome is Outcome.PASSED
        assert suite.needless(["other", waiver], ran[outcome]) == ([waiver] if needless else [])


class Sample(unittest.TestCase):
    """Run by the test below, not by pytest."""

    __test__ = False

    def test_error(self):
        raise OSError("as meant")

    def test_pass(self):
        pass

    def test_skip(self):
        self.skipTest("as meant")

    @unittest.expectedFailure
    def test_expected(self):
        self.fail()

    def test_subtests(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)  # noqa: PT009


def test_the_record(tmp_path):
    path = tmp_path / "journal"
    path.touch()
    journal = suite.Journal(path)
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(Sample)
    done = {test.id() for test in tests if "error" in test.id()}
    suite.selected(tests, suite.Selection(only="Sample"), done).run(suite.Recorder(journal))
    entries = [(event, test.rpartition(".")[2], result) for event, test, result in journal.read()]
    assert {test: result.outcome for event, test, result in entries if event == "end"} == {
        "test_pass": Outcome.PASSED,
        "test_skip": Outcome.SKIPPED,
        "test_expected": Outcome.EXPECTED_FAILURE,
        "test_subtests": Outcome.FAILED,
    }
    assert [event for event, _, _ in entries] == ["start", "end"] * 4
    assert (
        next(result for _, test, result in entries[1:] if test == "test_skip" and result.message).message == "as meant"
    )
