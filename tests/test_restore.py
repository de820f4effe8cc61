"""Inverse problems from the command line: known parts, measurements, every method with several samplers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import run as command_line
from score_sde import sde_lib
from score_sde.configs.choices import choose
from score_sde.engine.build import build
from score_sde.engine.config import Options, stored
from score_sde.engine.config import load as load_config
from score_sde.engine.datasets import read_dataset
from score_sde.engine.facts import DataFacts
from score_sde.engine.inverse_problems import INVERSE_PROBLEMS, METHODS, Problem, read_mask
from score_sde.engine.load import load
from score_sde.samplers import GRIDS, STEPS, Ancestral, Noise, block_means, replacement, resampled, sample, trajectory

NUM = 4
WORDS = ("--steps=3", f"--config.edit.num_examples={NUM}")
BOX = ("--config.edit.task.mask=2,3,4,2",)
"""The mask of inpaint."""


def inside():
    """Mask of the box, bool (8, 8)."""
    unknown = torch.zeros(8, 8, dtype=torch.bool)
    unknown[2:6, 3:5] = True
    return unknown


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A run on colour pictures made of a few waves."""
    folder = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    phases, grid = generator.uniform(0, 6, (60, 1, 1, 3)), np.arange(8.0)
    waves = np.sin(grid[:, None, None] * 0.7 + grid[None, :, None] * 0.3 + phases)
    np.save(folder / "waves.npy", (127.5 + 120 * waves).astype(np.uint8))
    keys = {"data.name": "images", "data.path": folder / "waves.npy", "network.channels": 8, "optim.warmup_images": 0}
    keys |= {"train.total_images": 160, "train.batch_size": 16, "train.sample_every": 0}
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    line = ["run.py", "--mode=train", "--config=vpsde", "--device=cpu", f"--workdir={folder / 'run'}", *words]
    assert command_line.main(line) == 0
    return folder / "run"


@pytest.fixture
def restored():
    """Restores examples of a run: (pictures (N, C, H, W), manifest)."""

    def run(workdir, task, *words):
        box = BOX if task == "inpaint" else ()
        line = ["run.py", "--mode=edit", f"--task={task}", f"--workdir={workdir}", *WORDS, *box, *map(str, words)]
        assert command_line.main(line) == 0
        folder = workdir / "edit" / task
        found = np.load(folder / "samples.npz")["samples"]
        return torch.from_numpy(found).movedim(-1, 1), json.loads((folder / "manifest.json").read_text())

    return run


def refused(capsys, workdir, status, message, *words):
    """Asserts that a command fails with this message, in one line, and writes nothing."""
    before = sorted(workdir.rglob("*"))
    line = ["run.py", "--mode=edit", f"--workdir={workdir}", *WORDS, *map(str, words)]
    assert command_line.main(line) == status
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert sorted(workdir.rglob("*")) == before


def given(workdir, num=NUM, split="test"):
    """Examples of a run, evenly spaced over a split, as stored."""
    dataset = read_dataset(stored(workdir).data, split)
    return dataset.batch(np.linspace(0, len(dataset) - 1, num).astype(int))["x"]


# --- known parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampler", ["adams", "pc", "ancestral", "ode"])
def test_known_pixels_equal_the_input(method, sampler, digits, restored):
    """And the others are not, for every method with several samplers."""
    steps = ("--steps=1",) if sampler == "ode" else ()
    found, manifest = restored(digits, "inpaint", f"--config.edit.method={method}", f"--sampler={sampler}", *steps)
    x, unknown = given(digits), inside()
    assert (found.shape, found.dtype) == (x.shape, torch.uint8)
    assert torch.equal(found[..., ~unknown], x[..., ~unknown])
    assert (found[..., unknown] != x[..., unknown]).any()
    assert manifest["method"] == method
    assert manifest["misfit"] < 1e-6
    assert manifest["rms_from_input"] > 0


