"""Sampling from the command line: the written files, and dependence of a sample on its seed alone."""

import dataclasses
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde import sde_lib
from score_sde.configs.choices import choose, defaults
from score_sde.engine import checkpoint, drawing, plane
from score_sde.engine.build import build
from score_sde.engine.config import Options, load, override, stored
from score_sde.engine.density import DensityEstimator
from score_sde.engine.drawing import Counted, draw, draw_pairs, draw_scored
from score_sde.engine.facts import DataFacts
from score_sde.engine.randomness import PROBES, noise
from score_sde.engine.sampler import chosen, make_step, make_times
from score_sde.samplers import GRIDS, STEPS
from score_sde.sde_lib import Exact, Gaussian, GaussianMixture, Hutchinson
from score_sde.sde_lib.consistency import ConsistencyModel
from score_sde.sde_lib.runge_kutta import DormandPrince
from tests.runs import command, tolerances

FACTS = DataFacts((1, 4, 4), 17, 0.5, 1.0)
EVALUATIONS = {
    "pc": 9,
    "heun": 9,
    "plms": 6,
    "pndm": 14,
    "ald": 26,
    "edm": 9,
    "dpm_2s": 9,
    "dpmpp_2s": 9,
} | dict.fromkeys(
    (
        *("euler_maruyama", "reverse_diffusion", "ancestral", "ancestral_learned", "ddim", "consistency"),
        *("multistep", "dpm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde", "dpmpp_3m_sde", "sa", "deis", "ipndm", "vab"),
        *("unipc", "adams"),
    ),
    5,
)
EVALUATIONS |= {"edm": 9, "dpm_2s": 9, "dpmpp_2s": 9, "dpm_3s": 13, "rk4": 17, "rk45": 25}
"""Calls of the denoiser for 4 steps and the last denoising."""

ADAPTIVE = {"ode", "adaptive_sde", "dpm_adaptive"}
"""Adaptive samplers, which choose their number of evaluations."""


@pytest.fixture
def drawn(monkeypatch):
    """Samples from a run, with small pictures: (samples, manifest)."""
    monkeypatch.setattr(plane, "NUM_CELLS", 5)
    monkeypatch.setattr(plane, "NUM_PATHS", 7)

    def run(workdir, sampler="heun", steps=3, num=3, *words):
        flags = (f"--sampler={sampler}", f"--steps={steps}", f"--num_samples={num}")
        assert command("--mode=sample", f"--workdir={workdir}", *flags, *tolerances(sampler), *words) == 0
        folder = workdir / "samples" / f"{sampler}-{steps}"
        return np.load(folder / "samples.npz")["samples"], json.loads((folder / "manifest.json").read_text())

    return run


# --- written files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", STEPS)
def test_each_sampler_draws_and_counts_its_evaluations(sampler, digits, drawn, monkeypatch):
    """Counted again at the denoiser itself, over two batches."""
    calls, forward = [], sde_lib.Denoiser.forward

    def count(self, x, t, **cond):
        calls.append(len(x))
        return forward(self, x, t, **cond)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", count)
    samples, manifest = drawn(digits, sampler, 4, 3, "--batch_size=2")
    assert samples.shape == (3, 8, 8, 1)
    assert manifest["sampler"] == sampler
    assert manifest["nfe"] == len(calls) / 2
    if sampler in EVALUATIONS:
        assert manifest["nfe"] == EVALUATIONS[sampler]
        assert set(calls) == {1, 2}


def test_every_sampler_has_its_number_of_evaluations():
    assert EVALUATIONS.keys() | ADAPTIVE == set(STEPS)


@pytest.mark.parametrize("corrector_steps", [0, 1, 3])
def test_evaluations_of_predictor_and_corrector(corrector_steps, digits, drawn):
    _, manifest = drawn(digits, "pc", 4, 1, f"--config.sample.sampler.corrector_steps={corrector_steps}")
    assert manifest["nfe"] == 4 * (1 + corrector_steps) + 1
    assert manifest["options"]["corrector_steps"] == corrector_steps


