"""Mistakes of users: each gives an exit status and one line with the mistake and its remedy, and changes nothing."""

import errno
import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from score_sde import run as command_line
from score_sde.engine import log
from score_sde.engine.training.trainer import Trainer
from score_sde.storage import writing

TINY = ("--device=cpu", "--config.network.channels=8", "--config.train.batch_size=4", "--config.train.total_images=8")
TINY += ("--config.train.sample_every=0", "--config.train.evaluate_every=0")
IMAGES = ("--config=mnist", *TINY, "--config.network.channel_mult=(1,2)", "--config.network.num_blocks=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps on the digits."""
    workdir = tmp_path_factory.mktemp("trained")
    assert command_line.main(["run.py", "--mode=train", "--config=vpsde", f"--workdir={workdir}", *TINY]) == 0
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of the run."""
    return shutil.copytree(trained, tmp_path / "run")


def contents(folder):
    """Every folder and file below a folder, with the content of the files."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Runs a command that has to fail and leave the test's folder unchanged; returns its line on standard error."""
    monkeypatch.chdir(tmp_path)

    def run(status, *words):
        before = contents(tmp_path)
        capsys.readouterr()
        assert command_line.main(["run.py", *map(str, words)]) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert contents(tmp_path) == before
        return line

    return run


# --- names and numbers ------------------------------------------------------------------------------------------------

TRAINING = {
    "--config=vpsd": "unknown config 'vpsd'; did you mean 'vpsde'",
    "--config=nowhere.py": "no config file nowhere.py; known names: cifar10,",
    "--mode=trian": "unknown mode 'trian'; did you mean 'train'?",
    "--device=cuda:77": "device 'cuda:77' cannot be used: ",
    "--device=gpu": "device 'gpu' cannot be used: ",
    "--device=meta": "device 'meta' cannot be used: ",
    "--seed=18446744073709551616": "seed 18446744073709551616: need 0 to 4611686018427387904",
    "--config.threads=-1": "threads -1: need 0 to 1024",
    "--config.data.name=digit": "unknown dataset 'digit'; did you mean 'digits'?",
    "--config.data.name=pairs": "data.path is empty: give a samples.npz with pairs; write it with --mode sample",
    "--config.codec.name=pixel": "unknown codec 'pixel'; did you mean 'pixels'?",
    "--config.sde.name=vpsdee": "unknown sde 'vpsdee'; did you mean 'vpsde'",
    "--config.sde.sigma_max=20": "sde 'vpsde' has no option 'sigma_max', its options: beta_max, beta_min, t_min",
    "--config.sde.beta_min=-1": "beta_min -1.0",
    "--config.sde.t_min=2": "t_min 2.0",
    "--config.network.name=unett": "unknown network 'unett'; did you mean 'unet'?",
    "--config.network.channel_mult=(1,1,1,1,1)": "shape (1, 8, 8) does not divide by 16, as 5 levels need; the nearest",
    "--config.network.channel_mult=()": "network.channel_mult (): need one or more numbers, each above 0",
    "--config.network.channel_mult=(1,0)": "network.channel_mult (1, 0): need one or more numbers, each above 0",
    "--config.network.dropout=1": "network.dropout 1.0: need 0 to below 1",
    "--config.network.num_classes=3": "network.num_classes 3: the data have 10; 0 ignores them",
    "--config.denoiser.parameterization=epsilon": "unknown parameterization 'epsilon'; known: edm, eps, flow, mean",
    "--config.denoiser.sigma_data=-1": "sigma_data -1.0: need at least 0, the standard deviation of the encoded data",
    "--config.loss.weight=simpel": "unknown weight 'simpel'; did you mean 'simple'?",
    "--config.loss.timestep_sampler=lognorml": "unknown timestep sampler 'lognorml'; did you mean 'lognormal'",
    "--config.loss.timestep_sampler.tail=1": "loss.timestep_sampler.tail 1.0: need 0 to below 1",
    "--config.loss.timestep_sampler.std=0": "loss.timestep_sampler.std 0.0: need above 0 to 100, of a logarithm",
    "--config.loss.timestep_sampler.std=1e999": "loss.timestep_sampler.std inf: need above 0 to 100, of a logarithm",
    "--config.loss.objective=hybrid": "discrete-time process, and VPSDE has no levels: use --config ddpm or iddpm",
    "--config.optim.name=sgd": "unknown optimizer 'sgd'; known: adam, adamw",
    "--config.optim.decay=cosin": "unknown decay 'cosin'; did you mean 'cosine'?",
    "--config.optim.learning_rate=-1": "optim.learning_rate -1.0: need 0 to 1000",
    "--config.optim.beta1=1.5": "optim.beta1 1.5: need 0 to below 1",
    "--config.optim.beta2=-0.1": "optim.beta2 -0.1: need 0 to below 1",
    "--config.optim.weight_decay=-1": "optim.weight_decay -1.0: need 0 to 1e6",
    "--config.optim.warmup_images=-1": "optim.warmup_images -1: need at least 0",
    "--config.ema.rates=(1.5,)": "ema.rates (1.5,): need one or more numbers, each 0 to below 1",
    "--config.train.precision=float16": "unknown precision 'float16'; did you mean 'bfloat16' or 'float32'?",
    "--config.train.batch_size=0": "train.batch_size 0: need at least 1",
    "--config.train.total_images=0": "train.total_images 0: need at least 1",
    "--config.train.batch_size=4.5": "config key train.batch_size takes int, such as 4, not 4.5",
    "--config.train.batch_size=many": "config key train.batch_size takes int, such as 4, not 'many'",
    "--config.train.dequantize=maybe": "config key train.dequantize takes true or false",
    "--config.train.bach_size=3": "unknown config key 'train.bach_size'; did you mean 'train.batch_size'",
    "--config.ema.rate=0.9": "unknown config key 'ema.rate'; did you mean 'ema.rates'",
    "--seed=-1": "--seed=-1",
    "--workdirr=x": "Did you mean: workdir",
}


@pytest.mark.parametrize("word", TRAINING)
def test_invalid_training_keys_are_refused(refused, word):
    line = refused(2, "--mode=train", "--config=vpsde", "--workdir=new", *TINY, word)
    assert line.startswith("error: ")
    assert TRAINING[word] in line


CHAINS = {
    "--config.sde.beta_max=1.2": "beta 1.2 at level 1000: need 0 < beta < 1; use more steps",
    "--config.sde.num_levels=1": "num_levels 1: need at least 2",
    "--config.loss.objective=hybrid": "the objective hybrid learns a variance: set network.learned_variance=True",
    "--config.loss.timestep_sampler.bins=0": "loss.timestep_sampler.bins 0: need at least 1",
}


@pytest.mark.parametrize("word", CHAINS)
def test_invalid_training_keys_of_a_chain_are_refused(refused, word):
    line = refused(
        2, "--mode=train", "--config=ddpm", "--workdir=new", *TINY, "--config.loss.timestep_sampler=loss_aware", word
    )
    assert CHAINS[word] in line


SAMPLING = {
    "--sampler=huen": "unknown sampler 'huen'; did you mean 'heun'?",
    "--config.sample.grid=kerras": "unknown grid 'kerras'; did you mean 'karras'?",
    "--config.sample.sampler.predictor=reverse": "unknown predictor 'reverse'; known: ancestral, ancestral_forward,",
    "--config.sample.sampler.corrector=langevine": "unknown corrector 'langevine'; known: ald, langevin",
    "--config.sample.sampler.snr=0": "sample.sampler.snr 0.0: need a number above 0, usually 0.05 to 0.2",
    "--config.sample.sampler.corrector_steps=-1": "sample.sampler.corrector_steps -1: need 0 to 1e6",
    "--steps=0": "positive",
    "--config.sample.steps=-1": "sample.steps -1: need 0 to 1e6",
    "--num_samples=0": "positive",
    "--num_samples=400000000000000": "num_samples 400000000000000: with 512 bytes each they do not fit into memory",
    "--steps=1000000000000": "sample.steps 1000000000000: need 0 to 1e6",
    "--config.sample.num_samples=0": "sample.num_samples 0: need at least 1",
    "--config.sample.batch_size=-1": "sample.batch_size -1: need at least 0",
    "--config.sample.t_min=1e-9": "times from 1.0 to 1e-09: need 1e-05 <= end",
    "--config.sample.t_min=3": "times from 1.0 to 3.0: need 1e-05 <= end",
    "--weights=best": "<ema|raw>",
    "--device=tpu": "device 'tpu' cannot be used: ",
    "--config=vesde": "sde.name is 'vpsde' there and 'vesde' here",
    "--config=points": "the run in run has another config: data.name is 'digits' there and 'moons' here",
    "--config=vpsde": "network.channels is 8 there and 16 here; leave --config out to take that of the run",
}
WITH = {
    "--config.sample.sampler.eta=2": ("ddim", "sample.sampler.eta 2.0: need 0 to 1, of the ancestral noise"),
    "--config.sample.sampler.v=-1": ("ancestral", "sample.sampler.v -1.0: need 0 to 1, from posterior to forward"),
    "--config.sample.sampler.rtol=0": ("ode", "sample.sampler.rtol 0.0: need above 0 to 1, usually 1e-4"),
    "--config.sample.sampler.solver=rk4": (
        "ode",
        "unknown solver 'rk4'; known: dopri5, torchdiffeq_dopri5, torchdiffeq_",
    ),
}


@pytest.mark.parametrize("word", SAMPLING)
def test_invalid_sampling_options_are_refused(workdir, refused, word):
    line = refused(2, "--mode=sample", f"--workdir={workdir.name}", "--config.sample.sampler=pc", word)
    assert line.startswith("error: ")
    assert SAMPLING[word] in line


@pytest.mark.parametrize("word", WITH)
def test_steps_with_options_out_of_range(workdir, refused, word):
    sampler, message = WITH[word]
    line = refused(2, "--mode=sample", "--workdir=run", f"--sampler={sampler}", "--steps=2", "--num_samples=1", word)
    assert line.startswith(f"error: {message}")


LIKELIHOOD = {
    "--config.likelihood.probes=0": "likelihood.probes 0: need 1 to 1e6",
    "--config.likelihood.samples=0": "likelihood.samples 0: need 1 to 1e6",
    "--config.likelihood.repeats=0": "likelihood.repeats 0: need 1 to 1e6",
    "--config.likelihood.samples=8": "likelihood.samples 8: importance weights turn the noise of the probes",
    "--config.likelihood.evaluations=1": "evaluations 1: need at least 2",
    "--config.likelihood.solver.traces=1": "traces 1: need 0 (all), or 2 to 32",
    "--config.likelihood.solver=rk45": "unknown solver 'rk45'; known: adams_pece, dopri5, torchdiffeq_dopri5, ",
    "--config.likelihood.prior=normal": "unknown prior 'normal'; known: matched, standard",
    "--config.likelihood.dequantization=none": "the data are whole numbers: use 'uniform'",
    "--config.likelihood.t_min=1e-9": "likelihood at t = 1e-09: the network was trained on [1e-05, 1.0]",
    "--split=dev": "<train|test>",
}


@pytest.mark.parametrize("word", LIKELIHOOD)
def test_invalid_likelihood_options_are_refused(workdir, refused, word):
    line = refused(2, "--mode=likelihood", "--workdir=run", word)
    assert line.startswith("error: ")
    assert LIKELIHOOD[word] in line


@pytest.mark.parametrize("key", ["rtol", "atol"])
def test_a_likelihood_tolerance_of_zero_is_refused(workdir, refused, key):
    words = ("--config.likelihood.solver=dopri5", f"--config.likelihood.solver.{key}=0")
    line = refused(2, "--mode=likelihood", "--workdir=run", *words)
    assert f"likelihood.solver.{key} 0.0: need " in line
    assert ", usually 1e-5" in line


EDITING = {
    "--task=": "unknown task ''; known: colorize, deblur, decode",
    "--task=interpolat": "unknown task 'interpolat'; did you mean 'interpolate'?",
    "--config.edit.task.first=360": "edit.task.first 360: need 0 to 359, or -360 to -1 from the last",
    "--config.edit.task.second=-361": "edit.task.second -361: need 0 to 359, or -360 to -1 from the last",
    "--config.edit.task.frames=1": "edit.task.frames 1: need 2 to 1e6",
    "--config.edit.task.depths=(0.5,1.5)": "edit.task.depths (0.5, 1.5): need one or more numbers, each above 0 to",
    "--config.edit.task.depths=(0.0,)": "edit.task.depths (0.0,): need one or more numbers, each above 0 to below 1",
    "--sampler=ancestral --config.sample.sampler.v=2": "sample.sampler.v 2.0: need 0 to 1, from posterior to forward",
    "--sampler=ode --config.sample.sampler.solver=rk4": "unknown solver 'rk4'; known: dopri5, torchdiffeq_dopri5",
    "--split=dev": "<train|test>",
}


@pytest.mark.parametrize("word", EDITING)
def test_invalid_editing_options_are_refused(workdir, refused, word):
    line = refused(2, "--mode=edit", "--workdir=run", "--steps=2", "--task=interpolate", *word.split(" "))
    assert line.startswith("error: ")
    assert EDITING[word] in line


def test_editing_without_a_task(workdir, refused):
    assert "give --task (interpolate" in refused(2, "--mode=edit", "--workdir=run")


@pytest.mark.parametrize("mode", ["train", "sample"])
@pytest.mark.parametrize(
    "word", ["--config.network.channels=16", "--config.sde.beta_max=10", "--config.denoiser.parameterization=v"]
)
def test_another_model_in_the_folder_of_a_run(workdir, refused, mode, word):
    line = refused(2, f"--mode={mode}", "--config=vpsde", "--workdir=run", *TINY, word)
    key, value = word.removeprefix("--config.").split("=")
    assert f"the run in run has another config: {key} is " in line
    assert value in line
    assert "choose another --workdir" in line


def test_another_recipe_in_the_folder_of_a_run(workdir, refused):
    line = refused(2, "--mode=train", "--config=vpsde", "--workdir=run", *TINY, "--config.optim.beta1=0.5")
    assert "optim.beta1 is 0.9 there and 0.5 here" in line


@pytest.mark.parametrize("mode", ["train", "sample", "likelihood", "bound", "edit"])
def test_a_config_that_was_edited_to_another_network(workdir, refused, mode):
    """The network of the checkpoint differs from the edited config."""
    config = json.loads((workdir / "config.json").read_text())
    config["network"]["channels"], config["train"]["total_images"] = 16, 80
    (workdir / "config.json").write_text(json.dumps(config))
    line = refused(3, f"--mode={mode}", "--workdir=run", "--task=interpolate")
    assert "holds another network" in line


# --- missing or damaged files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sample", "likelihood", "bound", "edit"])
def test_using_a_run_before_it_is_trained(refused, mode):
    assert refused(3, f"--mode={mode}", "--config=vpsde", "--workdir=new", "--task=interpolate") == (
        f"error: no checkpoint in new/checkpoints (looked at {os.getcwd()}/new/checkpoints); train the run first with "
        "--mode train"
    )
    where = f"looked at {os.getcwd()}/new/config.json"
    assert f"no run in new: new/config.json is missing ({where}); train one" in refused(
        3, f"--mode={mode}", "--workdir=new"
    )


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"seed": "many"}', '{"sde": 3}', '{"nothing": 1}'])
def test_a_damaged_config_of_a_run(workdir, refused, text):
    """An empty config is restored from the checkpoint: test_reliability.py."""
    (workdir / "config.json").write_text(text)
    line = refused(3, "--mode=sample", "--workdir=run")
    assert line.startswith("error: run/config.json is damaged")
    assert "restore it or choose another --workdir" in line


