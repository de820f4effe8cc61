"""Sampling in one call: samples equal to the command's and to the exact flow's, and refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from score_sde import run as command_line
from score_sde import sde_lib
from score_sde.configs.choices import choose
from score_sde.engine import checkpoint
from score_sde.engine.build import build
from score_sde.engine.config import load
from score_sde.engine.drawing import draw_pairs
from score_sde.engine.facts import DataFacts
from score_sde.engine.sampler import make_step, make_times
from score_sde.samplers import STEPS, Noise, draw, trajectory
from score_sde.sde_lib import SDES, Gaussian, GaussianMixture, NonFiniteError, Prediction
from score_sde.sde_lib.consistency import ConsistencyModel

ROOT = Path(__file__).parents[1]
MEAN, STD = torch.tensor([0.5, -0.3]), 0.5


def gaussian_of(mean, std=STD):
    return GaussianMixture(torch.ones(1), mean[None], std**2)


@pytest.mark.parametrize("sampler", ["adams", "pc", "ode"])
def test_samples_equal_the_commands(sampler, digits, monkeypatch):
    """Bit for bit and in as many steps, with a Gaussian's exact denoiser instead of the network."""
    sde, shape = SDES["vpsde"](), (1, 8, 8)
    exact = gaussian_of(torch.linspace(-1, 1, 64).reshape(shape)).denoiser(sde)
    monkeypatch.setattr(sde_lib.Denoiser, "forward", lambda self, x, t, **cond: exact(x, t, **cond))
    words = ("--num_samples=5", "--seed=40", "--batch_size=3", "--config.sample.keep_latents=true")
    assert command_line.main(["run.py", "--mode=sample", f"--workdir={digits}", f"--sampler={sampler}", *words]) == 0
    expected = np.load(digits / "samples" / f"{sampler}-{STEPS[sampler].num_steps}" / "samples.npz")["x0"]
    guess = checkpoint.load_gaussian(checkpoint.find(digits / "checkpoints"), shape)
    assert np.array_equal(draw(exact, sde, shape, range(40, 45), sampler, gaussian=guess), expected)


@pytest.mark.parametrize("sampler", STEPS)
def test_every_sampler_draws_by_its_name_with_the_defaults_of_the_config(sampler):
    """Options, grid and number of steps."""
    config, shape = load("vesde"), (1, 2, 2)
    config.sample.sampler = choose("sample.sampler", sampler)
    experiment = build(config, DataFacts(shape, 17, 1.0, 1.0))
    exact = gaussian_of(torch.zeros(shape)).denoiser(experiment.sde, v=0.5)
    denoise = lambda x, t: exact(x, t)  # noqa: E731, a function without a parameterization
    step, times = make_step(config.sample, experiment), make_times(config.sample, experiment)
    expected = draw_pairs(experiment, denoise, step, times, torch.arange(2))[1]
    assert torch.equal(draw(denoise, experiment.sde, shape, [0, 1], sampler), expected)


@pytest.mark.parametrize("name", ["vpsde", "subvpsde", "ddpm", "edm"])
def test_adams_draws_the_image_of_the_noise_under_the_exact_flow(name):
    """The flow preserves (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2); 14 steps err by less than std / 100."""
    sde = SDES[name](sigma_max=20.0) if name == "edm" else SDES[name]()
    x, z = draw(gaussian_of(MEAN).denoiser(sde), sde, (2,), range(4000)), Noise(range(4000))(torch.empty(4000, 2))
    (first, last) = (sde.marginal(t) for t in (sde.t_max, max(1e-3, sde.t_min)))
    u = (sde.prior_std * z - first.alpha * MEAN) / (first.alpha**2 * STD**2 + first.sigma**2) ** 0.5
    expected = MEAN + last.alpha * STD**2 / (last.alpha**2 * STD**2 + last.sigma**2) ** 0.5 * u
    torch.testing.assert_close(x, expected, rtol=0, atol=0.01 * STD)
    assert (x.mean(0) - MEAN).abs().max() < 4 * STD / 4000**0.5
    assert (x.std(0) - STD).abs().max() < 4 * STD / 8000**0.5


