"""File names on a terminal: their escape sequences, control characters and newlines are escaped."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from score_sde import run as command_line
from score_sde.engine.log import say
from score_sde.storage.naming import printable

ODD = "x\x1b[2J\n\x07y"
SHOWN = r"x\x1b[2J\n\x07y"


def test_printable():
    assert printable(ODD) == SHOWN
    assert printable("a b\tc\u202e\udcff") == r"a b\tc\u202e\udcff"
    assert printable("Größe 图片 'x'") == "Größe 图片 'x'"


def test_say_escapes_control_characters(capsys):
    say("one", ODD)
    assert capsys.readouterr().out == f"one\n{SHOWN}\n"


def clean(text):
    """Whether a text holds only lines and printable characters."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def odd(digits, tmp_path):
    """A trained run in a folder with an odd name."""
    return shutil.copytree(digits, tmp_path / ODD)


@pytest.mark.parametrize(
    "words",
    [
        ("--mode=sample", "--steps=2", "--num_samples=1"),
        ("--mode=likelihood", "--config.likelihood.num_examples=1", "--config.likelihood.evaluations=2"),
        ("--mode=bound", "--config.bound.num_examples=1"),
        ("--mode=edit", "--task=encode", "--config.edit.num_examples=1"),
        ("--mode=data",),
        ("--mode=train", "--config.train.total_images=72"),
        ("--mode=sample", "--checkpoint=9", "--debug"),
    ],
)
def test_modes_print_the_name_of_their_folder_escaped(odd, capsys, words):
    command_line.main(["run.py", f"--workdir={odd}", "--device=cpu", *words])
    out, err = capsys.readouterr()
    assert r"x\x1b[2J" in out + err
    assert clean(out)
    assert clean(err)


def test_an_import_prints_its_source_escaped(tmp_path, capsys):
    source = shutil.copytree("tests/data/diffusers/tiny_ddpm", tmp_path / ODD)
    assert command_line.main(["run.py", "--mode=import", f"--source={source}", f"--workdir={tmp_path / 'new'}"]) == 0
    out = capsys.readouterr().out
    assert SHOWN in out
    assert clean(out)


def test_names_of_omitted_images_are_escaped(tmp_path, capsys):
    for name in ("a.png", "b.png", f"{ODD}.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / name)
    (tmp_path / f"{ODD}.png").write_bytes(b"no image")
    words = ["--mode=data", "--config=mnist", f"--config.data.path={tmp_path}", f"--workdir={tmp_path / 'new'}"]
    command_line.main(["run.py", *words, "--config.data.skip_broken=true"])
    err = capsys.readouterr().err
    assert f"{SHOWN}.png" in err
    assert clean(err)


@pytest.mark.parametrize("sampler", ["../../outside", ODD])
def test_a_sampler_in_an_untrusted_manifest_is_treated_as_a_name(digits, tmp_path, capsys, sampler):
    """The name becomes part of a file name and of a line."""
    buffer = io.BytesIO()
    np.savez(buffer, samples=np.zeros((64, 8, 8, 1), np.uint8))
    (tmp_path / "samples.npz").write_bytes(buffer.getvalue())
    manifest = {"levels": 17, "sampler": sampler, "steps": 1, "nfe": 1, "seed": 0}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    words = ["--mode=evaluate", f"--workdir={digits}", "--config.evaluate.features=identity", "--device=cpu"]
    assert command_line.main(["run.py", *words, f"--config.evaluate.samples={tmp_path / 'samples.npz'}"]) == 3
    assert "manifest.json is missing or not a manifest" in capsys.readouterr().err
