"""Damaged and hostile inputs, a few of each kind; detection by the fuzzer; no unsafe call in the source."""

import ast
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import fuzz
from benchmarks.fuzz_inputs import LINKS, WHOLE, changed_files, signed
from score_sde import run as command_line
from score_sde.configs import default
from score_sde.engine import checkpoint
from score_sde.engine.config import load, override, stored
from score_sde.engine.errors import CheckpointError
from score_sde.models.checkpoints import FORMATS, ForeignError, safe

ROOT = Path(__file__).parent.parent
INPUTS = {name: 3 if name in fuzz.FOREIGN else 40 for name in fuzz.TARGETS}


@pytest.fixture(scope="module")
def watch():
    return fuzz.Watch()


@pytest.mark.parametrize("name", fuzz.TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_inputs_are_read_or_refused(name, watch, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "MODES", dict(command_line.MODES))
    target = fuzz.make_target(name)
    for files in target.seeds:
        fuzz.trial(target.read, files, tmp_path / "seed", watch)
    assert fuzz.trial(target.read, target.seeds[0], tmp_path / "seed", watch).kind == "accepted"
    verdicts = {
        number: fuzz.trial(target.read, files, tmp_path / "input", watch)
        for number, files in fuzz.inputs(target, name, seed=1, start=0, count=INPUTS[name])
    }
    assert {number: verdict.why for number, verdict in verdicts.items() if verdict.kind == "unexpected"} == {}
    assert any(verdict.kind == "refused" for verdict in verdicts.values())


def raises(error):
    def read(folder):
        raise error

    return read


def waits(folder):
    while True:
        pass


READERS = {
    "another error": (raises(KeyError("x")), "KeyError"),
    "an exit": (raises(SystemExit(0)), ""),
    "a hang": (waits, "longer than"),
    "a change": (lambda folder: os.utime(folder / "a.json") or (folder / "a.json").write_text("x"), "open"),
    "another file": (lambda folder: (folder / "b").touch(), "open"),
    "a folder": (lambda folder: os.mkdir(folder / "b"), "os.mkdir"),
    "a removal": (lambda folder: (folder / "a.json").unlink(), "os.remove"),
    "a process": (lambda folder: subprocess.run(["true"], check=True), "subprocess.Popen"),
    "a global of a pickle": (lambda folder: pickle.loads(pickle.dumps(ast.AST)), "pickle.find_class"),
}


@pytest.mark.parametrize("case", READERS)
def test_the_fuzzer_detects(case, watch, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    read, why = READERS[case]
    verdict = fuzz.trial(read, {"a.json": b"{}"}, tmp_path / "input", watch)
    assert verdict.kind == "unexpected"
    assert why in verdict.why


@pytest.mark.parametrize("error", [ValueError("x"), OSError(5, "x"), CheckpointError("x")])
def test_a_refusal_is_counted_as_one(error, watch, tmp_path):
    assert fuzz.trial(raises(error), {"a.json": b"{}"}, tmp_path / "input", watch).kind == "refused"


def test_a_process_that_dies_is_counted_and_its_input_kept(tmp_path, monkeypatch):
    """The worker is replaced by a program that writes an input and crashes."""
    crash = "import os, pathlib, sys; (pathlib.Path(sys.argv[2]) / 'input').mkdir(); os.abort()"
    (tmp_path / "crash.py").write_text(crash)
    monkeypatch.setattr(fuzz, "__file__", str(tmp_path / "crash.py"))
    found = fuzz.fuzz("npy", 0, 5, 2, tmp_path / "out")
    assert (found["inputs"], found["unexpected"]) == (2, 2)
    assert "--start 5 --inputs 1" in (tmp_path / "out" / "npy-0-5" / "verdict.txt").read_text()


def test_inputs_follow_from_their_number():
    target = fuzz.make_target("zip")
    first, again = (dict(fuzz.inputs(target, "zip", 0, start, 5 - start)) for start in (0, 3))
    assert first[4] == again[4]
    assert first[4] != first[3]


@pytest.mark.parametrize("ending", sorted(WHOLE))
def test_generated_files_differ(ending):
    seed = {f"a{ending}": b"[1, 2]"}
    assert any(changed_files(random.Random(number), [seed]) != seed for number in range(5))


def test_links_pipes_and_devices_are_among_the_inputs():
    """Instead of files and folders."""
    target = fuzz.make_target("folder")
    found = [what for _, files in fuzz.inputs(target, "folder", 0, 0, 300) for what in files.items()]
    odd = {(name.count("/"), what) for name, what in found if isinstance(what, str)}
    assert {what for _, what in odd} >= {fuzz.PIPE, *LINKS, "../../outside"}
    assert {depth for depth, _ in odd} == {0, 1, 2}


def test_a_change_behind_a_link_is_detected(watch, tmp_path):
    def write(folder):
        watch.on = False
        (folder / "a").write_text("x")

    assert fuzz.trial(write, {"a": "../outside"}, tmp_path / "input", watch).why == "it changed a file"


def test_a_checkpoint_signed_by_a_stranger_is_read(watch, tmp_path):
    """So that the code behind the digests is fuzzed, too."""
    target, meta = fuzz.make_target("checkpoint"), f"{fuzz.STEP}/meta.json"
    files = target.seeds[0] | {meta: target.seeds[0][meta].replace(b'"std": 1.0', b'"std": 2.0')}
    assert fuzz.trial(target.read, files, tmp_path / "a", watch).kind == "refused"
    assert fuzz.trial(target.read, signed(files, meta), tmp_path / "b", watch).kind == "accepted"


# --- inputs found by fuzzing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{[]: 1}", "-" * 9000 + "1", "9" * 400, "1" + "0" * 5000, "(" * 300])
def test_texts_that_python_cannot_parse_are_no_numbers(text):
    with pytest.raises(ValueError, match=r"config key optim.beta1 takes float, such as 0.9, not"):
        override(default.get_config(), [("optim.beta1", text)])


@pytest.mark.parametrize("text", ["('a',)", "[{1}]", "[[1]]", "[True]"])
def test_empty_tuples_are_tuples_of_numbers(text):
    with pytest.raises(ValueError, match=r"network.attention takes tuple"):
        override(load("cifar10"), [("network.attention", text)])


@pytest.mark.parametrize(
    "text", ['{"a":' * 5000, '{"optim": {"learning_rate": 1' + "0" * 400 + "}}", '{"sde": {"name": 3}}']
)
def test_configs_that_python_cannot_hold_are_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json"):
        load(str(tmp_path / "config.json"))
    with pytest.raises(CheckpointError, match=r"config.json is damaged"):
        stored(tmp_path)


def repacked(path, content, method=zipfile.ZIP_STORED):
    """A file of torch.save, compressed by another method."""
    saved = io.BytesIO()
    torch.save(content, saved)
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(path, "w", method) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    return path


def test_a_compressed_archive_of_tensors_is_refused(tmp_path):
    content = {"a": torch.zeros(100_000)}
    assert safe.read(repacked(tmp_path / "a.pt", content))["a"].shape == (100_000,)
    with pytest.raises(ForeignError, match=r"unpacks to 40\d,\d{3}, so it is refused"):
        safe.read(repacked(tmp_path / "b.pt", content, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "tensors larger than its size"),
        (torch.zeros(1, 9, device="meta"), "sparse, quantized or empty"),
        (torch.eye(3).to_sparse(), "sparse, quantized or empty"),
    ],
)
def test_tensors_that_are_larger_than_their_file_are_refused(tmp_path, tensor, message):
    torch.save({"model": [{"a": tensor}]}, tmp_path / "a.pt")
    with pytest.raises(ForeignError, match=message):
        safe.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("unet", "layers_per_block", 10**9, "at most 256 per level"),
        ("unet", "sample_size", 2**20, "examples of shape"),
        ("unet", "block_out_channels", [0, 0], "ZeroDivisionError"),
        ("unet", "down_block_types", [[]], "TypeError"),
        ("scheduler", "num_train_timesteps", 10**9, "with 1000000000 noise levels"),
    ],
)
def test_a_source_with_absurd_values_is_refused_at_once(tmp_path, name, key, value, message):
    """``layers_per_block`` would create a billion blocks; the others exhaust memory or raise another error."""
    shutil.copytree(fuzz.RECORDED / "diffusers" / "tiny_ddpm", tmp_path / "source")
    path = tmp_path / "source" / name / ("config.json" if name == "unet" else "scheduler_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ForeignError, match=message):
        FORMATS["diffusers"](tmp_path / "source")


@pytest.mark.parametrize(
    "change",
    [
        {"ema": []},
        {"ema": {"a": 1}},
        {"ema": ["../x"]},
        {"data": {"shape": [2]}},
        {"data": 3},
        {"step": "1"},
        {"sha256": {"../x": ""}},
    ]
    + [{"data": {"shape": [2**20, 2**20], "levels": 0, "std": 1.0, "diameter": 1.0}}],
)
def test_an_untrusted_meta_with_absurd_values_is_refused(tmp_path, change):
    path = checkpoint.save(tmp_path, 1, {}, {}, {"ema": ["a"]})
    values = json.loads((path / "meta.json").read_text()) | change
    files = {"x/meta.json": json.dumps(values).encode(), "x/state.pt": (path / "state.pt").read_bytes()}
    (path / "meta.json").write_bytes(signed(files, "x/meta.json")["x/meta.json"])
    with pytest.raises(CheckpointError, match=r"meta.json is missing or damaged"):
        checkpoint.read_meta(path)


def test_missing_entries_of_a_meta_are_named(tmp_path):
    meta = checkpoint.read_meta(checkpoint.save(tmp_path, 1, {}, {}, {"data": {"std": 1.0}}))
    with pytest.raises(CheckpointError, match=r"meta.json lacks sigma_data"):
        meta["sigma_data"]
    with pytest.raises(CheckpointError, match=r"meta.json lacks shape"):
        meta["data"]["shape"]


def test_configs_of_endless_networks_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"network": {"name": "mlp", "depth": 2**31}}))
    with pytest.raises(CheckpointError, match=r"network.depth 2147483648: need 1 to 1000"):
        stored(tmp_path)