def test_the_unknown_part_of_the_input_has_no_effect(digits, restored, tmp_path):
    x, unknown = given(digits), inside()
    x[..., unknown] = 16 - x[..., unknown]
    np.save(tmp_path / "other.npy", x.movedim(1, -1).numpy())
    for method in METHODS:
        words = (f"--config.edit.method={method}", "--sampler=ancestral")
        first, _ = restored(digits, "inpaint", *words)
        second, _ = restored(digits, "inpaint", *words, f"--config.edit.input={tmp_path / 'other.npy'}")
        assert torch.equal(first, second), method


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_block_means_equal_the_inputs(factor, method, digits, restored):
    """To half a level for the mean of rounded pixels, where none is clipped."""
    words = (f"--config.edit.task.factor={factor}", f"--config.edit.method={method}", "--sampler=ancestral")
    found, manifest = restored(digits, "superres", *words)
    assert manifest["misfit"] < 1e-6
    means, expected = (block_means(x.double(), factor) for x in (found, given(digits)))
    clear = (block_means(((found > 0) & (found < 16)).double(), factor) == 1) & (expected > 0)
    assert clear.any()
    assert (means - expected)[clear].abs().max() <= 0.5
    assert not torch.equal(found, given(digits))


@pytest.mark.parametrize("method", METHODS)
def test_colours_are_found_for_a_grey_picture(method, colours, restored):
    found, manifest = restored(colours, "colorize", f"--config.edit.method={method}")
    x = given(colours)
    assert found.shape == x.shape == (NUM, 3, 8, 8)
    assert manifest["misfit"] < 1e-6
    clear = ((found > 0) & (found < 255)).all(1)
    assert clear.any()
    assert (found.double().mean(1) - x.double().mean(1))[clear].abs().max() <= 0.5
    with Image.open(colours / "edit" / "colorize" / "grid.png") as picture:
        assert picture.mode == "RGB"


def test_known_pixels_with_noise_are_not_fixed(digits, restored):
    """The input is not restored exactly, because it is unknown; the measurement deviates by the noise."""
    words = ("--config.edit.noise=0.3", "--sampler=ancestral")
    found, manifest = restored(digits, "inpaint", *words, "--config.edit.method=pigdm")
    assert not torch.equal(found[..., ~inside()], given(digits)[..., ~inside()])
    assert 0.05 < manifest["misfit"] < 0.6


# --- measurements -----------------------------------------------------------------------------------------------------


def known(task, shape=(1, 8, 8), **settings):
    """The measurement of a task on examples of this shape."""
    config = load_config("vpsde")
    config.device = "cpu"
    facts = DataFacts(shape, 17, 0.5, 1.0)
    config.network.channels = 4
    return INVERSE_PROBLEMS[task](**settings).measurement(build(config, facts))


def test_a_blur_weights_neighbours_by_a_gaussian():
    """One white pixel far from the edges; a constant is preserved because edges repeat."""
    found = known("deblur", (1, 16, 16), blur=1.2)
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 8, 7] = 1
    places = torch.arange(16.0)
    lines = [torch.exp(-0.5 * ((places - at) / 1.2) ** 2) * ((places - at).abs() <= 4) for at in (8, 7)]
    expected = torch.outer(*(line / line.sum() for line in lines))
    torch.testing.assert_close(found.measure(x)[0, 0], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.measure(torch.full((2, 1, 16, 16), 0.7)), torch.full((2, 1, 16, 16), 0.7))
    assert found.project is None


def test_a_blur_wider_than_the_picture():
    """It reaches from edge to edge: all seven neighbours have equal weight, and edges repeat."""
    column = torch.tensor([0.0, 1, 0, 3])
    found = known("deblur", (1, 4, 4), blur=1e4).measure(column[None, None, :, None].expand(1, 1, 4, 4))
    expected = torch.stack([column[torch.arange(k - 3, k + 4).clamp(0, 3)].mean() for k in range(4)])
    torch.testing.assert_close(found[0, 0], expected[:, None].expand(4, 4))


def test_a_larger_zeta_of_dps_gives_a_smaller_misfit(digits, restored):
    words = ("--config.edit.method=dps", "--config.edit.task.blur=0.8", "--sampler=ancestral", "--steps=20")
    found = [
        restored(digits, "deblur", *words, f"--config.edit.method.zeta={zeta}")[1]["misfit"] for zeta in (0, 0.3, 1)
    ]
    assert found[2] < 0.9 * found[1] < 0.8 * found[0]