@pytest.mark.parametrize("sampler", ["adams", "pc", "ode"])
def test_a_sample_depends_on_its_seed_and_its_condition_alone(sampler):
    """For two classes, alone and within a batch."""
    sde, means = SDES["vpsde"](), torch.tensor([[-1.0, 0.0], [1.0, 0.5]])

    data = GaussianMixture(torch.ones(2), means, STD**2)
    denoise = data.denoiser(sde)
    seeds, label = [3, 9, 2**40, 3], torch.tensor([0, 1, 1, 1])
    together = draw(denoise, sde, (2,), seeds, sampler, label=label)
    for k, seed in enumerate(seeds):
        assert torch.equal(draw(denoise, sde, (2,), [seed], sampler, label=label[k : k + 1]), together[k : k + 1])
    many = draw(denoise, sde, (2,), range(400), sampler, label=torch.arange(400) % 2)
    assert (many.reshape(200, 2, 2).mean(0) - means).abs().max() < 4 * STD / 200**0.5
    with pytest.raises(ValueError, match="VESDE"):
        draw(data.denoiser(SDES["vesde"]()), sde, (2,), seeds, sampler, label=label)


def test_no_gradient_is_kept_and_no_seed_gives_no_sample():
    sde, weight = SDES["vpsde"](), torch.ones((), requires_grad=True)
    assert not draw(lambda x, t: Prediction(weight * x), sde, (2,), range(3), steps=2).requires_grad
    assert draw(lambda x, t: Prediction(x), sde, (2,), []).shape == (0, 2)


def test_the_first_non_finite_step_of_a_stochastic_sampler_is_named():
    """The search for the step replays the noise of the first run."""
    sde, exact = SDES["vpsde"](), gaussian_of(MEAN).denoiser(SDES["vpsde"]())

    def denoise(x, t):
        return Prediction(torch.where((x[:, :1] > 0.8) & (t < 0.6), torch.nan, exact(x, t).x0))

    noise, times = Noise([7]), torch.linspace(1, 1e-3, 21, dtype=torch.float64)
    x = noise(torch.empty(1, 2))
    states = [x, *trajectory(STEPS["ancestral"](sde), exact, x, times, noise)]
    move = next(k + 1 for k, (x, t) in enumerate(zip(states, times.tolist())) if x[0, 0] > 0.8 and t < 0.6)
    with pytest.raises(NonFiniteError, match=f"the sample of seed 7 is not finite after step {move} of 20, "):
        draw(denoise, sde, (2,), [7], "ancestral", 20)


@pytest.mark.parametrize(
    ("words", "more", "message"),
    [
        (("adam",), {}, r"unknown sampler 'adam'; did you mean 'adams'"),
        (("adams", 0), {}, "num_steps 0: need at least one step"),
        (("ald",), {}, "ald is derived for processes that do not scale the data, .* on VPSDE"),
        (("consistency",), {}, "consistency needs the ends of the probability flow"),
        (("ancestral_learned",), {}, "has learned no variance"),
        (
            (),
            {"label": torch.zeros(2)},
            r"label is a tensor of shape \(2,\): need a tensor with an entry for each of 3",
        ),
        ((), {"step": 10}, "step is 10: need a tensor"),
        (
            (),
            {"gaussian": Gaussian(torch.zeros(3), 1.0)},
            r"gaussian of shape \(3,\): need the shape of a sample, \(2,\)",
        ),
    ],
)
def test_invalid_draws_are_refused(words, more, message):
    sde = SDES["vpsde"]()
    with pytest.raises(ValueError, match=message):
        draw(gaussian_of(MEAN).denoiser(sde), sde, (2,), range(3), *words, **more)


def test_a_consistency_model_is_for_its_own_sampler():
    sde = SDES["edm"](sigma_max=20.0)
    model = ConsistencyModel(lambda x, c_noise: torch.zeros_like(x), sde, STD)
    with pytest.raises(ValueError, match="use --sampler consistency"):
        draw(model, sde, (2,), range(3))
    assert draw(model, sde, (2,), range(3), "consistency", 2).shape == (3, 2)


@pytest.mark.parametrize("page", ["README.md", "docs/control.md"])
def test_the_python_of_a_page_runs(page, capsys):
    """All code blocks in order, with a shorter training."""
    blocks = (ROOT / page).read_text().split("```python\n")[1:]
    found = {}
    exec("".join(block.partition("```")[0] for block in blocks).replace("steps=2_000", "steps=20"), found)
    assert torch.isfinite(found["x"]).all()
    if page == "README.md":
        samples = draw(found["data"].denoiser(found["sde"]), found["sde"], (2,), range(1000))
        assert (samples.mean(0) - found["data"].mean).abs().max() < 4 * samples.std(0).max() / 1000**0.5
        assert capsys.readouterr().out.count("tensor") == 2