def test_a_flag_with_an_endless_name_is_refused(capsys):
    assert command_line.main(["run.py", "--mode=sample", f"-{'9' * 3000}"]) == 2
    assert "a flag has a name of hundreds of letters" in capsys.readouterr().err


def test_terminal_control_characters_are_escaped(tmp_path, capsys):
    assert command_line.main(["run.py", "--mode=sample", f"--workdir={tmp_path}/\x1b[31m"]) == 3
    assert "\\x1b[31m" in capsys.readouterr().err


# --- the source -------------------------------------------------------------------------------------------------------

FILES = [ROOT / "run.py"]
PACKAGES = ("configs", "data", "engine", "models", "samplers", "sde_lib", "selftest", "storage")
FILES += [f for p in (*PACKAGES, "benchmarks", "score_sde") for f in (ROOT / p).rglob("*.py")]
UNSAFE = {"eval", "exec", "os.system", "os.popen", "shutil.unpack_archive", "torch.hub.load", "torch.jit.load"}
UNSAFE |= {
    f"{module}.{name}" for module in ("pickle", "marshal", "dill", "joblib") for name in ("load", "loads", "Unpickler")
}
UNSAFE |= {"archive.extract", "zipfile.main", "tarfile.open"}


def unsafe_calls(source):
    """Calls in a file that could run or write their input."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in UNSAFE or name.endswith(".extractall"):
            yield f"line {node.lineno}: {name}"
        if (
            name == "torch.load" and given.get("weights_only", "True") != "True"
        ):  # the default of every torch version supported here
            yield f"line {node.lineno}: torch.load without weights_only=True"
        if given.get("allow_pickle", "False") != "False" or (name in ("np.load", "numpy.load") and len(node.args) > 2):
            yield f"line {node.lineno}: {name} with pickles"


def test_no_call_runs_or_unpickles_its_input():
    found = {str(path.relative_to(ROOT)): list(unsafe_calls(path.read_text())) for path in FILES}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, None, True)",
        "npy.read_array(f, allow_pickle=x)",
        "pickle.load(f)",
        "archive.extractall()",
        "eval(text)",
    ],
)
def test_unsafe_calls_are_found(source):
    assert list(unsafe_calls(source))


def test_a_fuzz_run_ends_with_its_table(tmp_path, capfd):
    assert fuzz.main(["--inputs", "3", "--targets", "config", "--out", str(tmp_path)]) == 0
    header, _, row = capfd.readouterr().out.splitlines()
    assert header.startswith("| target | inputs | accepted | refused | unexpected |")
    assert row.startswith("| config | 3 |")
    assert list(tmp_path.iterdir()) == []
