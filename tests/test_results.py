"""Folders of results: a plain name for the newest, other names for earlier ones, and no mixture of two commands."""

import json
import shutil
import threading

import numpy as np
import pytest

from score_sde import run as command_line
from score_sde.engine import pictures, results
from score_sde.engine.files import read_npz, write_json, write_npz
from score_sde.engine.results import result_files, result_folder


@pytest.fixture
def workdir(digits, tmp_path, monkeypatch):
    """A copy of a run that draws small pictures."""
    monkeypatch.setattr(pictures, "IN_GRID", 4)
    return shutil.copytree(digits, tmp_path / "run", ignore=shutil.ignore_patterns("samples", "likelihood", "bound"))


def call(workdir, mode, *words):
    assert command_line.main(["run.py", f"--mode={mode}", f"--workdir={workdir}", "--device=cpu", *words]) == 0


def names(folder):
    return sorted(path.name for path in folder.iterdir())


DRAW = ("--sampler=ddim", "--steps=2", "--num_samples=2")

OTHERS = {
    "seed-0": ("--seed=4",),
    "weights-ema": ("--weights=raw",),
    "checkpoint_step-8": ("--checkpoint=4",),
    "num_samples-2": ("--num_samples=3",),
    "eta-0.0": ("--config.sample.sampler.eta=0.5",),
}


@pytest.mark.parametrize("kept", OTHERS)
def test_samples_of_other_settings_are_kept_under_a_distinct_name(kept, workdir, capsys):
    folder = workdir / "samples"
    call(workdir, "sample", *DRAW)
    before = (folder / "ddim-2" / "samples.npz").read_bytes()
    capsys.readouterr()
    call(workdir, "sample", *DRAW, *OTHERS[kept])
    assert names(folder) == ["ddim-2", f"ddim-2-{kept}"]
    assert (folder / f"ddim-2-{kept}" / "samples.npz").read_bytes() == before
    told = capsys.readouterr().out
    assert f"kept the earlier ddim-2, of other settings, as ddim-2-{kept}\n" in told


def test_equal_settings_replace_their_result_and_leave_other_files(workdir, capsys):
    """With another batch size, too; a result set aside for equal settings is replaced as well."""
    folder = workdir / "samples"
    call(workdir, "sample", *DRAW)
    (folder / "ddim-2" / "notes.txt").write_text("mine")
    capsys.readouterr()
    call(workdir, "sample", *DRAW, "--batch_size=1")
    assert "kept the earlier" not in capsys.readouterr().out
    assert names(folder / "ddim-2") == ["grid.png", "manifest.json", "notes.txt", "samples.npz"]
    for seed in (4, 0, 4):
        call(workdir, "sample", *DRAW, f"--seed={seed}")
    assert names(folder) == ["ddim-2", "ddim-2-seed-0", "ddim-2-seed-4"]


def test_a_likelihood_of_few_examples_keeps_the_one_of_more(workdir):
    words = ("--config.likelihood.evaluations=4", "--config.likelihood.check_examples=0")
    for num in (3, 1):
        call(workdir, "likelihood", *words, f"--config.likelihood.num_examples={num}")
    folder = workdir / "likelihood"
    apart = "test-uniform-num_examples-3"
    assert names(folder) == [f"{apart}.json", f"{apart}.npz", "test-uniform.json", "test-uniform.npz"]
    for name, num in ((apart, 3), ("test-uniform", 1)):
        assert json.loads((folder / f"{name}.json").read_text())["num_examples"] == num
        assert len(np.load(folder / f"{name}.npz")["nats"]) == num


def test_bounds_of_two_splits_have_separate_pictures(workdir):
    for split in ("test", "train"):
        call(workdir, "bound", f"--split={split}", "--config.bound.num_examples=2")
    pictures = {"rate_distortion.png", "rate_distortion-train.png"}
    assert set(names(workdir / "bound")) == {"test.json", "test.npz", "train.json", "train.npz", *pictures}


