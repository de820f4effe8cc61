"""Mutation testing: random changes of the source, and the quick tests that notice them.

    CALLS=calls python -m pytest -q -n 2 -m "not slow" -p tests.calls
    python benchmarks/mutate.py --calls calls --number 150 --seed 0 --out mutants.json

The first command records the functions that each test calls (tests/calls.py). The second draws functions of
``sde_lib``, ``samplers``, ``engine`` and ``data``, changes each in one place, and runs tests that call it until one
fails. Mutants are written to a copy of the project in a temporary folder, one at a time.

Results are saved after each mutant, and the same command resumes an interrupted run. ``--again OTHER.json`` repeats the
mutants of an earlier run and tries the test that failed then first. Exit status 1 if a mutant survives.

    python benchmarks/mutate.py --again mutants.json --selftest --out noticed.json

runs the selftest on the mutants of ``sde_lib`` and ``samplers`` in place of the tests.
"""

import argparse
import ast
import collections
import contextlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest

from tests.calls import PARTS, ROOT, functions

SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
SWAPPED |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr}
SWAPPED |= {ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE}
SWAPPED |= {ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
SWAPPED |= {ast.In: ast.NotIn, ast.NotIn: ast.In}
LEFT_OUT = (ast.Expr, ast.AugAssign, ast.Raise, ast.Break, ast.Continue)
"""Statements that may be left out; assignments and returns are changed instead."""


# --- one change of one node -------------------------------------------------------------------------------------------


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yields replacements of a node, each one mistake away."""
    if isinstance(node, LEFT_OUT):
        yield ast.Pass()
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPPED:
        yield changed(node, op=SWAPPED[type(node.op)]())
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        yield changed(node, ops=[SWAPPED[type(node.ops[0])](), *node.ops[1:]])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0)
    if isinstance(node, ast.If | ast.IfExp):
        yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Return) and node.value is not None and not is_none(node.value):
        yield ast.Return(ast.Constant(None))
    if isinstance(node, ast.Call) and not any(isinstance(argument, ast.Starred) for argument in node.args):
        if len(node.args) > 1 and ast.dump(node.args[0]) != ast.dump(node.args[1]):
            yield changed(node, args=[node.args[1], node.args[0], *node.args[2:]])
        if node.keywords and node.keywords[0].arg != "strict":
            yield changed(node, keywords=node.keywords[1:])


def changed(node: ast.AST, **fields: object) -> ast.AST:
    """Returns the node with other values for some of its fields."""
    return type(node)(**{name: getattr(node, name, None) for name in node._fields} | fields)


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def places(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that may change: none in docstrings, annotations, decorators, defaults or messages."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    yield node
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.arguments):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # zip's assertion of equal lengths
        return
    for name, field in ast.iter_fields(node):
        if name not in {"annotation", "returns", "decorator_list"}:
            for below in field if isinstance(field, list) else [field]:
                if isinstance(below, ast.AST):
                    yield from places(below)


# --- mutants ----------------------------------------------------------------------------------------------------------


def mutant_of(path: str, source: str, name: str, function: ast.FunctionDef, generator: random.Random) -> dict | None:
    """Returns a random mutant of a function that compiles, with the function's text before and after."""
    candidates = [(old, new) for statement in function.body for old in places(statement) for new in changes(old)]
    lines = source.encode().splitlines(keepends=True)

    def span(node: ast.AST) -> tuple[int, int]:
        ahead, last = (sum(map(len, lines[: number - 1])) for number in (node.lineno, node.end_lineno))
        return ahead + node.col_offset, last + node.end_col_offset

    data, (first, last) = source.encode(), span(function)
    generator.shuffle(candidates)
    for old, new in candidates:
        text = ast.unparse(ast.fix_missing_locations(new)).replace("\n", "\n" + " " * old.col_offset)
        text = f"({text})" if isinstance(new, ast.expr) else text
        start, end = span(old)
        whole = data[:start] + text.encode() + data[end:]
        if compiles(path, whole):
            after = whole[first : len(whole) - len(data) + last].decode()
            parts = {"old": data[start:end].decode(), "new": text, "before": data[first:last].decode(), "after": after}
            return {"file": path, "function": name, "line": old.lineno, **parts}
    return None


def compiles(path: str, source: bytes) -> bool:
    try:
        compile(source, path, "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def drawn(number: int, seed: int) -> list[dict]:
    """Returns one mutant for each of ``number`` random functions, in random order."""
    generator = random.Random(seed)
    paths = [path.relative_to(ROOT) for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
    sources = {str(path): (ROOT / path).read_text() for path in paths}
    found = [(path, source, *each) for path, source in sources.items() for each in functions(ast.parse(source))]
    generator.shuffle(found)
    mutants = (mutant_of(*each, generator) for each in found)
    return list(itertools.islice(filter(None, mutants), number))


# --- tests ------------------------------------------------------------------------------------------------------------


def chosen(tests: dict, function: str, seconds: float, first: str | None) -> list[tuple[list[str], float]]:
    """Returns tests that call a function, in up to three turns, each with its time; ``seconds`` limits their total.

    The first turn is the test ``first``, if it exists. The second turn has the three test modules with the largest
    fraction of tests that call the function, the third turn ten more. Within a module the cheapest case of each test
    comes first, then the second cheapest. For a function that no test calls in its own process, the tests are the
    modules that mention the name of its file.
    """
    modules = collections.Counter(module_of(name) for name in tests)
    calling = {name: cost for name, (cost, called) in tests.items() if function in called}
    if not calling:
        stem = Path(function.split(":")[0]).stem
        naming = {module for module in modules if re.search(rf"\b{stem}\b", (ROOT / module).read_text())}
        calling = {name: cost for name, (cost, _) in tests.items() if module_of(name) in naming}
    shares = collections.Counter(module_of(name) for name in calling)
    ranked = sorted(shares, key=lambda module: (-shares[module] / modules[module], module))
    seen, turns = collections.Counter(), []
    for name, cost in sorted(calling.items(), key=lambda item: item[1]):
        if module_of(name) in ranked[:13]:
            turns.append((ranked.index(module_of(name)) >= 3, seen[name.split("[")[0]], cost, name))
            seen[name.split("[")[0]] += 1
    found, total = [([first], tests[first][0])] if first in tests else [], 0.0
    for late in (False, True):
        taken, limit = [], seconds if late else 0.5 * seconds
        for _, _, cost, name in sorted(turn for turn in turns if turn[0] == late):
            if total + cost <= limit:
                taken.append(name)
                total += cost
        if taken:
            found.append((taken, sum(tests[name][0] for name in taken)))
    return found


def module_of(test: str) -> str:
    return test.split("::")[0]


class Failure:
    """Holds the first test that fails, or the error of the session."""

    def __init__(self) -> None:
        self.test = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.test is None:
            self.test = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.test is None:
            self.test = report.nodeid


def outcome(folder: Path, tests: list[str], seconds: float) -> tuple[str, str | None]:
    """Returns "killed" or "survived", and the test that failed first.

    The tests run in a fork of this process, which has already imported PyTorch. A mutant is killed when its CPU time
    exceeds ten times its tests' time plus a minute.
    """
    answer = folder / "failure"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (int(10 * seconds + 60),) * 2)
        os.chdir(folder)
        sys.path[:] = [
            str(folder),
            *(entry for entry in sys.path if not entry or not Path(entry).resolve().is_relative_to(ROOT)),
        ]
        for name in [name for name in sys.modules if name.split(".")[0] in {"tests", "score_sde"}]:
            del sys.modules[name]
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(quiet, stream)
        failure = Failure()
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:faulthandler"]
        status = pytest.main([*options, *tests], plugins=[failure])
        answer.write_text(failure.test or "")
        os._exit(status)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(status)
    if status == 0:
        return "survived", None
    if status < 0:
        return "killed", "stopped at its limit of time" if -status in {signal.SIGXCPU, signal.SIGKILL} else "crash"
    return ("killed" if status in {1, 2} else f"error {status}"), answer.read_text() or None


def copied(folder: Path) -> Path:
    """Returns a copy of the project, without its runs."""
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", ".hypothesis", ".pytest_cache", ".ruff_cache")
    return shutil.copytree(ROOT, folder / "tree", ignore=left_out)


def main() -> int:
    """Print a line for each mutant; return 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=Path, help="folder written by tests/calls.py")
    parser.add_argument("--selftest", action="store_true", help="run the selftest in place of the tests")
    parser.add_argument("--out", type=Path, required=True, help="results in JSON; existing ones are kept")
    parser.add_argument("--number", type=int, default=150, help="mutants, one per function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="time of the tests of one mutant")
    parser.add_argument("--again", type=Path, help="results of an earlier run, whose mutants to repeat")
    options = parser.parse_args()
    tests = {}
    for path in sorted(options.calls.glob("*.json")) if options.calls else ():
        tests |= json.loads(path.read_text())
    if not tests and not options.selftest:
        parser.error(f"no records in {options.calls}; run pytest with -p tests.calls first")
    earlier = json.loads(options.again.read_text()) if options.again else drawn(options.number, options.seed)
    results = json.loads(options.out.read_text()) if options.out.exists() else []
    if options.selftest:
        earlier = [mutant for mutant in earlier if mutant["file"].startswith(("sde_lib/", "samplers/"))]
    done = {(result["file"], result["after"]) for result in results}
    import_once()
    with tempfile.TemporaryDirectory() as name:
        tree = copied(Path(name))
        for mutant in earlier:
            if (mutant["file"], mutant["after"]) in done:
                continue
            turns = [] if options.selftest else turns_of(mutant, tests, options.seconds)
            results.append({**mutant, **tried(tree, mutant, turns)})
            options.out.write_text(json.dumps(results, indent=1))
            print(line(results[-1]), flush=True)
        killers = sorted({result["by"] for result in results if result["by"] in tests})
        if killers and outcome(tree, killers, 60.0 * len(killers))[0] != "survived":
            print("a test that killed a mutant also fails without one")
            return 1
    killed = sum(result["outcome"] == "killed" for result in results)
    print(f"{killed} of {len(results)} mutants killed")
    for part in PARTS:
        of = [result["outcome"] for result in results if result["file"].startswith(f"{part}/")]
        print(f"  {part:9} {of.count('killed')} of {len(of)}")
    return int(killed < len(results))


def turns_of(mutant: dict, tests: dict, seconds: float) -> list[tuple[list[str], float]]:
    """Returns the tests to try on a mutant, and their costs."""
    return chosen(tests, f"{mutant['file']}:{mutant['function']}", seconds, mutant.get("by"))


def tried(tree: Path, mutant: dict, turns: list[tuple[list[str], float]]) -> dict:
    """Returns the outcome of a mutant, the test that killed it, and the number of tests; or that of the selftest."""
    path = tree / mutant["file"]
    source = path.read_text() if path.exists() else ""
    if source.count(mutant["before"]) != 1:
        return {"outcome": "out of date", "by": None, "tests": 0}
    times, result, by = path.stat(), "survived", None
    path.write_text(source.replace(mutant["before"], mutant["after"]))
    os.utime(path, (times.st_atime, times.st_mtime + 10))  # else Python may use the bytecode of the original
    try:
        if not turns:
            result, by = noticed(tree)
        for taken, cost in turns:
            result, by = outcome(tree, taken, cost)
            if result != "survived":
                break
    finally:
        path.write_text(source)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if result.startswith("error") and outcome(tree, taken[:1], cost)[0] == "survived":
        result, by = "killed", "the imports of all tests"
    return {"outcome": result, "by": by, "tests": sum(len(taken) for taken, _ in turns)}


def noticed(tree: Path) -> tuple[str, str | None]:
    """Returns "killed" if the selftest fails, does not start, or takes two minutes; else "survived"."""
    words = [sys.executable, "run.py", "--mode=selftest", f"--workdir={tree.parent / 'selftest'}"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        if not subprocess.run(words, cwd=tree, capture_output=True, timeout=120, check=False).returncode:
            return "survived", None
    return "killed", "selftest"


def line(result: dict) -> str:
    """Returns a mutant and its outcome as a line."""
    change = f"{result['old']}  ->  {result['new']}".replace("\n", " ")
    change = change if len(change) < 110 else change[:107] + "..."
    by = f"  [{result['by']}]" if result["by"] else f"  [{result['tests']} tests]"
    return f"{result['outcome']:9} {result['file']}:{result['line']} {result['function']}: {change}{by}"


def import_once() -> None:
    """Import third-party packages of the tests before forking."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in ("hypothesis", "matplotlib.pyplot", "ml_collections", "safetensors.torch", "scipy.stats", "sklearn"):
        import_module(name)
    import_module("torch").set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
