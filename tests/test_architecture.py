"""Design rules of the source, checked with ``ast``."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ["configs", "data", "engine", "models", "samplers", "sde_lib", "selftest", "storage"]
PACKAGES = ["benchmarks", "score_sde", *PARTS]
FILES = sorted([ROOT / "run.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))])
SOURCES = {str(file.relative_to(ROOT)): file.read_text() for file in FILES}
TREES = {path: ast.parse(source) for path, source in SOURCES.items()}
OURS = {*PARTS, "run"}

# Packages that each package may import besides itself.
ALLOWED = {
    "storage": set(),
    "sde_lib": set(),
    "models": {"storage"},
    "data": {"storage"},
    "configs": set(),
    "samplers": {"sde_lib", "storage"},
    "engine": {"sde_lib", "samplers", "models", "data", "configs", "storage"},
    "selftest": {"engine", "sde_lib", "samplers", "models", "data", "configs", "storage"},
}


def package_of(path):
    return path.split("/")[0].removesuffix(".py")


def modules(source):
    """Full names of the modules that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"score_sde.{a.name}" for a in node.names) if node.module == "score_sde" else [node.module]


def imports(source):
    """Names of the top-level packages that a file imports, and of this project's parts."""
    for module in modules(source):
        first, _, rest = module.partition(".")
        yield rest.split(".")[0] if first == "score_sde" else first


TESTS = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "tests").rglob("*.py")}


def test_own_packages_are_imported_by_their_full_name():
    theirs = {("benchmarks/networks.py", "models")}  # this script also measures the original score_sde network
    first = {(path, name.split(".")[0]) for path, source in (SOURCES | TESTS).items() for name in modules(source)}
    assert {(path, name) for path, name in first if name in OURS} == theirs


def test_no_test_module_imports_another():
    """Shared helpers are in modules named after their content."""
    found = {(path, name) for path, source in TESTS.items() for name in modules(source)}
    assert {(path, name) for path, name in found if name.removeprefix("tests.").startswith("test_")} == set()


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_not_imported_by_its_short_name(name):
    """A second copy of the module would have tables of its own."""
    with pytest.raises(ImportError, match=f"import score_sde.{name}"):
        importlib.import_module(name)


IMPORTS = {path: set(imports(source)) for path, source in SOURCES.items()}


def test_imports_run_one_way():
    others = {
        path: found & OURS - ALLOWED[package_of(path)] - {package_of(path)}
        for path, found in IMPORTS.items()
        if package_of(path) in ALLOWED
    }
    assert {path: found for path, found in others.items() if found} == {}


READING_CONFIGS = {"engine", "selftest", "configs", "run", "benchmarks"}


def test_configs_are_read_in_few_packages():
    knowing = {path for path, found in IMPORTS.items() if {"ml_collections", "absl"} & found}
    assert {path for path in knowing if package_of(path) not in READING_CONFIGS} == set()


