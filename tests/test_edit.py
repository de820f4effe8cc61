"""Paths between examples: closed forms and exact mixtures for the mathematics, a trained run for the mode."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import run as command_line
from score_sde import sde_lib
from score_sde.data import table, write_gif
from score_sde.engine import checkpoint, latents
from score_sde.engine.config import Options, stored
from score_sde.engine.datasets import read_dataset
from score_sde.engine.drawing import draw
from score_sde.engine.load import load
from score_sde.engine.modes import edit
from score_sde.samplers import DDIM, ODE, Ancestral, Noise
from score_sde.samplers.editing import depth_time, flow_path, slerp, stochastic_path
from score_sde.samplers.grids import karras
from score_sde.sde_lib import GaussianMixture
from score_sde.sde_lib.consistency import ConsistencyModel


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def upright(numbers, like):
    """Reshapes numbers (B,) to broadcast against ``like`` (B, *)."""
    return torch.as_tensor(numbers, dtype=like.dtype).reshape(-1, *[1] * (like.ndim - 1))


# --- depths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_a_depth_is_the_fraction_of_noise_in_the_variance(sde, share, std):
    alpha, sigma, _ = sde.marginal(depth_time(sde, share, std))
    assert sigma**2 / ((alpha * std) ** 2 + sigma**2) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("share", [-0.1, 0.0, 1e-12, 1 - 1e-12, 1.0, math.nan])
def test_a_depth_that_the_process_does_not_reach(sde, share):
    with pytest.raises(ValueError, match=f"depth {share}: need a fraction above"):
        depth_time(sde, share, 1.0)


# --- spherical mixtures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 5), (1, 4, 3)])
def test_slerp_turns_evenly_and_changes_the_norm_linearly(shape):
    first, second = 3 * normals(1, *shape), normals(1, *shape, seed=1)
    mixed = slerp(first, second, upright([0.0, 0.25, 0.5, 1.0], first)).flatten(1)
    a, b = first.flatten(), second.flatten()
    torch.testing.assert_close(mixed[[0, 3]], torch.stack([a, b]))
    torch.testing.assert_close(
        mixed.norm(dim=1), torch.lerp(a.norm(), b.norm(), torch.tensor([0, 0.25, 0.5, 1.0]).double())
    )
    quarter, half, whole = (torch.acos(a @ m / (a.norm() * m.norm())) for m in mixed[1:])
    torch.testing.assert_close(torch.stack([quarter, half]), torch.stack([0.25 * whole, 0.5 * whole]))


def test_slerp_is_the_formula_of_the_paper_on_the_sphere():
    first, second = (x / x.norm() for x in (normals(1, 7), normals(1, 7, seed=1)))
    theta = torch.acos((first * second).sum())
    for w in (0.2, 0.5, 0.9):
        expected = (torch.sin((1 - w) * theta) * first + torch.sin(w * theta) * second) / torch.sin(theta)
        torch.testing.assert_close(slerp(first, second, upright([w], first)), expected)


def test_slerp_acts_on_each_pair_and_is_homogeneous():
    first, second, weights = normals(4, 2, 3), normals(4, 2, 3, seed=1), upright([0.1, 0.4, 0.5, 0.8], normals(4, 2, 3))
    together = slerp(first, second, weights)
    alone = torch.cat([slerp(first[k : k + 1], second[k : k + 1], weights[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(slerp(50 * first, 50 * second, weights), 50 * together)


def test_slerp_of_a_state_with_itself_stays():
    x, weights = normals(1, 6).float(), torch.linspace(0, 1, 5)[:, None]
    torch.testing.assert_close(slerp(x, x, weights), x.expand(5, 6))
    assert not slerp(0 * x, 0 * x, weights).any()


def test_slerp_keeps_the_norms_of_the_prior(sde):
    """The norms of two independent draws of 256 dimensions: mean prior_std sqrt(D) to 1 / (4 D), at every weight."""
    num, size = 2_000, 256
    first, second = (sde.prior_std * normals(num, size, seed=seed) for seed in (0, 1))
    for w in (0.0, 0.3, 0.5, 1.0):
        norms = slerp(first, second, upright([w], first)).norm(dim=1) / sde.prior_std
        spread = math.sqrt(0.5 * ((1 - w) ** 2 + w**2))  # a norm has standard deviation sqrt(1/2)
        assert norms.mean().item() == pytest.approx(math.sqrt(size - 0.5), abs=5 * spread / math.sqrt(num))
        assert norms.std().item() == pytest.approx(spread, rel=0.1)
    straight = torch.lerp(first, second, 0.5).norm(dim=1).mean() / sde.prior_std
    assert straight.item() == pytest.approx(math.sqrt(size / 2), rel=0.01)


# --- through stochastic encodings -------------------------------------------------------------------------------------


class Recorded:
    """A denoiser that keeps the first state it receives."""

    def __init__(self, denoise):
        self.denoise, self.first = denoise, None

    def __call__(self, x, t):
        self.first = x if self.first is None else self.first
        return self.denoise(x, t)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_encodings_have_the_variance_of_their_depth_at_every_weight(sde, weight):
    """The mixture is N(alpha ((1 - w) x + w y), sigma^2); five standard errors."""
    num, first, second = 20_000, torch.tensor([[-2.0]]).double(), torch.tensor([[1.0]]).double()
    times = karras(sde, 1, depth_time(sde, 0.6, 1.0))
    denoise = Recorded(GaussianMixture(torch.ones(1), torch.zeros(1, 1).double(), 1.0).denoiser(sde))
    weights, noise = torch.full((num, 1), weight).double(), Noise(torch.arange(num))
    stochastic_path(Ancestral(sde), denoise, first, second, weights, times, noise)
    alpha, sigma, _ = sde.marginal(times[0].item())
    mean = alpha * (-2.0 + 3.0 * weight)
    assert denoise.first.mean().item() == pytest.approx(mean, abs=5 * sigma / math.sqrt(num))
    assert denoise.first.std().item() == pytest.approx(sigma, rel=5 / math.sqrt(2 * num))


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_decoded_mixtures_have_the_law_of_the_exact_posterior(sde, weight):
    """For data N(0, v), x_0 given the mixture's encoding is linear in it, so the decoded examples are normal.

    mean = k alpha m,    variance = (k sigma)^2 + v sigma^2 / q,    k = alpha v / q,    q = alpha^2 v + sigma^2
    """
    num, v, first, second = 4_000, 0.5, torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double()
    times = karras(sde, 200, depth_time(sde, 0.5, math.sqrt(v)))
    denoise = GaussianMixture(torch.ones(1), torch.zeros(1, 1).double(), v).denoiser(sde)
    weights = torch.full((num, 1), weight).double()
    found = stochastic_path(Ancestral(sde), denoise, first, second, weights, times, Noise(torch.arange(num)))
    alpha, sigma, _ = sde.marginal(times[0].item())
    total = alpha**2 * v + sigma**2
    k, mixed = alpha * v / total, -1.0 + 3.0 * weight
    std = math.sqrt((k * sigma) ** 2 + v * sigma**2 / total)
    assert found.mean().item() == pytest.approx(k * alpha * mixed, abs=5 * std / math.sqrt(num) + 0.01)
    assert found.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * num) + 0.01)


def test_little_noise_recovers_the_mixture_of_the_data(sde, shaped_mixture):
    ends = shaped_mixture.sample(2, torch.Generator().manual_seed(0))
    weights = upright([0.0, 0.4, 1.0], ends)
    times = karras(sde, 3, depth_time(sde, 2e-3, 1.0))
    alike = Noise(torch.zeros(3, dtype=torch.int64))
    flat = GaussianMixture(torch.ones(1), torch.zeros(1, *ends.shape[1:]).double(), 100.0).denoiser(sde)
    found = stochastic_path(Ancestral(sde), flat, *ends.split(1), weights, times, alike)
    torch.testing.assert_close(found, torch.lerp(ends[:1], ends[1:], weights), rtol=0, atol=0.25)


# --- through the flow -------------------------------------------------------------------------------------------------


def test_the_flow_recovers_both_examples(sde, plane):
    ends = plane.sample(2, torch.Generator().manual_seed(0))
    flow, weights = ODE(sde, rtol=1e-6, atol=1e-6), upright([0.0, 0.5, 1.0], ends)
    found = flow_path(flow, plane.denoiser(sde), *ends.split(1), weights)
    torch.testing.assert_close(found[[0, 2]], ends, rtol=0, atol=1e-4)
    assert not torch.allclose(found[1], ends.mean(0), atol=1e-2)


def test_the_flow_of_a_round_gaussian_is_slerp_of_the_data(sde):
    """The flow scales all directions equally, and slerp is homogeneous."""
    first, second, weights = normals(1, 2, 3), normals(1, 2, 3, seed=1), upright([0.0, 0.3, 0.7], normals(1, 2, 3))
    denoise = GaussianMixture(torch.ones(1), torch.zeros(1, 2, 3).double(), 0.5).denoiser(sde)
    found = flow_path(ODE(sde, rtol=1e-6, atol=1e-6), denoise, first, second, weights)
    torch.testing.assert_close(found, slerp(first, second, weights), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_latents_of_a_gaussian(sde, shape):
    """prior_std z - alpha_T m = (x - alpha m) s_T / s, with standard deviations s_T and s at the two ends."""
    x, mean, v = normals(3, *shape), normals(1, *shape, seed=1), 0.3
    denoise = GaussianMixture(torch.ones(1), mean, v).denoiser(sde)
    (late, final), (early, first) = (
        (marginal.alpha, math.hypot(marginal.alpha * v**0.5, marginal.sigma))
        for marginal in map(sde.marginal, (sde.t_max, sde.t_min))
    )
    flow = ODE(sde, rtol=1e-6, atol=1e-6)
    latents = flow.encode(denoise, x)
    expected = (late * mean + final / first * (x - early * mean)) / sde.prior_std
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(flow.decode(denoise, latents), x, rtol=0, atol=1e-4)


def test_latents_are_standard_normals(sde, plane):
    """Latents of a mixture's noisy draws, up to the signal left at t_max: four standard errors."""
    num = 4_000
    x = sde.perturb(plane.sample(num, torch.Generator().manual_seed(0)), normals(num, 2, seed=1), sde.t_min)
    latents = ODE(sde, rtol=1e-3, atol=1e-3).encode(plane.denoiser(sde), x)
    left = (sde.marginal(sde.t_max).alpha / sde.prior_std) ** 2
    assert latents.mean(0).abs().max() < 4 / math.sqrt(num) + left**0.5
    assert (latents.T.cov() - torch.eye(2)).abs().max() < 4 * math.sqrt(2 / num) + 2 * left


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_table_shows_each_image_in_its_cell(channels):
    """All images have the same magnification, without gray in between; an empty cell stays white."""
    image = torch.arange(8, dtype=torch.uint8).expand(channels, 4, 8)
    pixels = np.asarray(table({"one": [image, None], "longer": [image, 7 - image]}, [["a"], ["b"]], levels=8))
    expected = np.repeat(np.repeat((image.permute(1, 2, 0).numpy() / 7 * 255).round(), 8, 0), 8, 1)
    expected = np.broadcast_to(expected, (32, 64, 3))
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 64, 3))[:, :, 0]
    at = [np.argwhere((windows == part).all((2, 3, 4))).tolist() for part in (expected, 255 - expected)]
    (first, below), (beside,) = at
    assert first[1] == below[1]
    assert below[0] == beside[0] >= first[0] + 32
    assert beside[1] >= first[1] + 64
    assert (windows[first[0], beside[1]] == 255).all()