def test_files_of_images(digits, drawn):
    samples, manifest = drawn(digits, "pc", 4, 5, "--seed=11")
    folder = digits / "samples" / "pc-4"
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "grid.png", "manifest.json"}
    assert samples.dtype == np.uint8
    assert samples.max() <= 16
    with Image.open(folder / "grid.png") as picture:
        assert picture.mode == "L"
    assert manifest["seconds"] > 0
    assert manifest.items() >= {"steps": 4, "grid": "uniform", "num_samples": 5, "seed": 11, "levels": 17}.items()
    assert manifest.items() >= {"weights": "ema", "checkpoint_step": 8}.items()
    options = {
        "noise": "independent",
        "predictor": "reverse_diffusion",
        "corrector": "langevin",
        "snr": 0.16,
        "corrector_steps": 1,
    }
    assert manifest["options"] == options
    assert manifest["config_sha256"] == checkpoint.sha256(digits / "config.json")
    assert {"python", "torch", "numpy"} <= manifest["versions"].keys()


def test_files_of_points(points, drawn):
    samples, manifest = drawn(points, "heun", 4, 20)
    folder = points / "samples" / "heun-4"
    assert {path.name for path in folder.iterdir()} == {"samples.npz", "grid.png", "manifest.json"}
    pictures = [folder / "grid.png", *(points / "plane").glob("*/*.png")]
    assert {path.name for path in pictures} == {"grid.png", "density.png", "trajectories.png"}
    assert samples.shape == (20, 2)
    assert samples.dtype == np.float32
    assert manifest["nfe"] == 9  # pictures are not counted
    for path in pictures:
        with Image.open(path) as picture:
            assert min(picture.size) > 100


def test_sampling_again_replaces_the_files(digits, drawn):
    first, _ = drawn(digits, "ddim", 3, 4)
    second, manifest = drawn(digits, "ddim", 3, 2, "--seed=9")
    assert (len(first), len(second), manifest["seed"]) == (4, 2, 9)
    assert not list((digits / "samples" / "ddim-3").glob(".*"))


def test_output_of_the_command(digits, drawn, capsys):
    drawn(digits, "heun", 3, 2)
    out = capsys.readouterr().out
    assert "2 samples in " in out
    assert "7 evaluations each, from step 8 (ema)" in out


# --- a sample and its seed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "size"), list(zip(list(STEPS)[::2], itertools.cycle([1, 2, 3]))))
def test_a_sample_does_not_depend_on_the_batch_size(sampler, size, digits, drawn):
    num = 3 if sampler == "ode" else 5
    some, whole = (drawn(digits, sampler, 2, num, f"--batch_size={size}")[0] for size in (size, 64))
    assert np.array_equal(some, whole)
    assert len(np.unique(whole, axis=0)) == num