def test_public_names_have_a_docstring():
    public = [
        (path, node)
        for path, tree in TREES.items()
        if package_of(path) in {"sde_lib", "samplers", "selftest", "storage"}
        for node in [tree, *tree.body]
        if isinstance(node, ast.Module)
        or (isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"))
    ]
    assert [(path, getattr(node, "name", "")) for path, node in public if not ast.get_docstring(node)] == []


def declares(node, name):
    """Whether a class documents a method of this name."""
    return any(isinstance(m, ast.FunctionDef) and m.name == name and ast.get_docstring(m) for m in node.body)


@pytest.mark.parametrize("package", ["sde_lib", "samplers"])
def test_public_methods_have_a_docstring_where_they_are_introduced(package):
    trees = [tree for path, tree in TREES.items() if package_of(path) == package]
    classes = {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}

    def ancestors(node):
        for base in (base.value if isinstance(base, ast.Subscript) else base for base in node.bases):
            if isinstance(base, ast.Name) and base.id in classes:
                yield classes[base.id]
                yield from ancestors(classes[base.id])

    for node in classes.values():
        line = [node, *ancestors(node)]
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and method.name != "forward":
                assert any(declares(kind, method.name) for kind in line), f"{node.name}.{method.name}"


def traps(tree):
    """Lines that catch any exception, unpickle, or depend on the rank of images."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"bare except in line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "weights_only" and ast.unparse(node.value) != "True":
            yield f"unsafe load in line {node.value.lineno}"
        if isinstance(node, ast.Subscript) and ast.unparse(node.slice).count("None, None, None"):
            yield f"bound to the rank of images in line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node).endswith((".view(-1, 1, 1, 1)", ".reshape(-1, 1, 1, 1)")):
            yield f"bound to images in line {node.lineno}"


def test_no_trap_in_the_source():
    assert {path: found for path, tree in TREES.items() if (found := list(traps(tree)))} == {}


@pytest.mark.parametrize(
    "source",
    ["try: pass\nexcept: pass", "torch.load(f, weights_only=False)", "x[:, None, None, None]", "x.view(-1, 1, 1, 1)"],
)
def test_traps_are_found(source):
    assert list(traps(ast.parse(source)))


def private_names_of_torch(tree):
    """Names with a leading underscore that a file takes from PyTorch, and the lines of their use."""
    torchs = {"torch": "torch"}
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            full = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            if full.split(".")[0] == "torch":
                torchs[alias.asname or alias.name.split(".")[0]] = full
                if any(part.startswith("_") for part in full.split(".")):
                    yield f"{full} in line {node.lineno}"
    for node in ast.walk(tree):
        first, *others = ast.unparse(node).split(".") if isinstance(node, ast.Attribute) else [""]
        if first in torchs and any(part.startswith("_") and not part.startswith("__") for part in others):
            yield f"{ast.unparse(node)} in line {node.lineno}"


def test_private_names_of_torch_are_used_in_one_module():
    shipped = {path: tree for path, tree in TREES.items() if package_of(path) != "benchmarks"}
    found = {path for path, tree in shipped.items() if list(private_names_of_torch(tree))}
    assert found == {"engine/torch_private.py"}


@pytest.mark.parametrize(
    "source",
    ["torch._foreach_mul_(x, 2)", "from torch.utils._pytree import tree_map", "import torch._dynamo",
     "from torch import distributed as dist\ndist._shard()", "from torch import nn\nnn.utils._pair(1)"],
)  # fmt: skip
def test_private_names_of_torch_are_found(source):
    assert list(private_names_of_torch(ast.parse(source)))


def test_files_are_named_after_what_a_reader_looks_for():
    names = {Path(path).stem for path in SOURCES} | {file.stem for file in (ROOT / "tests").glob("*.py")}
    assert not names & {"util", "utils", "helper", "helpers", "common", "misc"}
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()} <= set(PACKAGES) | {"tests"}


# --- files are opened in one package ----------------------------------------------------------------------------------

OPENING = {"open", "io.open", "os.open", "os.fdopen", "FileLock", "SummaryWriter", "runpy.run_path"}
OPENING |= {
    f"os.{name}" for name in ("replace", "rename", "remove", "unlink", "rmdir", "mkdir", "makedirs", "truncate")
}
OPENING |= {f"{module}.{name}" for module in ("np", "numpy", "torch") for name in ("load", "save", "savez", "memmap")}
OPENING |= {"np.savez_compressed", "np.loadtxt", "np.genfromtxt", "np.fromfile", "zipfile.ZipFile", "tarfile.open"}
OPENING |= {"Image.open", "gzip.open", "safe_open", "load_file", "save_file", "safetensors.torch.load_file", "imread"}
METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "mkdir", "rmdir", "unlink", "touch", "symlink_to"}
METHODS |= {"hardlink_to", "rename", "from_pretrained", "savefig", "save_pretrained", "tofile", "extractall"}
"""Calls that open, create or delete a file; the methods of any object."""

OPEN_ALREADY = {
    ("data/archives.py", "zipfile.ZipFile"),
    ("data/decoding.py", "Image.open"),
    ("data/digits.py", "gzip.open"),
    ("data/digits.py", "np.loadtxt"),
    ("data/arrays.py", "np.load"),
    ("engine/checkpoint.py", "torch.load"),
    ("engine/checkpoint.py", "torch.save"),
    ("engine/features.py", "torch.load"),
    ("engine/files.py", "np.savez_compressed"),
    ("models/checkpoints/safe.py", "torch.load"),
    ("models/checkpoints/safe.py", "zipfile.ZipFile"),
    *((f"engine/{name}.py", "savefig") for name in ("bound", "pictures", "plane", "modes/profiles", "sweep")),
}
"""These receive a file opened by storage/, or bytes read by it."""

OPENED_BY_OTHERS = {
    ("engine/config.py", "runpy.run_path"): "a config in Python is code that the user names",
    ("engine/inverse_problems.py", "runpy.run_path"): "so is a measurement",
    ("engine/log.py", "SummaryWriter"): "names its files itself, in a folder that storage/ made",
    ("engine/terminal.py", "os.open"): "/dev/null, for an output that is closed",
    ("engine/terminal.py", "os.fdopen"): "the same",
    **{
        ("engine/paths.py", name): "the user's key, outside every run and readable by its owner alone"
        for name in ("mkdir", "os.fdopen", "os.replace")
    },
    ("engine/lock.py", "rmdir"): "the folder of a run that nothing came of, if it is empty",
    ("models/clip.py", "from_pretrained"): "transformers opens the folder, after the gate has seen its files",
}


def openings(source):
    """Calls in a file to functions of ``OPENING`` and ``METHODS``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in OPENING:
                yield name
            elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
                yield node.func.attr
            elif isinstance(node.func, ast.Attribute) and name.startswith("shutil."):
                yield name


def test_files_are_opened_in_one_package():
    found = {
        (path, name)
        for path in SOURCES
        if package_of(path) not in {"storage", "benchmarks"}
        for name in openings(SOURCES[path])
    }
    assert found - OPEN_ALREADY - OPENED_BY_OTHERS.keys() == set()
    assert (OPEN_ALREADY | OPENED_BY_OTHERS.keys()) - found == set(), "out of date"
