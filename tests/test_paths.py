"""An untrusted run folder refers only to paths inside itself and runs nothing; the user's own runs are unrestricted."""

import json
import os
import shutil
import warnings

import pytest

from score_sde import run as command_line
from score_sde.configs import choices, default
from score_sde.configs.choices import choose
from score_sde.engine import paths
from score_sde.engine.config import flat, from_json, load, override, read_run, run_json, to_json
from score_sde.engine.features import FEATURES
from score_sde.engine.modes import MODES
from score_sde.engine.resolve import resolve, single

TASK_OF = {"edit.task.mask": "inpaint", "edit.task.other": "translate", "edit.task.latents": "decode"}
"""Key of a path -> the task with this option."""
ON_A_RUN = [name for name, mode in MODES.items() if not mode.base]
TINY = ("--device=cpu", "--config.network.width=8", "--config.train.total_images=64", "--config.train.batch_size=32")
TINY += ("--config.train.sample_every=0", "--config.train.evaluate_every=0")


def value(key, place):
    """A path below a folder, of the kind that the key takes."""
    ending = {"sample.grid": "levels.txt", "edit.task.mask": "mask.png"}.get(key, "file")
    return f"{place}/{ending}"


def stranger(folder, **values):
    """An untrusted run folder: a config.json with these dotted keys, written __ for the dot."""
    config = load("vpsde")
    override(config, [(key.replace("__", "."), text) for key, text in values.items()])
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(to_json(config, versions={}))
    return folder


@pytest.fixture
def measured(digits, tmp_path):
    """A copy of a trained run whose config.json names code, and the file that the code would write."""
    folder, mark = shutil.copytree(digits, tmp_path / "theirs"), tmp_path / "mark"
    code = folder / "evil.py"
    code.write_text(f"open({str(mark)!r}, 'w').close()\ndef f(x):\n    return x[:, :1]\n")
    values = json.loads((folder / "config.json").read_text())
    values["edit"]["task"] = {"name": "measured", "measure": f"{code}:f"}
    (folder / "config.json").write_text(json.dumps(values))
    return folder, mark, f"--config.edit.task.measure={code}:f"


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["--workdir={0}", "--config={0}/config.json --workdir={0}"])
def test_code_of_a_stored_config_is_not_run(measured, capsys, form):
    folder, mark, word = measured
    words = ["run.py", *form.format(folder).split(), "--mode=edit", "--task=measured", "--device=cpu"]
    assert command_line.main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"warning: {folder}/config.json names code, which is not run; to run it, add {word}"
    assert "code that a config.json names is not run" in lines[1]
    assert not mark.exists()


def test_code_named_by_the_command_is_run(measured):
    folder, mark, word = measured
    words = ["--mode=edit", "--task=measured", "--device=cpu", "--steps=2", "--config.edit.num_examples=2", word]
    assert command_line.main(["run.py", f"--workdir={folder}", *words]) == 0
    assert mark.exists()


def test_code_of_an_own_config_json_is_not_run_either(tmp_path):
    config = load("vpsde")
    config.edit.task = choose("edit.task", "measured", measure="/code.py:f")
    (tmp_path / "config.json").write_text(run_json(config, {}))
    assert read_run(tmp_path).own
    with pytest.warns(UserWarning, match="names code"):
        assert resolve(None, str(tmp_path), [], "edit")[0].edit.task.measure == ""


# --- files ------------------------------------------------------------------------------------------------------------


def test_every_key_that_names_a_file_is_listed():
    """Texts of configs/default.py that are empty or hold a slash are paths, except two that are names."""
    values = flat(default.get_config().to_dict())
    for section in choices.TABLES:
        for name in choices.table(section):
            values |= {f"{section}.{key}": value for key, value in choices.defaults(section, name).items()}
    texts = {key: text for key, text in values.items() if isinstance(text, str)}
    found = {key for key, text in texts.items() if text == "" or "/" in text}
    assert found - {"sample.label", "guidance.text"} == {*paths.PATHS, paths.CODE}
    assert set(paths.FEATURES) == set(FEATURES)


def test_a_feature_name_is_not_resolved_to_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "identity").mkdir()
    (tmp_path / "mine").mkdir()
    config = load("vpsde")
    for text, expected in (("identity", "identity"), ("mine", str(tmp_path / "mine"))):
        config.evaluate.features = text
        paths.make_absolute(config)
        assert config.evaluate.features == expected


@pytest.mark.parametrize("mode", ON_A_RUN)
def test_a_strangers_paths_are_refused_or_emptied(tmp_path, mode):
    """They are refused in modes that follow them, and the option named in the error allows them."""
    for task in TASK_OF.values():
        check_outside_paths(tmp_path / task, mode, task)


