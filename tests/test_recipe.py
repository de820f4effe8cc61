"""Recipes of runs: keys that may change on resuming or use, refused changes, and the record of changes."""

import json
import shutil

import pytest

from score_sde import run as command_line
from score_sde.engine import checkpoint
from score_sde.engine.config import load, override, read_run, run_json, stored
from score_sde.engine.errors import CheckpointError
from score_sde.engine.recipe import MODEL, RECIPE, differences, digest, flat, nested, undone
from score_sde.engine.resolve import resolve

TRAIN = ["run.py", "--config=points", "--mode=train", "--device=cpu", "--config.network.width=8"]
TRAIN += ["--config.train.batch_size=32", "--config.train.sample_every=0", "--config.train.evaluate_every=0"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two steps on points."""
    workdir = tmp_path_factory.mktemp("made")
    assert command_line.main([*TRAIN, f"--workdir={workdir}", "--config.train.total_images=64"]) == 0
    return workdir


@pytest.fixture
def workdir(made, tmp_path):
    """A copy of the run."""
    return shutil.copytree(made, tmp_path / "run")


def differing(message):
    """Keys that an error lists as different."""
    return {part.split(" is ")[0].split()[-1] for part in message.split("; ") if " there and " in part}


# --- one rule, with and without --config ------------------------------------------------------------------------------

REFUSED = {
    "sample": ("sde.name=vesde", "codec.name=standardize", "denoiser.parameterization=v", "train.label_dropout=0.5"),
    "likelihood": ("sde.beta_max=10", "network.depth=2", "data.name=swiss_roll"),
    "profiles": ("loss.weight=simple",),
    "train": ("seed=1", "optim.learning_rate=1", "train.batch_size=16", "sde.name=vesde"),
}


@pytest.mark.parametrize(("mode", "word"), [(mode, word) for mode, words in REFUSED.items() for word in words])
def test_a_folder_alone_refuses_the_overrides_that_a_config_refuses(workdir, mode, word):
    key, text = word.split("=")
    before = (workdir / "config.json").read_bytes()
    messages = []
    for name in (None, f"{workdir}/config.json"):
        with pytest.raises(ValueError, match=r"the run in .* has another config: .*, or add --allow_changes") as caught:
            resolve(name, str(workdir), [(key, text)], mode)
        messages.append(str(caught.value).partition("; leave ")[0])
    assert messages[0] == messages[1]
    assert key in messages[0]
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        ("train", "train.total_images=9"),
        ("train", "train.log_every=3"),
        ("train", "train.microbatch=4"),
        ("train", "device=cpu"),
        ("sample", "seed=3"),
        ("sample", "optim.learning_rate=1.0"),
        ("likelihood", "data.path=other.zip"),
    ],
)
def test_overrides_that_a_folder_alone_accepts(workdir, mode, word):
    key, text = word.split("=")
    config, _ = resolve(None, str(workdir), [(key, text)], mode)
    assert str(flat(config.to_dict())[key]).endswith(text)


# --- requested changes ------------------------------------------------------------------------------------------------


def test_a_change_is_recorded_and_the_first_command_still_resumes(workdir, capsys):
    """In config.json and in the digest of each checkpoint; the first command continues with the changed values."""
    first = [*TRAIN, f"--workdir={workdir}"]
    longer = "--config.train.total_images={}".format
    before = digest(stored(workdir), RECIPE)
    assert command_line.main([*first, longer(96), "--config.optim.learning_rate=1e-4"]) == 2
    assert "optim.learning_rate is 0.002 there and 0.0001 here" in capsys.readouterr().err
    assert command_line.main([*first, longer(96), "--config.optim.learning_rate=1e-4", "--allow_changes"]) == 0
    run = read_run(workdir)
    assert run.config.optim.learning_rate == 1e-4
    assert run.changes == ({"optim.learning_rate": [0.002, 0.0001]},)
    metas = [checkpoint.read_meta(path) for path in checkpoint.steps(workdir / "checkpoints")]
    assert [meta["recipe_sha256"] for meta in metas] == [before, digest(run.config, RECIPE)]
    assert len({meta["model_sha256"] for meta in metas}) == 1

    capsys.readouterr()
    assert command_line.main([*first, longer(128)]) == 0
    assert "was changed by --allow_changes; it goes on with optim.learning_rate 0.0001" in capsys.readouterr().err
    assert read_run(workdir).config.optim.learning_rate == 1e-4
    assert read_run(workdir).changes == run.changes


def test_a_result_records_the_changes(workdir):
    words = ["run.py", f"--workdir={workdir}", "--mode=sample", "--device=cpu", "--steps=2", "--num_samples=1"]
    assert command_line.main([*words, "--config.sde.beta_max=10", "--allow_changes"]) == 0
    manifest = json.loads((workdir / "samples" / "adams-2" / "manifest.json").read_text())
    assert manifest["changes"] == {"sde.beta_max": [20.0, 10.0]}


def test_a_config_json_that_was_edited_is_noticed(workdir, capsys):
    """By the digests of the checkpoint: the model's in every mode, the recipe's in training."""
    values = json.loads((workdir / "config.json").read_text())
    for section, key, value, modes in (
        ("optim", "beta1", 0.5, ["train"]),
        ("sde", "beta_max", 9.0, ["train", "sample"]),
    ):
        values[section][key] = value
        (workdir / "config.json").write_text(json.dumps(values))
        for mode in modes:
            words = [f"--workdir={workdir}", f"--mode={mode}", "--device=cpu", "--config.train.total_images=96"]
            assert command_line.main(["run.py", *words]) == 3
            assert "config.json is not the config of step_00000002" in capsys.readouterr().err


# --- parts ------------------------------------------------------------------------------------------------------------


def test_recorded_changes_are_undone_newest_first(tmp_path):
    config, now = load("vpsde"), load("vpsde")
    override(now, [("sde.name", "vesde"), ("optim.beta1", "0.5")])
    middle = load("vpsde")
    override(middle, [("optim.beta1", "0.5")])
    changes = [{"optim.beta1": (0.9, 0.5)}, differences(middle, now, MODEL)]
    assert undone(now, changes) == [nested(flat(c.to_dict())) for c in (middle, config)]
    (tmp_path / "config.json").write_text(run_json(now, {}, (), changes))
    assert read_run(tmp_path).former == (middle, config)


@pytest.mark.parametrize(
    "about",
    [
        {"changes": [{"optim.beta1": 3}]},
        {"changes": [{"optim": [1, 2]}]},
        {"changes": [{"seed.x": [1, 2]}]},
        {"changes": [{}] * 101},
        {"changes": "xy"},
        {"command": [1]},
        {"command": 1},
    ],
)
def test_damaged_records(tmp_path, about):
    (tmp_path / "config.json").write_text(json.dumps({**load("vpsde").to_dict(), **about}))
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        read_run(tmp_path)


def test_digests_ignore_added_keys_and_free_keys():
    config, other = load("vpsde"), load("vpsde")
    override(other, [("train.log_every", "7"), ("data.path", "x"), ("sample.steps", "3")])
    assert digest(config, RECIPE) == digest(other, RECIPE)
    override(other, [("train.batch_size", "8")])
    assert digest(config, RECIPE) != digest(other, RECIPE)
    assert digest(config, MODEL) == digest(other, MODEL)
    assert digest(config, MODEL) != digest(load("subvpsde"), MODEL)
