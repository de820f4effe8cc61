"""Pytest plugin that records the functions each test calls and the duration of the test.

    CALLS=folder python -m pytest -q -n 2 -m "not slow" -p tests.calls

Each worker writes ``folder/WORKER.json``: ``{test: [seconds, [function, ...]]}`` for the tests that pass. A function is
written as ``sde_lib/bound.py:Hybrid.at``. The import hook inserts a recording call into each function of this project,
which costs far less than a trace. Calls during the setup of a fixture count for every test that uses the fixture.
"""

import ast
import builtins
import json
import os
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("sde_lib", "samplers", "engine", "data")
CALLED, OF_FIXTURE, OF_TEST = set(), {}, {}

original = SourceFileLoader.get_code


def functions(tree):
    """Yields the functions of a module and the methods of its classes, each with its qualified name."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{name}", function) for name, function in functions(node))
        elif isinstance(node, ast.FunctionDef):
            yield node.name, node


def get_code(loader, name):
    """Returns the code of a module in which each function of this project first passes its name to ``__called__``."""
    path = Path(loader.path)
    if not (path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PARTS):
        return original(loader, name)
    tree = ast.parse(path.read_bytes())
    for qualified, function in functions(tree):
        call = ast.parse(f"__called__({f'{path.relative_to(ROOT)}:{qualified}'!r})").body[0]
        for node in ast.walk(call):
            ast.copy_location(node, function)
        function.body.insert(ast.get_docstring(function) is not None, call)
    return compile(tree, str(path), "exec", dont_inherit=True)


builtins.__called__ = CALLED.add
SourceFileLoader.get_code = get_code


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    before = set(CALLED)
    CALLED.clear()
    try:
        return (yield)
    finally:
        OF_FIXTURE[id(fixturedef)] = set(CALLED)
        CALLED.update(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    CALLED.clear()
    item.seconds, item.passed = 0.0, True
    result = yield
    fixtures = [found for name in item.fixturenames for found in item._fixtureinfo.name2fixturedefs.get(name, ())]
    if item.passed:
        calls = CALLED.union(*(OF_FIXTURE.get(id(fixture), ()) for fixture in fixtures))
        OF_TEST[item.nodeid] = [round(item.seconds, 3), sorted(calls)]
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    item.seconds += report.duration
    item.passed &= report.passed
    return report


def pytest_sessionfinish(session):
    if OF_TEST:
        folder = Path(os.environ["CALLS"])
        folder.mkdir(parents=True, exist_ok=True)
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        (folder / f"{worker}.json").write_text(json.dumps(OF_TEST))