def test_deblurring_fits_the_measurement(digits, restored):
    """Better than pictures of other digits do."""
    found, manifest = restored(digits, "deblur", "--config.edit.task.blur=0.8", "--sampler=ancestral", "--steps=20")
    blur, codec = known("deblur", blur=0.8).measure, load(stored(digits), digits, Options())[0].codec
    y, fits = (blur(codec.encode(x)) for x in (given(digits), found))
    assert (fits - y).square().mean() < 0.5 * (fits - y.roll(1, 0)).square().mean()
    assert manifest["misfit"] == pytest.approx((fits - y).square().mean().sqrt().item(), abs=0.1)


@pytest.fixture
def halves(tmp_path):
    """A file with measurements: the upper half, its squared brightness, and invalid ones."""
    path = tmp_path / "measurements.py"
    path.write_text(
        "import torch\n"
        "def upper(x):\n    return x[:, :, :4]\n"
        "def squared(x):\n    return x[:, :, :4] ** 2\n"
        "def flat(x):\n    return x.flatten(1).sum(1)\n"
        "def joined(x):\n    return x.sum(0)\n"
        "def broken(x):\n    return x @ torch.ones(3, 3)\n"
        "def misspelt(x):\n    return torhc.ones(1)\n"
        "number = 3\n"
    )
    return path


@pytest.mark.parametrize(("method", "name"), [("pigdm", "upper"), ("dps", "upper"), ("dps", "squared")])
def test_a_measurement_from_a_file(method, name, halves, digits, restored):
    words = (f"--config.edit.task.measure={halves}:{name}", f"--config.edit.method={method}", "--steps=30")
    found, manifest = restored(digits, "measured", *words, "--sampler=ancestral")
    codec = load(stored(digits), digits, Options())[0].codec
    x, y = (codec.encode(images)[:, :, :4] for images in (given(digits), found))
    x, y = (x**2, y**2) if name == "squared" else (x, y)
    assert (x - y).square().mean() < 0.5 * (x.roll(1, 0) - y).square().mean()
    assert manifest["options"]["measure"] == f"{halves}:{name}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}:squared", "the measurement is not linear"),
        ("{}:flat", "need a tensor of shape (B, *) for examples of shape (B, *(1, 8, 8))"),
        ("{}:joined", "need a tensor of shape (B, *)"),
        ("{}:broken", "RuntimeError: "),
        ("{}:misspelt", "NameError: name 'torhc' is not defined"),
        ("{}:number", "TypeError: 'int' object is not callable"),
        ("{}:nothing", "KeyError: 'nothing'"),
        ("{}", "need FILE.py:FUNCTION, and that file"),
        ("{}.py:upper", "need FILE.py:FUNCTION, and that file"),
        ("", "edit.task.measure '': need FILE.py:FUNCTION, and that file"),
    ],
)
def test_invalid_measurements_are_refused(text, message, halves, digits, capsys):
    refused(capsys, digits, 2, message, "--task=measured", f"--config.edit.task.measure={text.format(halves)}")


# --- masks ------------------------------------------------------------------------------------------------------------


def test_a_mask_is_a_box_or_a_picture_white_where_known(digits, restored, tmp_path):
    shades = np.where(inside().numpy(), 127, 128).astype(np.uint8)
    for name in ("mask.png", "MASK.PNG"):
        Image.fromarray(shades).save(tmp_path / name)
        assert torch.equal(read_mask(str(tmp_path / name), (1, 8, 8)), ~inside())
    assert torch.equal(read_mask(" 2, 3,4 ,2", (3, 8, 8)), ~inside())
    assert not read_mask("0,0,8,5", (1, 8, 5)).any()
    box, _ = restored(digits, "inpaint")
    picture, _ = restored(digits, "inpaint", f"--config.edit.task.mask={tmp_path / 'mask.png'}")
    assert torch.equal(box, picture)