def test_an_animation_runs_forward_and_back(tmp_path):
    pictures = [Image.new("L", (6, 4), 60 * k) for k in range(4)]
    write_gif(tmp_path / "a.gif", pictures, milliseconds=50)
    with Image.open(tmp_path / "a.gif") as gif:
        shown = []
        for k in range(gif.n_frames):
            gif.seek(k)
            shown.append(gif.convert("L").getpixel((0, 0)))
        assert (gif.info["duration"], gif.info["loop"], gif.size) == (50, 0, (6, 4))
    assert shown == [0, 60, 120, 180, 120, 60]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


# --- the mode ---------------------------------------------------------------------------------------------------------

LOOSE = ("--sampler=ode", "--config.sample.sampler.rtol=1e-2", "--config.sample.sampler.atol=1e-2")
SMALL = ("--steps=3", "--config.edit.task.frames=4", "--config.edit.task.depths=(0.5,0.9)", *LOOSE)


@pytest.fixture
def edited(capsys):
    """Runs interpolate on a run: (folder, manifest, output)."""

    def run(workdir, *words):
        line = ["run.py", "--mode=edit", "--task=interpolate", f"--workdir={workdir}", *SMALL, *words]
        assert command_line.main(line) == 0
        folder = workdir / "edit" / "interpolate"
        return folder, json.loads((folder / "manifest.json").read_text()), capsys.readouterr().out

    return run