@pytest.mark.parametrize("sampler", list(STEPS)[1::2])
def test_a_final_state_does_not_depend_on_the_batch_size(sampler, points, drawn, monkeypatch):
    """To float32 rounding, which the adaptive solver may amplify."""
    monkeypatch.setattr(plane, "draw", lambda *args: None)
    monkeypatch.setattr(drawing, "picture", lambda *args: None)
    few, whole = (drawn(points, sampler, 2, 5, f"--batch_size={size}")[0] for size in (4, 64))
    tolerance = 1e-4 if sampler == "ode" else 1e-5
    np.testing.assert_allclose(few, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sampler", ["pc", "ddim", "ancestral"])
def test_seeds_count_up_from_the_seed_of_the_command(sampler, digits, drawn):
    first, _ = drawn(digits, sampler, 3, 8)
    later, _ = drawn(digits, sampler, 3, 2, "--seed=5")
    assert np.array_equal(later, first[5:7])


def test_samples_of_a_command_repeat(digits, drawn):
    torch.manual_seed(77)
    first, _ = drawn(digits, "pc", 3, 4)
    assert np.array_equal(first, drawn(digits, "pc", 3, 4)[0])


# --- choice of weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "weights"), [(4, "ema"), (8, "ema"), (4, "raw"), (8, "raw")])
def test_the_requested_weights_are_used(step, weights, digits, drawn):
    """The samples of a network built by hand from the expected file."""
    samples, manifest = drawn(digits, "heun", 3, 4, f"--weights={weights}", f"--checkpoint={step}")
    assert (manifest["weights"], manifest["checkpoint_step"]) == (weights, step)
    path, config = digits / "checkpoints" / f"step_{step:08d}", stored(digits)
    config.sample.sampler, config.sample.steps = choose("sample.sampler", "heun"), 3
    experiment = build(config, DataFacts.from_dict(checkpoint.read_meta(path)["data"]))
    name = {"raw": "model.safetensors", "ema": "ema-0.999.safetensors"}[weights]
    checkpoint.load_network(path, name, experiment.network)
    denoiser = experiment.denoiser(experiment.network.eval(), config)
    step, times = make_step(config.sample, experiment), make_times(config.sample, experiment)
    expected = draw(experiment, denoiser, step, times, torch.arange(4)).movedim(1, -1).numpy()
    assert np.array_equal(samples, expected)


def test_checkpoints_and_weights_differ(digits, drawn):
    choices = [(step, weights) for step in (4, 8) for weights in ("ema", "raw")]
    found = [drawn(digits, "heun", 3, 4, f"--weights={w}", f"--checkpoint={s}")[0].tobytes() for s, w in choices]
    assert len(set(found)) == 4


def test_a_checkpoint_by_its_folder(digits, drawn):
    _, manifest = drawn(digits, "ddim", 3, 1, f"--checkpoint={digits / 'checkpoints' / 'step_00000004'}")
    assert manifest["checkpoint_step"] == 4


def test_sampling_leaves_the_checkpoints_alone(digits, drawn):
    files = [path for path in (digits / "checkpoints").rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    drawn(digits)
    assert [path.read_bytes() for path in files] == before


def test_the_config_alone_finds_its_run(digits, drawn, tmp_path, monkeypatch):
    shutil.copytree(digits, tmp_path / "runs" / "vpsde")
    monkeypatch.chdir(tmp_path)
    words = ("--mode=sample", "--config=vpsde", "--config.network.channels=8", "--steps=3", "--num_samples=1")
    words += ("--config.network.learned_variance=True",)
    assert command(*words, "--sampler=ddim") == 0
    assert (tmp_path / "runs" / "vpsde" / "samples" / "ddim-3" / "samples.npz").is_file()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_step_takes_its_options_from_the_config():
    config = load("vpsde")
    experiment = build(config, FACTS)
    changed = {"eta": 0.5, "v": 0.25, "rtol": 0.125}
    for name in STEPS:
        changes = {key: value for key, value in changed.items() if key in defaults("sample.sampler", name)}
        config.sample.sampler = choose("sample.sampler", name, **changes)
        step = make_step(config.sample, experiment)
        assert type(step) is STEPS[name]
        assert all(getattr(step, key, value) == value for key, value in changes.items())


def test_the_grid_of_a_file(tmp_path):
    """Its noise levels are sigma / alpha at the times; comments and empty lines are skipped."""
    (tmp_path / "levels.txt").write_text("20 # the most noise\n\n2\n0.5\n0\n")
    config = load("vesde")
    override(config, [("sde.sigma_max", "20"), ("sample.grid", str(tmp_path / "levels.txt"))])
    experiment = build(config, FACTS)
    times = make_times(config.sample, experiment)
    ratios = [experiment.sde.marginal(t).ratio for t in times[:-1].tolist()]
    assert ratios == pytest.approx([20, 2, 0.5])
    assert chosen(config.sample, experiment.sde) == (str(tmp_path / "levels.txt"), 3)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_grid_of_the_config_and_its_end(grid):
    chain = grid.startswith("levels")
    config, sde = load("vpsde"), sde_lib.SDES["ddpm" if chain else "vpsde"]()
    config.sample.grid, config.sample.steps, config.sample.t_min = grid, 10, 0.0
    experiment = dataclasses.replace(build(config, FACTS), sde=sde)
    law = {"std": experiment.gaussian.std} if grid in ("angle", "logistic") else {}
    law |= {"dimensions": experiment.gaussian.dimensions} if grid == "logistic" else {}
    assert torch.equal(make_times(config.sample, experiment), GRIDS[grid](sde, 10, **law))
    config.sample.t_min = 10.0 if chain else 1e-3
    noisy = make_times(config.sample, experiment)
    assert noisy[sde.sigma(noisy) > 0][-1] == config.sample.t_min


@pytest.mark.parametrize(
    ("above", "where"),
    [
        (2.0, "after step 1 of 3, from t = 1 to 0."),
        (0.9, "after step 2 of 3, from t = 0."),
        (2e-3, "after the last denoising, at t = 0.001;"),
    ],
)
def test_a_non_finite_sample_is_named_by_seed_and_step(above, where, digits, drawn, monkeypatch, capsys):
    """Nothing is written in that case."""
    original = sde_lib.Denoiser.forward

    def broken(self, x, t, **cond):
        x0 = original(self, x, t, **cond).x0.clone()
        x0[2] = torch.nan if t < above else x0[2]
        return sde_lib.Prediction(x0)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", broken)
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    words = ("--sampler=ddim", "--steps=3", "--num_samples=4", "--seed=40")
    assert command("--mode=sample", f"--workdir={digits}", *words) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the sample of seed 42 is not finite {where}")
    assert line.endswith("; use more --steps or another sampler")
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


@pytest.mark.parametrize("words", [(), ("--log_prob",)])
def test_a_non_finite_flow_is_named_by_its_seed(words, digits, monkeypatch, capsys):
    """In the second batch."""
    original, calls = sde_lib.Denoiser.forward, []

    def broken(self, x, t, **cond):
        calls.append(len(x))
        x0 = original(self, x, t, **cond).x0.clone()
        x0[1] = x0[1] * (torch.nan if len(x) == 2 else 1)
        return sde_lib.Prediction(x0)

    monkeypatch.setattr(sde_lib.Denoiser, "forward", broken)
    words = ("--sampler=ode", "--steps=1", "--num_samples=5", "--batch_size=3", "--seed=40", *words, *tolerances("ode"))
    assert command("--mode=sample", f"--workdir={digits}", "--config.likelihood.evaluations=4", *words) == 4
    assert set(calls) == {3, 2}
    assert capsys.readouterr().err.startswith("error: example 44: the network is not finite at t = 1, ")


def test_a_solver_failure_has_its_exit_status(digits, monkeypatch, capsys):
    monkeypatch.setattr(sde_lib.runge_kutta, "_MAX_STEPS", 2)
    assert command("--mode=sample", f"--workdir={digits}", "--sampler=ode", "--steps=1", "--num_samples=1") == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "raise the tolerances (rtol 0.0001, atol 0.0001)" in line


def test_mean_and_scale_of_the_data_reduce_the_evaluations_of_the_flow():
    """Nothing is left to solve for isotropic Gaussian data; five steps, the fewest with doubling lengths, detect it."""
    mean, config, found = torch.linspace(-1, 1, 16).double().reshape(FACTS.shape), load("vpsde"), {}
    config.sample.sampler, config.sample.steps = choose("sample.sampler", "ode", rtol=1e-6, atol=1e-6), 1
    for gaussian in (Gaussian(mean, 0.25), Gaussian(0 * mean, 1.0)):
        experiment = build(config, FACTS, gaussian)
        normal = GaussianMixture(torch.ones(1), mean.float()[None], 0.25)
        denoise, times = Counted(normal.denoiser(experiment.sde)), make_times(config.sample, experiment)
        z, x0 = draw_pairs(experiment, denoise, make_step(config.sample, experiment), times, torch.arange(4))
        torch.testing.assert_close(x0, mean.float() + 0.5 * z, rtol=0, atol=0.02)  # the prior lacks the mean
        found[gaussian.rest] = denoise.calls - 1  # one is the last denoising
    assert found[0.25] == 31 < found[1.0]


def test_adaptive_solvers_ignore_the_directions_of_the_moment_matched_gaussian():
    """They receive its mean and its average variance."""
    config = load("vpsde")
    directions, variances = torch.eye(16).double()[:, :2], torch.tensor([4.0, 1.0]).double()
    mean = torch.arange(16).double().reshape(FACTS.shape)
    config.sample.sampler = choose("sample.sampler", "ode")
    step = make_step(config.sample, build(config, FACTS, Gaussian(mean, 0.5, variances, directions)))
    assert torch.equal(step.gaussian.mean, mean)
    assert step.gaussian.rest == pytest.approx((4 + 1 + 14 * 0.5) / 16)
    assert step.gaussian.variances.numel() == 0


# --- log-densities ----------------------------------------------------------------------------------------------------

MEAN, STD = 0.2, 0.3


def read(workdir):
    """The arrays of the samples with densities."""
    return dict(np.load(workdir / "samples" / "ode-1" / "samples.npz"))


@pytest.mark.parametrize("run", ["digits", "points"])
def test_log_densities_equal_those_of_a_solve_from_the_data(run, request, drawn, monkeypatch):
    """From the undecoded samples: along the same path, the same probes give the same trace."""
    monkeypatch.setattr(plane, "draw", lambda *args: None)
    workdir, solver = request.getfixturevalue(run), DormandPrince(1e-5, 1e-5)
    options = {"solver": "dopri5", "solver.rtol": 1e-5, "solver.atol": 1e-5, "probes": 2}
    words = [f"--config.likelihood.{key}={value}" for key, value in options.items()]
    drawn(workdir, "ode", 1, 3, "--log_prob", "--config.sample.keep_latents=true", "--seed=4", *words)
    found, config = read(workdir), stored(workdir)
    experiment, denoise, _ = drawing.load(config, workdir, Options())
    x, trace = torch.from_numpy(found["x0"]), Hutchinson(noise(0, PROBES, torch.arange(4, 7)), 2)
    trace = trace if run == "digits" else Exact()
    expected = sde_lib.log_prob(experiment.sde, denoise, x, experiment.gaussian.isotropic(), trace, solver=solver)
    torch.testing.assert_close(expected.latent, torch.from_numpy(found["latents"]), rtol=0, atol=5e-3)
    nats = expected.nats.double() + experiment.codec.log_det(experiment.facts.shape)
    np.testing.assert_allclose(found["log_prob"], nats, rtol=0, atol=1e-2)
    samples = experiment.codec.decode(x)
    assert np.array_equal(found["samples"], samples.movedim(1, -1) if run == "digits" else samples)


@pytest.mark.parametrize("name", ["vpsde", "vesde", "edm", "ddpm"])
@pytest.mark.parametrize("levels", [0, 17])
def test_log_densities_of_gaussian_data_are_in_units_of_the_data(name, levels):
    """log p = log prior(x_T) + D log(s_T / s) + log |d encoded / d data|; s and s_T are standard deviations."""
    config = load("vpsde" if levels else "points")
    config.sde, config.likelihood.t_min = load(name).sde, 0.01 if name != "ddpm" else 2.0
    config.likelihood.evaluations = 64
    shape = (1, 2, 4) if levels else (2,)
    experiment = build(config, DataFacts(shape, levels, 1.0, 1.0))
    sde, seeds = experiment.sde, torch.arange(5)
    normal = GaussianMixture(torch.ones(1), torch.full((1, *shape), MEAN), STD**2)
    z, x, nats = draw_scored(DensityEstimator.of(config, experiment, normal.denoiser(sde)), seeds)
    t = config.likelihood.t_min
    (late, final), (early, first) = (
        (marginal.alpha, math.hypot(marginal.alpha * STD, marginal.sigma))
        for marginal in map(sde.marginal, (sde.t_max, t))
    )
    latents = sde.prior_std * z.double()
    torch.testing.assert_close(x.double(), early * MEAN + first / final * (latents - late * MEAN), rtol=0, atol=1e-3)
    width = 2 / levels if levels else 1
    expected = sde.prior_log_prob(latents) + math.prod(shape) * math.log(final / first * width)
    torch.testing.assert_close(nats, expected, rtol=0, atol=5e-3)


def test_densities_depend_on_their_seeds_alone(digits, drawn):
    """Their probes, too, for any batch size and first seed of the command."""
    words, found = ("--log_prob", "--config.likelihood.evaluations=8", "--config.likelihood.probes=2"), []
    for num, *more in ((9, "--batch_size=4"), (9,), (2, "--seed=5")):
        drawn(digits, "ode", 1, num, *words, *more)
        found.append(read(digits))
    for key in ("samples", "log_prob"):
        np.testing.assert_allclose(found[0][key], found[1][key], rtol=1e-5, atol=2e-3)
        np.testing.assert_allclose(found[2][key], found[1][key][5:7], rtol=1e-5, atol=2e-3)
    assert len(np.unique(found[1]["log_prob"].round(1))) > 5


def test_output_about_densities(digits, drawn, capsys):
    _, manifest = drawn(digits, "ode", 1, 5, "--log_prob", "--batch_size=3", "--config.likelihood.evaluations=6")
    found, told = read(digits), manifest["log_prob"]
    assert found.keys() == {"samples", "log_prob"}
    assert (found["log_prob"].shape, found["log_prob"].dtype) == ((5,), np.float64)
    assert told["nats"] == pytest.approx(found["log_prob"].mean())
    assert told["nats_stderr"] == pytest.approx(found["log_prob"].std(ddof=1) / math.sqrt(5))
    assert (told["t"], told["trace"], told["prior"]) == (1e-5, "1 rademacher", "standard")
    assert told["solver"] == "adams_pece, 6 evaluations"
    assert told["noise"] == pytest.approx(sde_lib.SDES["vpsde"]().marginal(1e-5).sigma, rel=1e-4)
    assert manifest["options"] == {"solver": "adams_pece", "evaluations": 6, "traces": 0}
    assert (manifest["nfe"], manifest["steps"]) == (6, 1)
    out = capsys.readouterr().out
    assert f"log-density {told['nats']:.3f} +- {told['nats_stderr']:.3f} nats in units of the data" in out
    assert "(adams_pece, 6 evaluations; trace 1 rademacher)" in out
    assert told["check"]["examples"] == 5
    assert f"the solver is {told['check']['solver_error']:.2g} nats off one of {told['check']['against']} on 5" in out
    assert "the samples keep noise of standard deviation 0.001 in units of the network" in out


def test_automatic_evaluations_of_samples_are_in_the_manifest(points, drawn):
    """The dimensions fix the number, so a sample depends on its seed alone; the solver error is for these samples."""
    _, manifest = drawn(points, "ode", 1, 4, "--log_prob")
    assert manifest["options"]["evaluations"] == manifest["nfe"] == 128
    told = manifest["log_prob"]
    assert (told["solver"], told["check"]["examples"]) == ("adams_pece, 128 evaluations", 4)
    assert told["check"]["solver_error"] < 1e-2
    _, tight = drawn(points, "ode", 1, 4, "--log_prob", "--config.likelihood.evaluations=512")
    off = told["nats"] - tight["log_prob"]["nats"]
    assert off == pytest.approx(told["check"]["mean_error"], abs=2e-4)


def test_the_number_of_steps_has_no_effect_on_a_single_solve(digits, drawn):
    drawn(digits, "ode", 1, 2, "--log_prob", "--config.likelihood.evaluations=4")
    expected = read(digits)["log_prob"]
    words = ("--mode=sample", f"--workdir={digits}", "--sampler=ode", "--steps=7", "--num_samples=2", "--log_prob")
    assert command(*words, "--config.likelihood.evaluations=4") == 0
    assert np.array_equal(read(digits)["log_prob"], expected)
    assert not (digits / "samples" / "ode-7").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sampler=heun",), "--log_prob needs the probability flow: add --sampler ode"),
        ((), "--log_prob needs the probability flow: add --sampler ode"),
        (("--sampler=ode", "--config.likelihood.probes=0"), "likelihood.probes 0: need 1 to 1e6"),
        (
            ("--sampler=ode", "--config.likelihood.solver=adams_pec"),
            "unknown solver 'adams_pec'; did you mean 'adams_pece'?",
        ),
        (("--sampler=ode", "--config.likelihood.prior=best"), "unknown prior 'best'; known: matched, standard"),
        (("--sampler=ode", "--config.likelihood.t_min=1e-9"), "likelihood at t = 1e-09: the network was trained on"),
    ],
)
def test_unavailable_densities_are_refused(words, message, digits, capsys):
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert command("--mode=sample", f"--workdir={digits}", "--log_prob", "--num_samples=1", *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_runs_without_a_density_are_refused(digits, tmp_path, monkeypatch, capsys):
    """A consistency model and a classifier."""
    words = ("--mode=sample", "--sampler=ode", "--log_prob", "--num_samples=1")
    experiment, _, path = drawing.load(stored(digits), digits, Options())
    consistent = ConsistencyModel(experiment.network, experiment.sde, 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "load", lambda *args: (experiment, consistent, path))
        assert command(*words, f"--workdir={digits}") == 2
    assert "is a consistency model: it has no density" in capsys.readouterr().err
    config = json.loads((digits / "config.json").read_text())
    config["loss"]["objective"] = {"name": "classification"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert command(*words, f"--workdir={tmp_path}") == 2
    assert "is a classifier, which draws nothing and has no density" in capsys.readouterr().err


def test_densities_of_real_numbers_need_no_dequantization(points, drawn, monkeypatch):
    """The setting that the mode likelihood requires is not needed, because nothing is dequantized here."""
    monkeypatch.setattr(plane, "draw", lambda *args: None)
    drawn(points, "ode", 1, 2, "--log_prob", "--config.likelihood.dequantization=uniform")
    assert np.isfinite(read(points)["log_prob"]).all()