@pytest.mark.parametrize("record", ["{}", "[]", "not JSON", '{"asked": 3}'])
def test_a_result_of_an_earlier_version_is_kept(record, tmp_path, capsys):
    folder = tmp_path / "samples" / "adams-14"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(record)
    for seed in (1, 2):
        with result_folder(folder, "manifest.json", {"seed": seed}) as partial:
            write_json(partial / "manifest.json", {"asked": {"seed": seed}})
    assert names(folder.parent) == ["adams-14", "adams-14-earlier", "adams-14-seed-1"]
    assert (folder.parent / "adams-14-earlier" / "manifest.json").read_text() == record
    assert "kept the earlier adams-14, of other settings, as adams-14-earlier" in capsys.readouterr().out


def test_results_with_equal_names_are_numbered(tmp_path):
    """Each result replaces one with another seed, which is in the name; the hidden value is not."""
    for first, hidden in ((0, 1), (1, 1), (0, 2), (1, 2), (0, 3)):
        asked = {"seed": first, "sha256": hidden}
        with result_files(tmp_path, ["a.json"], asked) as partial:
            write_json(partial / "a.json", {"asked": asked})
    assert names(tmp_path) == ["a-seed-0-2.json", "a-seed-0.json", "a-seed-1-2.json", "a-seed-1.json", "a.json"]


def test_names_of_values_stay_in_the_folder(tmp_path):
    asked = [{"sample.label": "../../x\n"}, {"sample.label": ""}, {"sample.label": "y" * 500}, {}]
    for question in asked:
        with result_files(tmp_path, ["a.json"], question) as partial:
            write_json(partial / "a.json", {"asked": question})
    assert names(tmp_path) == ["a-label-.._.._x_.json", "a-label-none.json", f"a-label-{'y' * 42}.json", "a.json"]


def test_a_failing_command_leaves_earlier_results(tmp_path):
    target = tmp_path / "samples" / "adams-14"
    for fails in (True, False, True):
        before = [(path, path.read_bytes()) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
        try:
            with result_folder(target, "manifest.json", {"fails": fails}) as partial:
                write_json(partial / "manifest.json", {"asked": {"fails": fails}})
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert [(path, path.read_bytes()) for path in sorted(tmp_path.rglob("*")) if path.is_file()] == before
            assert target.parent.exists() == bool(before)


def test_commands_at_the_same_time_never_mix_their_files(tmp_path):
    """Four commands with different settings, twenty times each: all files of a result are from one of them."""
    begin = threading.Barrier(4)

    def command(seed):
        begin.wait()
        for _ in range(20):
            with result_files(tmp_path, ["a.json", "a.npz"], {"seed": seed}) as partial:
                write_json(partial / "a.json", {"asked": {"seed": seed}})
                write_npz(partial / "a.npz", x=np.full(1000, seed))

    threads = [threading.Thread(target=command, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = list(tmp_path.glob("*.json"))
    assert {json.loads(path.read_text())["asked"]["seed"] for path in records} == {0, 1, 2, 3}
    assert names(tmp_path) == sorted([*(path.name for path in records), *(f"{path.stem}.npz" for path in records)])
    for path in records:
        seed = json.loads(path.read_text())["asked"]["seed"]
        assert (read_npz(path.with_suffix(".npz"), "x")["x"] == seed).all()


def test_settings_without_effect_on_the_result_are_ignored(workdir):
    config = command_line.resolve(None, str(workdir), [("sample.batch_size", "3"), ("device", "cpu")], "sample")[0]
    other = command_line.resolve(None, str(workdir), [], "sample")[0]
    options = command_line.Options()
    assert results.question(config, ("sample",), options) == results.question(other, ("sample",), options)
    assert results.question(other, ("sample",), options, sample__num_samples=7)["sample.num_samples"] == 7