def found_paths(workdir, first=0, second=-1, frames=11):
    """The paths of a run in x, with the experiment and its denoiser."""
    config = stored(workdir)
    config.sample.steps = 3
    experiment, denoise, _ = load(config, workdir, Options())
    pair = read_dataset(config.data, "test").batch([first, second])["x"]
    weights = torch.linspace(0, 1, frames)
    with torch.no_grad():
        x = experiment.codec.encode(pair)
        return dict(latents.paths(experiment, denoise, x, weights, (0.5, 0.9), config)), experiment, denoise, x


def test_files_and_output_of_interpolate(digits, edited):
    folder, manifest, said = edited(digits, "--seed=5", "--split=train")
    assert {path.name for path in folder.iterdir()} == {"grid.png", "animation.gif", "manifest.json"}
    with Image.open(folder / "grid.png") as picture, Image.open(folder / "animation.gif") as gif:
        assert gif.n_frames == 6
        assert picture.height == gif.height
        assert picture.width > gif.width
    assert manifest.items() >= {"task": "interpolate", "split": "train", "seed": 5, "checkpoint_step": 8}.items()
    assert manifest["options"].items() >= {"steps": 3, "frames": 4, "depths": [0.5, 0.9], "rtol": 1e-2}.items()
    assert manifest["config_sha256"] == checkpoint.sha256(digits / "config.json")
    assert list(manifest["paths"]) == ["pixels", "noise 0.5", "noise 0.9", "flow latents", "prior draws"]
    assert "from step 8 (ema)" in said


