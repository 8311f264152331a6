"""`__all__`, the stubs, the docstrings and docs/reference.md name the same things."""

import ast
import importlib
import inspect
import re
from importlib import metadata
from pathlib import Path

import pytest

import fastsock
import fastsock.aio

ROOT = Path(__file__).parent.parent
PACKAGE = Path(fastsock.__file__).parent
PLAIN = ("Capability", "Limit", "Probe", "SocketStats")
"""Dataclasses, whose fields their own text describes."""
STUBS = sorted(path.stem for path in PACKAGE.glob("_*.pyi"))


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_all_is_sorted_and_there():
    assert fastsock.__all__ == sorted(fastsock.__all__)
    exported = {
        name for name, value in vars(fastsock).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert exported == set(fastsock.__all__)


def test_version():
    assert metadata.version("fastsock") == fastsock.__version__


def test_every_compiled_module_has_a_stub():
    compiled = {path.name.split(".")[0] for path in PACKAGE.glob("_*.so")}
    assert compiled
    assert compiled == set(STUBS)
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("name", STUBS)
def test_stubs_name_what_is_there(name):
    module = importlib.import_module(f"fastsock.{name}")
    tree = ast.parse((PACKAGE / f"{name}.pyi").read_text())
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        there = getattr(module, node.name)
        if isinstance(node, ast.FunctionDef):
            assert callable(there)
            continue
        stubbed = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
        # A special method may be a slot, and then vars() does not list it.
        stubbed |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
        assert public(stubbed) == public(vars(there)) or issubclass(there, tuple), node.name
        for item in stubbed - {"__buffer__"}:
            assert hasattr(there, item), f"{node.name}.{item}"


@pytest.mark.parametrize("name", fastsock.__all__)
def test_docstrings(name):
    thing = getattr(fastsock, name)
    assert thing.__doc__
    if inspect.isclass(thing):
        for attribute in public(dir(thing)):
            if attribute in ("vlen", "slot_size", "stride", "proto", "truncated") or name in PLAIN:
                continue
            assert getattr(thing, attribute).__doc__, f"{name}.{attribute}"


def test_docstrings_of_the_async_socket():
    for attribute in public(dir(fastsock.aio.AsyncSocket)):
        assert getattr(fastsock.aio.AsyncSocket, attribute).__doc__, attribute


@pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the documents are not beside the tests")
def test_the_reference_names_everything():
    words = set(re.findall(r"\w+", (ROOT / "docs" / "reference.md").read_text()))
    for name in fastsock.__all__:
        assert name in words
        thing = getattr(fastsock, name)
        if inspect.isclass(thing) and name != "Probe":
            assert public(dir(thing)) - public(dir(tuple)) <= words, name
        elif inspect.isfunction(thing):
            assert set(inspect.signature(thing).parameters) <= words, name
    assert public(dir(fastsock.aio.AsyncSocket)) <= words