@pytest.mark.parametrize("text", ["7,0,2,2", "0,7,2,2", "0,0,9,1", "0,0,1,9", "2,2,0,3", "1,2,3", "1,2,3,4,5"])
def test_boxes_outside_of_the_picture_are_refused(text, digits, capsys):
    message = f"error: edit.task.mask {text}: need top,left,height,width of a box within 8x8 pixels"
    refused(capsys, digits, 2, message, "--task=inpaint", f"--config.edit.task.mask={text}")


@pytest.mark.parametrize("text", ["-1,0,2,2", "0,0,2.5,2", "mask", "mask.bmp"])
def test_masks_that_are_neither_box_nor_picture_are_refused(text, digits, capsys):
    message = "of a box within 8x8 pixels, or a picture ending in .png or .jpg or .jpeg"
    refused(capsys, digits, 2, message, "--task=inpaint", f"--config.edit.task.mask={text}")


@pytest.mark.parametrize(
    ("mode", "size", "status", "message"),
    [
        ("L", (8, 9), 2, "is of mode L and 8x9 pixels; the run needs L, 8x8: convert it"),
        ("RGB", (8, 8), 2, "is of mode RGB and 8x8 pixels; the run needs L, 8x8: convert it"),
        ("", (), 3, "mask.png does not exist: check the path"),
    ],
)
def test_masks_of_other_sides_or_modes(mode, size, status, message, digits, tmp_path, capsys):
    if mode:
        Image.new(mode, size).save(tmp_path / "mask.png")
    refused(capsys, digits, status, message, "--task=inpaint", f"--config.edit.task.mask={tmp_path / 'mask.png'}")


def test_a_black_and_white_mask_equals_its_gray_picture(digits, tmp_path):
    picture = Image.new("L", (8, 8))
    picture.paste(255, (2, 3, 6, 7))
    found = []
    for mode in ("L", "1"):
        picture.convert(mode).save(tmp_path / "mask.png")
        words = ("--task=inpaint", f"--config.edit.task.mask={tmp_path / 'mask.png'}", "--steps=2")
        line = ["run.py", "--mode=edit", f"--workdir={digits}", "--config.edit.num_examples=2", *words]
        assert command_line.main(line) == 0
        with np.load(digits / "edit" / "inpaint" / "samples.npz") as arrays:
            found.append(arrays["samples"])
    assert np.array_equal(*found)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--task=inpaint", "--config.edit.task.mask="),
            "edit.task.mask is empty: give a picture, white where pixels are known",
        ),
        (("--task=inpaint", "--config.edit.method=pigmd"), "unknown method 'pigmd'; did you mean 'pigdm'?"),
        (("--task=inpaint", "--config.edit.noise=-1"), "edit.noise -1.0: need at least 0, a standard deviation"),
        (
            ("--task=inpaint", "--config.edit.method=dps", "--config.edit.method.zeta=-1"),
            "edit.method.zeta -1.0: need at least 0",
        ),
        (
            ("--task=inpaint", "--config.edit.method=replacement", "--config.edit.method.repeats=0"),
            "edit.method.repeats 0: need 1 to 1e6",
        ),
        (("--task=deblur", "--config.edit.method=replacement"), "needs a measurement that keeps a part of x"),
        (("--task=deblur", "--config.edit.task.blur=0"), "edit.task.blur 0.0: need a number above 0, in pixels"),
        (("--task=superres", "--config.edit.task.factor=3"), "need (B, C, *) with sides that 3 divides"),
        (("--task=superres", "--config.edit.task.factor=0"), "edit.task.factor 0: need 1 to 65536"),
        (("--task=colorize",), "--task colorize needs pictures with colours; the run has shape (1, 8, 8)"),
        (("--task=inpaint", "--config.edit.num_examples=-1"), "edit.num_examples -1: need at least 0"),
        (("--task=inpaint", "--batch_size=0"), "--batch_size"),
        (("--task=inpant",), "unknown task 'inpant'; did you mean 'inpaint'?"),
    ],
)
def test_invalid_settings_are_refused(words, message, digits, capsys):
    refused(capsys, digits, 2, message, *words)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("inpaint", "edit.task.mask is for pictures; the run has examples of shape (2,)"),
        ("colorize", "needs pictures with colours; the run has shape (2,)"),
        ("superres", "need (B, C, *) with sides that 2 divides"),
        ("deblur", "--task deblur needs signals or images; the run has shape (2,)"),
    ],
)
def test_points_have_no_pixels(task, message, points, capsys):
    refused(capsys, points, 2, message, f"--task={task}")