def test_evaluations_are_counted(digits, edited, monkeypatch):
    calls, forward = [], sde_lib.Denoiser.forward
    monkeypatch.setattr(sde_lib.Denoiser, "forward", lambda *args, **kw: calls.append(1) or forward(*args, **kw))
    _, manifest, _ = edited(digits)
    assert manifest["nfe"] == len(calls) == sum(manifest["paths"].values())
    assert {manifest["paths"][name] for name in ("noise 0.5", "noise 0.9", "prior draws")} == {4}
    assert manifest["paths"]["pixels"] == 0


def test_pixels_and_flow_end_at_the_examples(digits):
    rows, _, _, x = found_paths(digits)
    torch.testing.assert_close(rows["pixels"][[0, -1]], x)
    torch.testing.assert_close(rows["flow latents"][[0, -1]], x, rtol=0, atol=1e-2)


def test_an_example_and_itself_give_one_picture(digits):
    """The noise is the same for all weights."""
    rows, _, _, _ = found_paths(digits, second=0)
    for label in ("pixels", "noise 0.5", "noise 0.9"):
        torch.testing.assert_close(rows[label], rows[label][:1].expand_as(rows[label]), rtol=0, atol=1e-5)


def test_prior_draws_end_at_the_samples_of_two_seeds(digits):
    rows, experiment, denoise, _ = found_paths(digits)
    times = karras(experiment.sde, 3, end=1e-3)
    expected = draw(experiment, denoise, DDIM(experiment.sde), times, torch.tensor([0, 1]))
    assert torch.equal(experiment.codec.decode(rows["prior draws"][[0, -1]]), expected)


def test_a_path_does_not_depend_on_its_frames(digits):
    few, many = (found_paths(digits, frames=frames)[0] for frames in (3, 5))
    for label, path in few.items():
        torch.testing.assert_close(path, many[label][::2], rtol=0, atol=1e-3)