@pytest.mark.parametrize("mode", ["sample", "likelihood", "bound", "edit", "train"])
def test_a_truncated_checkpoint(workdir, refused, mode):
    for path in (workdir / "checkpoints" / "step_00000002").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])
    line = refused(3, f"--mode={mode}", "--workdir=run", "--config.train.total_images=16", "--task=interpolate")
    assert "is truncated or damaged; restore it from a copy, or train again in another --workdir" in line


def test_a_missing_checkpoint(workdir, refused):
    line = refused(3, "--mode=sample", "--workdir=run", "--checkpoint=7")
    assert line == "error: no checkpoint 7 in run/checkpoints; there are: step_00000002"


def image(size=(8, 8), mode="L"):
    """Content of an image file: light on the left, dark on the right."""
    content = io.BytesIO()
    picture = Image.new(mode, size)
    picture.paste(Image.new(mode, (size[0] // 2, size[1]), "white"))
    picture.save(content, format="PNG")
    return content.getvalue()


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


GOOD = {f"{k:02d}.png": image() for k in range(20)}
DATA = {
    "missing": (None, "own does not exist: check data.path and data.test_path"),
    "empty": ({"note.txt": b"nothing"}, "own contains no"),
    "broken": (
        GOOD | {"07.png": image()[:40]},
        "own/07.png is not a complete PNG, JPEG or WebP image: replace",
    ),
    "text": (GOOD | {"07.png": b"text"}, "own/07.png is not a complete PNG, JPEG or WebP image: replace"),
    "sizes": (GOOD | {"07.png": image((8, 10))}, "own/07.png is 8 x 10 in gray, unlike 00.png, which is 8 x 8 in gray"),
    "channels": (GOOD | {"07.png": image(mode="RGB")}, "own/07.png is 8 x 8 in RGB, unlike 00.png"),
    "one image": ({"00.png": image()}, "too few images to leave any for train"),
}


@pytest.mark.parametrize("mode", ["train", "data"])
@pytest.mark.parametrize("case", DATA)
def test_unusable_data_are_refused(refused, tmp_path, mode, case):
    files, message = DATA[case]
    write(tmp_path / "own", files or {})
    line = refused(3, f"--mode={mode}", "--workdir=new", *IMAGES, "--config.data.path=own")
    assert message in line


def test_other_damaged_sources_of_data(refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "half.zip", "w") as archive:
        for name, content in GOOD.items():
            archive.writestr(name, content)
    (tmp_path / "half.zip").write_bytes((tmp_path / "half.zip").read_bytes()[:500])
    np.save(tmp_path / "shape.npy", np.zeros((4, 5), np.uint8))
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "data.csv").write_text("1,2,3")
    for name in ("half.zip", "shape.npy", "text.npz", "data.csv"):
        assert f"error: {tmp_path / name} " in refused(
            3, "--mode=train", "--workdir=new", *IMAGES, f"--config.data.path={name}"
        )


def test_broken_images_are_left_out_if_configured(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "own", GOOD | {"07.png": b"text"})
    words = ["run.py", "--mode=data", "--workdir=new", *IMAGES, "--config.data.path=own"]
    assert command_line.main(words) == 3
    assert command_line.main([*words, "--config.data.skip_broken=true"]) == 0
    assert "own: 1 of 18 images are broken and left out: 07.png" in capsys.readouterr().err


def test_images_above_the_limit_of_the_config_are_refused(refused, tmp_path):
    write(tmp_path / "own", GOOD)
    words = ("--mode=data", "--workdir=new", *IMAGES, "--config.data.path=own")
    assert "own/00.png has 8 x 8 pixels: scale it down" in refused(3, *words, "--config.data.max_pixels=63")
    assert "data.max_pixels 0: need at least 1" in refused(2, *words, "--config.data.max_pixels=0")


def test_no_path_at_all(refused):
    line = refused(2, "--mode=train", "--workdir=new", *IMAGES, "--config.data.path=")
    assert line == "error: data.path is empty: give a folder, a .zip, an .npy or an .npz of images"


def test_data_that_are_missing_after_training(refused, tmp_path, capsys):
    write(tmp_path / "own", GOOD)
    words = ("--mode=train", "--workdir=run", *IMAGES, "--config.data.path=own")
    assert command_line.main(["run.py", *words]) == 0
    assert (
        "note: network.attention (7,): no level has the resolution 7, so nothing attends there; the levels have 8, 4"
        in (capsys.readouterr().out)
    )
    shutil.rmtree(tmp_path / "own")
    assert "own does not exist" in refused(3, "--mode=likelihood", "--workdir=run")
    assert command_line.main(["run.py", "--mode=sample", "--workdir=run", "--steps=2", "--num_samples=1"]) == 0


# --- the disk and the keyboard ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workdir", ["file", "file/below"])
def test_a_file_in_the_place_of_the_folder(refused, tmp_path, workdir):
    (tmp_path / "file").write_text("mine")
    for mode in ("train", "data"):
        line = refused(3, f"--mode={mode}", "--config=vpsde", f"--workdir={workdir}", *TINY)
        assert line.startswith("error: file")
        assert line.endswith("choose another --workdir")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "choose a folder that you may write to with --workdir"),
        (errno.EROFS, "choose a folder that you may write to with --workdir"),
        (errno.ENOSPC, "free some space and run the same command to go on"),
    ],
)
@pytest.mark.parametrize("mode", ["sample", "likelihood", "edit", "data", "train"])
def test_a_folder_that_cannot_be_written(workdir, refused, monkeypatch, mode, number, remedy):
    opened = os.open

    def open_for_reading(file, flags, *args, **kwargs):
        if str(file).startswith("run") and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_for_reading)
    words = ("--steps=2", "--num_samples=1", "--config.likelihood.num_examples=1", "--config.train.total_images=16")
    loose = ("--config.likelihood.evaluations=4", "--task=interpolate")
    (workdir / "samples" / "adams-2").mkdir(parents=True)
    (workdir / "edit" / "interpolate").mkdir(parents=True)
    for name in ("data", "likelihood"):
        (workdir / name).mkdir()
    line = refused(3, f"--mode={mode}", "--workdir=run", *words, *loose)
    assert line.startswith("error: run/")
    assert line.endswith(f"{os.strerror(number)}; {remedy}")