def check_outside_paths(place, mode, task):
    """Checks all keys of the configs with this task."""
    place.mkdir()
    outside = {key: value(key, place / "outside") for key in paths.PATHS if TASK_OF.get(key, task) == task}
    followed = {key for key in outside if key.partition(".")[0] in MODES[mode].follows}
    texts = {key.replace(".", "__"): text for key, text in outside.items()}
    folder = stranger(place / "theirs", edit__task=task, **texts)
    changes = []
    if followed:
        with pytest.raises(ValueError, match=r"leads outside its folder; to allow that, add --config\.") as caught:
            resolve(None, str(folder), [], mode)
        words = str(caught.value).partition(", add ")[2].split()
        changes = [tuple(word.removeprefix("--config.").split("=")) for word in words]
    assert dict(changes) == {key: outside[key] for key in followed}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config, _ = resolve(None, str(folder), changes, mode)
    assert paths.named(config) == {key: outside[key] for key in followed}
    told = " ".join(str(warning.message) for warning in caught)
    assert all(f"--config.{key}=" in told for key in outside.keys() - followed)


@pytest.mark.parametrize("form", ["workdir", "json"])
def test_inner_paths_are_followed_and_links_count_as_outside(tmp_path, form):
    folder = stranger(tmp_path / "theirs", data__path="data.zip")
    (folder / "data.zip").write_text("")
    name, workdir = (None, str(folder)) if form == "workdir" else (f"{folder}/config.json", str(tmp_path / "new"))
    assert resolve(name, workdir, [], "data")[0].data.path == str(folder / "data.zip")
    (folder / "data.zip").unlink()
    (tmp_path / "secret.zip").write_text("")
    (folder / "data.zip").symlink_to(tmp_path / "secret.zip")
    with pytest.raises(ValueError, match="leads outside its folder"):
        resolve(name, workdir, [], "data")


def test_an_import_takes_no_path_of_an_untrusted_config(tmp_path):
    folder = stranger(tmp_path / "theirs", guidance__autoguidance="/outside")
    with pytest.warns(UserWarning, match=r"guidance\.autoguidance"):
        assert single(f"{folder}/config.json", [], "import").guidance.autoguidance == ""


def test_a_signature_covers_its_paths_alone(tmp_path):
    config = load("vpsde")
    config.guidance.autoguidance = "/runs/weak"
    text = run_json(config, {})
    (tmp_path / "config.json").write_text(text)
    assert resolve(None, str(tmp_path), [], "sample")[0].guidance.autoguidance == "/runs/weak"
    (tmp_path / "config.json").write_text(text.replace("/runs/weak", "/etc/weak"))
    with pytest.raises(ValueError, match="written by no command of yours"):
        resolve(None, str(tmp_path), [], "sample")


def test_without_a_key_no_run_is_trusted(tmp_path, monkeypatch):
    """A key that cannot be written, or another account's key, counts as none."""
    config = load("vpsde")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    (tmp_path / "config.json").write_text(run_json(config, {}))
    assert not read_run(tmp_path).own
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    (tmp_path / "config.json").write_text(run_json(config, {}))
    assert read_run(tmp_path).own
    assert os.stat(paths.key_file()).st_mode & 0o077 == 0
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "other"))
    assert not read_run(tmp_path).own


# --- the user's own runs ----------------------------------------------------------------------------------------------


def test_paths_are_stored_absolute_and_work_in_every_folder(tmp_path, monkeypatch, capsys):
    """A run that starts from another, trained with relative paths, continues from elsewhere by its folder alone."""
    monkeypatch.chdir(tmp_path)
    assert command_line.main(["run.py", "--config=points", "--mode=train", "--workdir=first", *TINY]) == 0
    second = ["--config=points", "--mode=train", "--workdir=second", *TINY, "--config.train.init=first"]
    assert command_line.main(["run.py", *second]) == 0
    kept = from_json((tmp_path / "second" / "config.json").read_text()).train.init
    assert kept == str(tmp_path / "first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    words = ["--workdir=../second", "--mode=train", "--config.train.total_images=96", "--device=cpu"]
    assert command_line.main(["run.py", *words]) == 0
    assert read_run(tmp_path / "second").own
    assert "warning" not in capsys.readouterr().err


def test_home_is_expanded_in_keys_and_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load("mnist")
    override(config, [("data.path", "~/photos.zip")])
    paths.make_absolute(config)
    assert config.data.path == f"{tmp_path}/photos.zip"
    assert command_line.main(["run.py", "--workdir=~/nothing", "--mode=sample"]) == 3
    assert f"no run in {tmp_path}/nothing" in capsys.readouterr().err