def test_a_non_finite_example_is_named_by_its_number(digits, monkeypatch, capsys):
    """In the second batch; nothing is written."""
    original = sde_lib.Denoiser.forward

    def broken(self, x, t, **cond):
        x0 = original(self, x, t, **cond).x0.clone()
        x0[1] = x0[1] * (torch.nan if len(x) == 2 else 1)
        return sde_lib.Prediction(x0)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", broken)
    words = ("--task=inpaint", "--config.edit.num_examples=5", "--batch_size=3", "--config.edit.method=replacement")
    refused(capsys, digits, 4, "error: example 4: the result is not finite", *words, *BOX)


# --- repetition -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 3])
def test_replacement_resamples_its_levels(repeats, digits, restored):
    """By the library's own functions, with the expected number of evaluations."""
    words = (
        "--config.edit.method=replacement",
        f"--config.edit.method.repeats={repeats}",
        "--config.edit.method.jump=2",
    )
    found, manifest = restored(digits, "inpaint", *words, "--sampler=ancestral", "--steps=6")
    assert manifest["nfe"] == 6 * repeats + 1
    experiment, denoise, _ = load(stored(digits), digits, Options())
    sde, draw, x = experiment.sde, Noise(torch.arange(NUM)), experiment.codec.encode(given(digits))
    constrain = replacement(x, lambda v: torch.where(inside(), 0, v), draw)
    times = resampled(GRIDS[Ancestral.grid or sde.grid](sde, 6, None, 1e-3), 2, repeats)
    with torch.no_grad():
        expected = sample(Ancestral(sde), denoise, sde.prior_std * draw(x), times, draw, constrain)
    assert torch.equal(found, experiment.codec.decode(expected))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sampler", ["ancestral", "ode"])
def test_a_restoration_does_not_depend_on_the_batch_size(method, sampler, digits, restored):
    """Including the noise in the measurement."""
    words = (f"--config.edit.method={method}", f"--sampler={sampler}", "--config.edit.noise=0.1")
    steps = ("--steps=1",) if sampler == "ode" else ()
    whole, some = (restored(digits, "inpaint", *words, *steps, f"--batch_size={size}")[0] for size in (64, 3))
    difference = (whole.int() - some.int()).abs()
    assert difference.max() <= (1 if sampler == "ode" else 0)
    assert len(whole.unique(dim=0)) == NUM