def full(path, content):
    """Writes to a full disk: the file is created and stays empty."""
    path.touch()
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_up_in_training(workdir, monkeypatch, capsys):
    """The checkpoint survives, and the same command continues once the disk has space."""
    checkpoint = workdir / "checkpoints" / "step_00000002"
    before, create = contents(checkpoint), writing.create

    def create_full(path, content):
        (full if path.name == "state.pt" else create)(path, content)

    words = ["run.py", "--mode=train", f"--workdir={workdir}", "--config.train.total_images=16"]
    with monkeypatch.context() as patch:
        patch.setattr("score_sde.engine.checkpoint.create", create_full)
        assert command_line.main(words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {workdir}: No space left on device; free some space and run the same command to go on"
    assert contents(checkpoint) == before
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["step_00000002"]
    assert command_line.main(words) == 0
    assert (workdir / "checkpoints" / "step_00000004").is_dir()


def test_metrics_that_cannot_be_written_stop_the_run(workdir, monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.Metrics, "write", full)
    words = ["run.py", "--mode=train", f"--workdir={workdir}", "--config.train.total_images=16"]
    assert command_line.main(words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("No space left on device; free some space and run the same command to go on")


def test_an_interrupt_in_training(workdir, monkeypatch, capsys):
    """Status 130, a message that the run can continue, and the same command continues it."""
    step, calls = Trainer._train_step, []

    def interrupted(self):
        calls.append(self.step)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step(self)

    words = ["run.py", "--mode=train", f"--workdir={workdir}", "--config.train.total_images=16"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_step", interrupted)
        assert command_line.main(words) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "interrupted; the last checkpoint is kept, run the same command to go on"
    assert calls == [2, 3]
    assert command_line.main(words) == 0


@pytest.fixture
def interrupted(monkeypatch):
    """Interrupts a command at its first report of progress."""

    def stop(self, amount, note=""):
        raise KeyboardInterrupt

    monkeypatch.setattr(log.Progress, "advance", stop)


@pytest.mark.parametrize("mode", ["sample", "edit"])
def test_an_interrupt_elsewhere_leaves_nothing(workdir, refused, interrupted, mode):
    words = ("--steps=2", "--num_samples=1", "--task=interpolate")
    line = refused(130, f"--mode={mode}", "--workdir=run", *words)
    assert line.startswith("interrupted; ")


def test_an_interrupt_of_the_likelihood_leaves_its_rows(workdir, interrupted, capsys):
    """Nothing else is left, and the same command continues."""
    before = contents(workdir)
    words = ("--config.likelihood.evaluations=4", "--config.likelihood.num_examples=2", "--batch_size=1")
    assert command_line.main(["run.py", "--mode=likelihood", f"--workdir={workdir}", *words]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("interrupted; ")
    left = {path for path in contents(workdir).keys() - before.keys() if path.is_file()}
    assert [path.name[:17] for path in left] == ["test-uniform.rows"]
    assert {path: what for path, what in contents(workdir).items() if path in before} == before


def test_a_likelihood_on_a_disk_that_fills_up_writes_no_result(workdir, monkeypatch, capsys):
    words = ["run.py", "--mode=likelihood", f"--workdir={workdir}", "--config.likelihood.num_examples=1"]
    words += ["--config.likelihood.evaluations=4", "--config.likelihood.check_examples=0"]
    with monkeypatch.context() as patch:
        patch.setattr("score_sde.engine.partial_results.append", full)
        assert command_line.main(words) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {workdir}: No space left on device; free some space and run the same command to go on"
    assert command_line.main(words) == 0
    assert sorted(path.name for path in (workdir / "likelihood").iterdir()) == ["test-uniform.json", "test-uniform.npz"]