def test_points_are_refused(points, capsys):
    assert command_line.main(["run.py", "--mode=edit", "--task=interpolate", f"--workdir={points}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: --task interpolate shows images and signals, and the run has examples of shape (2,)"
    assert not (points / "edit" / "interpolate").exists()


def test_a_non_finite_path_is_named(digits, monkeypatch, capsys):
    def broken(self, x, t):
        return sde_lib.Prediction(x * torch.nan)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", broken)
    before = sorted(digits.rglob("*"))
    assert command_line.main(["run.py", "--mode=edit", "--task=interpolate", f"--workdir={digits}", *SMALL]) == 4
    assert capsys.readouterr().err == "error: the path 'noise 0.5' is not finite; use more --steps\n"
    assert sorted(digits.rglob("*")) == before


# --- latents ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def done(capsys):
    """Runs a task: (arrays of its file, manifest, output)."""

    def run(workdir, task, *words):
        assert command_line.main(["run.py", "--mode=edit", f"--task={task}", f"--workdir={workdir}", *words]) == 0
        folder = workdir / "edit" / task
        arrays = dict(np.load(folder / ("latents.npz" if task == "encode" else "samples.npz")))
        return arrays, json.loads((folder / "manifest.json").read_text()), capsys.readouterr().out

    return run


@pytest.mark.parametrize("split", ["train", "test"])
def test_examples_are_encoded_and_come_back(split, digits, done):
    """The file, and its numbers recomputed from the latents and the examples."""
    num = 5
    found, manifest, said = done(digits, "encode", f"--config.edit.num_examples={num}", f"--split={split}")
    config, folder = stored(digits), digits / "edit" / "encode"
    experiment, denoise, _ = load(config, digits, Options())
    batch = read_dataset(config.data, split).batch(range(num))
    assert {path.name for path in folder.iterdir()} == {"latents.npz", "grid.png", "manifest.json"}
    assert found.keys() == {"latents", "label"}
    assert (found["latents"].shape, found["latents"].dtype) == ((num, 1, 8, 8), np.float32)
    assert np.array_equal(found["label"], batch["label"])

    x, flow = experiment.codec.encode(batch["x"]), ODE(experiment.sde, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        latents = flow.encode(denoise, x)
        back = ODE(experiment.sde).decode(denoise, torch.from_numpy(found["latents"]))
    np.testing.assert_allclose(found["latents"], latents, rtol=0, atol=2e-2)
    np.testing.assert_allclose(back, x, rtol=0, atol=2e-2)
    trip = manifest["round_trip"]
    assert 0 < trip["rms"] < trip["worst"] < 0.5
    assert trip["same_level"] == 1
    assert manifest.items() >= {"task": "encode", "split": split, "num_examples": num, "checkpoint_step": 8}.items()
    assert manifest["options"] == {"solver": "dopri5", "rtol": 1e-4, "atol": 1e-4}
    assert f"round trip: error {trip['rms']:.2g} levels root mean square, {trip['worst']:.2g} at most" in said
    assert "100 % of the entries return to the same level" in said


def test_the_error_of_the_round_trip(digits, done, monkeypatch):
    """In levels, with a decoder that shifts half of each picture by 0.04 of the range, a third of a level."""

    def broken(self, denoise, latents):
        x = decode(self, denoise, latents)
        x[..., :4] += 0.04
        return x

    decode = ODE.decode
    monkeypatch.setattr(ODE, "decode", broken)
    trip = done(digits, "encode", "--config.edit.num_examples=3")[1]["round_trip"]
    off = 0.04 * 17 / 2
    assert trip["rms"] == pytest.approx(off * 0.5**0.5, rel=0.02)
    assert trip["worst"] == pytest.approx(off, abs=0.05)
    monkeypatch.setattr(ODE, "decode", lambda *args: broken(*args).add_(0.12))
    trip = done(digits, "encode", "--config.edit.num_examples=3")[1]["round_trip"]
    assert trip["same_level"] < 0.5  # black and white pixels do not change


def test_the_picture_shows_examples_latents_and_round_trip(digits, done):
    """Sixteen examples, each 64 pixels wide and 6 apart; the first and the last row are equal."""
    found, _, _ = done(digits, "encode", "--config.edit.num_examples=31")
    examples = read_dataset(stored(digits).data, "test").batch(range(31))["x"]
    shades = np.clip((found["latents"] + 2.5) / 5, 0, 1)
    with Image.open(digits / "edit" / "encode" / "grid.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    left = pixels.shape[1] - 15 - 16 * 70
    for k in (0, 10, 30):
        cells = [pixels[30 + 70 * row :][:64, left + 70 * (k // 2) :][:, :64] for row in range(3)]
        assert np.array_equal(cells[0][::8, ::8], (examples[k, 0].double() * 255 / 16).round())
        assert np.array_equal(cells[0], cells[2])
        np.testing.assert_allclose(cells[1][::8, ::8] / 255, shades[k, 0], rtol=0, atol=0.5 / 16 + 1 / 255)


@pytest.mark.parametrize("run", ["digits", "points"])
def test_latents_are_decoded_to_the_round_trip(run, request, done, tmp_path):
    workdir = request.getfixturevalue(run)
    size = ("--config.edit.num_examples=5", *LOOSE)
    latents, manifest, said = done(workdir, "encode", *size, "--batch_size=2")
    config, path = stored(workdir), workdir / "edit" / "encode" / "latents.npz"
    whole, _, _ = done(workdir, "encode", *size)
    np.testing.assert_allclose(latents["latents"], whole["latents"], rtol=0, atol=1e-3)
    found, told, _ = done(workdir, "decode", f"--config.edit.task.latents={path}", "--batch_size=3", *LOOSE)
    x = read_dataset(config.data, "test").batch(range(5))["x"]
    if run == "digits":
        assert np.array_equal(found["samples"], x.movedim(1, -1))
    else:
        np.testing.assert_allclose(found["samples"], x, rtol=0, atol=1.1 * manifest["round_trip"]["worst"] + 1e-4)
        assert latents.keys() == {"latents"}
        assert manifest["round_trip"]["same_level"] is None
        assert "units of the data root mean square" in said
    assert told.items() >= {"task": "decode", "latents": str(path), "sha256": checkpoint.sha256(path)}.items()
    assert told["num_samples"] == 5
    assert "split" not in told
    for task in ("encode", "decode"):
        with Image.open(workdir / "edit" / task / "grid.png") as picture:
            assert min(picture.size) > 100


def test_all_examples_of_a_split(points, done, monkeypatch):
    monkeypatch.setattr("score_sde.data.points.SIZES", {"train": 20, "test": 11})
    for num, expected in ((0, 11), (100, 11), (7, 7)):
        found, manifest, _ = done(points, "encode", f"--config.edit.num_examples={num}", "--batch_size=4", *LOOSE)
        assert len(found["latents"]) == manifest["num_examples"] == expected


def test_latents_kept_by_sampling_are_decoded(digits, done):
    """Decoding by the flow differs from sampling only in that it does not denoise at the end."""
    words = ["--sampler=ode", "--steps=1", "--num_samples=3", "--config.sample.keep_latents=true"]
    assert command_line.main(["run.py", "--mode=sample", f"--workdir={digits}", *words]) == 0
    path = digits / "samples" / "ode-1" / "samples.npz"
    found, _, _ = done(digits, "decode", f"--config.edit.task.latents={path}")
    difference = found["samples"].astype(int) - np.load(path)["samples"]
    assert abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.95


DAMAGED = {
    "missing": (3, "file.npz does not exist: check the path"),
    "text": (3, "file.npz is damaged, no .npz or of Python objects: restore it from a copy, or make it again"),
    "half": (3, "file.npz is damaged, no .npz or of Python objects: restore it from a copy, or make it again"),
    "key": (3, "file.npz holds x and no array latents: give a file of this program, or rename the array"),
    "objects": (3, "file.npz is damaged, no .npz or of Python objects: restore it from a copy, or make it again"),
    "words": (3, "file.npz contains latents of type <U1: write it with --task encode"),
    "whole": (3, "file.npz contains latents of type int64: write it with --task encode"),
    "shape": (2, "file.npz contains latents of shape (2, 1, 4, 8), the run has examples of shape (1, 8, 8)"),
    "one": (2, "file.npz contains latents of shape (1, 8, 8), the run has examples of shape (1, 8, 8)"),
    "none": (2, "file.npz contains latents of shape (0, 1, 8, 8), the run has examples of shape (1, 8, 8)"),
    "nan": (3, "file.npz contains non-finite latents: write it with --task encode"),
    "huge": (3, "file.npz contains non-finite latents: write it with --task encode"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_files_without_latents(case, digits, tmp_path, capsys):
    path, latents = tmp_path / "file.npz", np.zeros((2, 1, 8, 8), np.float32)
    arrays = {"key": {"x": latents}, "objects": {"latents": np.array([None, 1])}, "words": {"latents": np.array(["a"])}}
    arrays |= {"whole": {"latents": latents.astype(np.int64)}, "shape": {"latents": latents[:, :, :4]}}
    arrays |= {"one": {"latents": latents[0]}, "none": {"latents": latents[:0]}, "nan": {"latents": latents * np.nan}}
    arrays["huge"] = {"latents": np.full((2, 1, 8, 8), 1e300)}
    if case != "missing":
        np.savez(path, **arrays.get(case, {"latents": latents}))
    if case == "half":
        path.write_bytes(path.read_bytes()[:400])
    if case == "text":
        path.write_text("text")
    status, message = DAMAGED[case]
    before = sorted(digits.rglob("*"))
    words = ("--mode=edit", "--task=decode", f"--workdir={digits}", f"--config.edit.task.latents={path}")
    assert command_line.main(["run.py", *words]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {path.parent}/{message}"
    assert sorted(digits.rglob("*")) == before


@pytest.mark.parametrize(
    ("task", "word", "message"),
    [
        ("decode", "--seed=0", "edit.task.latents is empty: give the latents.npz that --task encode wrote"),
        ("decode", "--config.edit.batch_size=0", "edit.batch_size 0: need at least 1"),
        ("encode", "--config.edit.batch_size=0", "edit.batch_size 0: need at least 1"),
        ("encode", "--config.edit.num_examples=-1", "edit.num_examples -1: need at least 0"),
        ("encode", "--sampler=ode --config.sample.sampler.solver=rk4", "unknown solver 'rk4'; known: dopri5, torchd"),
        (
            "encode",
            "--sampler=ode --config.sample.sampler.rtol=0",
            "sample.sampler.rtol 0.0: need above 0 to 1, usually",
        ),
    ],
)
def test_invalid_settings_of_latents_are_refused(task, word, message, digits, capsys):
    before = sorted(digits.rglob("*"))
    assert command_line.main(["run.py", "--mode=edit", f"--task={task}", f"--workdir={digits}", *word.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert sorted(digits.rglob("*")) == before


@pytest.mark.parametrize("task", ["encode", "decode"])
def test_a_non_finite_example_is_named_by_its_number(task, digits, tmp_path, monkeypatch, capsys):
    """In the second batch."""
    original = sde_lib.Denoiser.forward

    def broken(self, x, t, **cond):
        return sde_lib.Prediction(original(self, x, t, **cond).x0 * (torch.nan if len(x) == 1 else 1))

    monkeypatch.setattr(sde_lib.Denoiser, "forward", broken)
    np.savez(tmp_path / "latents.npz", latents=normals(4, 1, 8, 8))
    latents = [f"--config.edit.task.latents={tmp_path}/latents.npz"] if task == "decode" else []
    words = (f"--task={task}", *latents, "--config.edit.num_examples=4")
    assert command_line.main(["run.py", "--mode=edit", f"--workdir={digits}", *words, *LOOSE, "--batch_size=3"]) == 4
    assert capsys.readouterr().err.startswith("error: example 3: the network is not finite at t = ")


def test_a_run_without_a_flow_is_refused(digits, monkeypatch, capsys):
    experiment, _, path = load(stored(digits), digits, Options())
    consistent = ConsistencyModel(experiment.network, experiment.sde, 0.5)
    monkeypatch.setattr(edit, "load", lambda *args: (experiment, consistent, path))
    assert command_line.main(["run.py", "--mode=edit", "--task=encode", f"--workdir={digits}"]) == 2
    assert "is a consistency model: it has no density and no latents" in capsys.readouterr().err


def test_latents_by_another_solver(digits, done):
    found = [
        done(
            digits,
            "encode",
            "--config.edit.num_examples=2",
            "--sampler=ode",
            f"--config.sample.sampler.solver={solver}",
        )[0]["latents"]
        for solver in ("dopri5", "torchdiffeq_dopri5")
    ]
    np.testing.assert_allclose(*found, rtol=0, atol=1e-2)


def test_a_latent_out_of_reach_is_black_or_white(monkeypatch):
    """And 0 is in the middle of the levels."""
    monkeypatch.setattr(latents, "table", lambda rows, *args: rows)
    z, images = torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 1, 1, 3), torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    rows = latents.round_trip_picture(images, z, images, 201)
    assert rows["latents"][0].flatten().tolist() == [0, 100, 200]