def test_restorations_depend_on_the_seed_alone(digits, restored):
    words = ("--config.edit.noise=0.1", "--sampler=ancestral")
    first, again, other = (restored(digits, "inpaint", *words, f"--seed={seed}")[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_files_and_output_of_restorations(digits, restored, capsys):
    """The picture has rows of known parts, restorations and inputs; an image is 64 pixels wide, 6 apart."""
    found, manifest = restored(digits, "superres", "--split=train", "--seed=3", "--config.edit.num_examples=20")
    folder, x = digits / "edit" / "superres", given(digits, 20, "train")
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "grid.png", "manifest.json"}
    assert manifest.items() >= {"task": "superres", "split": "train", "seed": 3, "num_examples": 20}.items()
    assert manifest["options"].items() >= {"factor": 2, "sampler": "adams", "steps": 3}.items()
    assert manifest["guidance"] == {}
    error = (found.double() - x.double()).square().mean().sqrt().item()
    assert manifest["rms_from_input"] == pytest.approx(error)
    with Image.open(folder / "grid.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    left = pixels.shape[1] - 15 - 16 * 70
    rows = [[pixels[30 + 70 * row :][:64:8, left + 70 * k :][:, :64:8] for k in (0, 9)] for row in range(3)]
    for k, at in enumerate((0, 9 * 19 // 15)):  # 16 of the 20, evenly spaced
        assert np.array_equal(rows[2][k], (x[at, 0].double() * 255 / 16).round())
        assert np.array_equal(rows[1][k], (found[at, 0].double() * 255 / 16).round())
        assert (rows[0][k][::2, ::2] == rows[0][k][1::2, 1::2]).all()
    assert f"files are in {folder}" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_restorations_take_guidance(method, digits, restored):
    """Away from another checkpoint of the run; at scale 1 it equals the run alone."""
    words = (f"--config.edit.method={method}", "--sampler=ancestral", "--checkpoint=4")
    weaker = (*words, f"--config.guidance.autoguidance={digits}")
    plain, _ = restored(digits, "inpaint", *words)
    alone, _ = restored(digits, "inpaint", *weaker, "--config.guidance.autoguidance_scale=1")
    leaned, manifest = restored(digits, "inpaint", *weaker, "--config.guidance.autoguidance_scale=3")
    assert torch.equal(plain, alone)
    assert not torch.equal(plain, leaned)
    assert manifest["guidance"].items() >= {"autoguidance": str(digits), "autoguidance_scale": 3.0}.items()


# --- the noisy mean of score_sde --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["inpaint", "superres"])
def test_the_noisy_mean_of_the_reference(task, digits):
    """By hand: the last noisy state, whose known part is alpha times the example; off by default."""
    config = stored(digits)
    options = {"mask": "2,3,4,2"} if task == "inpaint" else {}
    config.sample.sampler, config.sample.steps, config.sample.grid = choose("sample.sampler", "pc"), 4, "uniform"
    experiment, denoise, _ = load(config, digits, Options())
    known, seeds, sde = INVERSE_PROBLEMS[task](**options).measurement(experiment), torch.arange(3), experiment.sde
    x = experiment.codec.encode(given(digits, 3))

    def restored_by(noisy_mean):
        draw = Noise(seeds)
        latents = sde.prior_std * draw(x)
        with torch.no_grad():
            return METHODS["replacement"](noisy_mean=noisy_mean)(
                Problem(config, experiment, known, x, known.measure(x), latents, draw), denoise
            )

    draw = Noise(seeds)
    latents, constrain = sde.prior_std * draw(x), replacement(x, known.project, draw)
    step, times = STEPS["pc"](sde, constrain=constrain), GRIDS["uniform"](sde, 4, None, config.sample.t_min)
    with torch.no_grad():
        *_, last, data = trajectory(step, denoise, latents, times, draw, constrain)
    end = sde.marginal(times[-1].item())
    assert torch.equal(restored_by(True), constrain(last, end.alpha, 0.0))
    assert torch.equal(restored_by(False), data)
    torch.testing.assert_close(known.project(restored_by(True)), end.alpha * known.project(x))
    rest = restored_by(True) - data
    rest = rest - known.project(rest)
    assert rest.abs().max() > 0.05 * end.sigma


def test_known_pixels_equal_the_input_with_a_noisy_mean(digits, restored):
    words = ("--config.edit.method=replacement", "--sampler=ancestral")
    noisy, manifest = restored(digits, "inpaint", *words, "--config.edit.method.noisy_mean=true", "--steps=12")
    assert torch.equal(noisy[..., ~inside()], given(digits)[..., ~inside()])
    assert manifest["options"]["method_options"]["noisy_mean"] is True
    denoised, _ = restored(digits, "inpaint", *words, "--steps=12")
    assert manifest["nfe"] == 12
    assert noisy.shape == denoised.shape


def test_a_noisy_mean_of_a_grid_that_ends_at_the_data(digits, restored):
    """Its last step, the denoising, is left out; without other steps the start is returned."""
    words = ("--config.edit.method=replacement", "--sampler=ddim", "--config.edit.method.noisy_mean=true")
    for steps in (1, 3):
        found, manifest = restored(digits, "inpaint", *words, "--config.sample.grid=edm", f"--steps={steps}")
        assert manifest["nfe"] == steps - 1
        assert torch.equal(found[..., ~inside()], given(digits)[..., ~inside()])
