"""Constraints: projectors, exactly preserved parts, rising times, and SDEdit."""

from itertools import cycle, pairwise

import pytest
import torch
from torch.nn.functional import avg_pool2d

from score_sde.samplers import (
    DDIM,
    GRIDS,
    ODE,
    STEPS,
    Adams,
    Ancestral,
    Brownian,
    Noise,
    PredictorCorrector,
    Step,
    block_means,
    enlarge,
    grey,
    lowpass,
    masked,
    replacement,
    resampled,
    sample,
    sdedit,
    trajectory,
    translate,
)
from score_sde.samplers.predictor_corrector import PREDICTORS
from score_sde.sde_lib import SDES, GaussianMixture, Prediction

SHAPES = {"vector": (3, 6), "signal": (2, 2, 12), "image": (1, 3, 6, 4)}
PROJECTORS = {
    "masked": (lambda shape: masked(normals(*shape[1:]) > 0), SHAPES),
    "masked_each": (lambda shape: masked((normals(*shape) > 0).float()), SHAPES),
    "grey": (lambda shape: grey, ["signal", "image"]),
    "lowpass": (lambda shape: lowpass(2), ["signal", "image"]),
}
PAIRS = [(name, shape) for name, (_, shapes) in PROJECTORS.items() for shape in shapes]


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noises(num, stream=0):
    return Noise(torch.arange(num), stream)


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_projectors_are_orthogonal(name, shape):
    shape = SHAPES[shape]
    project = PROJECTORS[name][0](shape)
    x, y = normals(*shape, seed=1), normals(*shape, seed=2)
    torch.testing.assert_close(project(project(x)), project(x), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close((project(x) * y).sum(), (x * project(y)).sum(), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(project(x), x)


def test_blocks_are_averaged_and_repeated():
    x = normals(2, 3, 6, 4)
    torch.testing.assert_close(block_means(x, 2), avg_pool2d(x, 2))
    assert block_means(normals(2, 3, 6), 3).shape == (2, 3, 2)
    small = normals(2, 3, 3, 2)
    assert torch.equal(enlarge(small, 2)[:, :, ::2, 1::2], small)
    torch.testing.assert_close(block_means(enlarge(small, 4), 4), small)
    assert torch.equal(grey(x)[:, 1], x.mean(1))


@pytest.mark.parametrize(("name", "shape"), PAIRS)
def test_the_known_part_is_replaced_at_the_noise_of_the_state(name, shape):
    shape = SHAPES[shape]
    project = PROJECTORS[name][0](shape)
    x, known, z = (normals(*shape, seed=seed) for seed in (1, 2, 3))
    found = replacement(known, project, lambda like: z)(x, 0.6, 0.8)
    torch.testing.assert_close(project(found), project(0.6 * known + 0.8 * z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found - project(found), x - project(x), rtol=1e-12, atol=1e-12)
    first = replacement(known[:1], project, torch.zeros_like)(x, 0.6, 0.8)
    torch.testing.assert_close(project(first), project(0.6 * known[:1].expand_as(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"consistency"}))
def test_the_known_part_is_exact_at_the_end(name):
    """Bit for bit under a mask, with any step; with the other projectors to rounding."""
    sde, like = SDES["vesde"](), torch.empty(2, 2, 4, 4)
    mixture = GaussianMixture(torch.ones(2), normals(2, 2, 4, 4).float(), 0.1)
    known, mask, noise = normals(2, 2, 4, 4, seed=5).float(), normals(1, 4, 4, seed=6) > 0, noises(2)
    found = sample(
        STEPS[name](sde),
        mixture.denoiser(sde, 0.5),
        sde.prior_std * noise(like),
        GRIDS["log_snr"](sde, 3),
        noise,
        replacement(known, masked(mask), noise),
    )
    assert torch.equal(torch.where(mask, found, 0), torch.where(mask, known, 0))
    assert not (found == known).all()


def test_a_grey_picture_gets_colours_and_a_small_one_pixels(sde):
    """A batch of one gives the same."""
    like = torch.empty(1, 3, 4, 4, dtype=torch.float64)
    mixture = GaussianMixture(torch.ones(1).double(), normals(1, 3, 4, 4), 0.3)
    for project, measure in ((grey, lambda x: x.mean(1)), (lowpass(2), lambda x: block_means(x, 2))):
        known, noise = normals(1, 3, 4, 4, seed=5), noises(1)
        found = sample(
            Ancestral(sde),
            mixture.denoiser(sde),
            sde.prior_std * noise(like),
            GRIDS["log_snr"](sde, 5),
            noise,
            replacement(project(known), project, noise),
        )
        torch.testing.assert_close(measure(found), measure(known), rtol=1e-12, atol=1e-12)
        assert (found - known).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [0, 2])
def test_the_constraint_applies_after_the_corrector(mixture, steps):
    """The constraint acts at time t, before the predictor evaluates the denoiser."""
    sde, seen = SDES["vpsde"](), []

    def constrain(x, alpha, sigma):
        seen.append((alpha, sigma))
        return torch.full_like(x, 0.3)

    step = PredictorCorrector(sde, corrector_steps=steps, constrain=constrain)
    x = step(mixture.denoiser(sde), normals(2, 1), 0.6, 0.5, torch.zeros_like)
    assert seen == [tuple(sde.marginal(0.6)[:2])]
    there = torch.full((2, 1), 0.3, dtype=torch.float64)
    expected = PREDICTORS["reverse_diffusion"](sde)(mixture.denoiser(sde), there, 0.6, 0.5, torch.zeros_like)
    assert torch.equal(x, expected)


# --- times that rise --------------------------------------------------------------------------------------------------


class Told(Step):
    """A step that records its calls and leaves the state unchanged."""

    def __init__(self, sde):
        self.sde, self.told = sde, []

    def reset(self, times):
        self.told.append(("reset", times))

    def __call__(self, denoise, x, t, s, draw):
        self.told.append((t, s))
        return x


@pytest.mark.parametrize(("name", "kind"), list(zip(STEPS, cycle([Noise, Brownian]))))
def test_falling_times_give_one_trajectory(name, kind):
    """The same calls of reset, moves and finish, bit for bit."""
    sde = SDES["vpsde"]()
    mixture = GaussianMixture(torch.ones(2), normals(2, 3).float(), 0.2)
    denoise, times = mixture.denoiser(sde, 0.5), GRIDS["log_snr"](sde, 4)
    found = sample(STEPS[name](sde), denoise, normals(3, 3).float(), times, kind(torch.arange(3)))
    step, draw, x = STEPS[name](sde), kind(torch.arange(3)), normals(3, 3).float()
    step.sde.tabulate(times)
    step.reset(times.tolist())
    moves = draw.moves(4) if kind is Brownian else [draw] * 4
    for t, s, noise in zip(times.tolist(), times.tolist()[1:], moves):
        x = step(denoise, x, t, s, noise)
    assert torch.equal(found, step.finish(denoise, x, times[-1].item(), draw))


def test_rising_times_apply_the_forward_process(sde):
    """Each descending stretch starts with a reset; neither step nor constraint is called on the way up."""
    t = GRIDS["log_snr"](sde, 4).tolist()
    times = torch.tensor([t[0], t[1], t[2], t[0], t[1], t[2], t[3], t[1], t[4]], dtype=torch.float64)
    step, constrained = Told(sde), []

    def constrain(x, alpha, sigma):
        constrained.append((alpha, sigma))
        return x

    x, z = normals(2, 3, seed=1), normals(2, 3, seed=2)
    states = list(trajectory(step, lambda x, t: Prediction(x), x, times, lambda like: z, constrain))
    down = [[t[0], t[1], t[2]], [t[0], t[1], t[2], t[3]], [t[1], t[4]]]
    assert step.told == [entry for run in down for entry in [("reset", run), *pairwise(run)]]
    assert constrained == [*(tuple(sde.marginal(s)[:2]) for run in down for s in run[1:]), (1.0, 0.0)]
    (a, b), (c, d) = sde.transition(t[2], t[0]), sde.transition(t[3], t[1])
    assert len(states) == len(times)
    assert torch.equal(states[2], a * x + b * z)
    assert torch.equal(states[-1], c * (a * x + b * z) + d * z)


@pytest.mark.parametrize("name", sorted(set(STEPS) - {"consistency"}))
def test_steps_do_not_depend_on_the_previous_stretch(name):
    """The last stretch is a trajectory of its own."""
    sde = SDES["vpsde"]()
    mixture = GaussianMixture(torch.ones(2).double(), normals(2, 3), 0.2)
    denoise, times = mixture.denoiser(sde, 0.5), GRIDS["log_snr"](sde, 3)
    states = list(trajectory(STEPS[name](sde), denoise, normals(3, 3), times.repeat(2), torch.ones_like))
    again = sample(STEPS[name](sde), denoise, states[3], times, torch.ones_like)
    assert torch.equal(again, states[-1])


def test_resampled_times_are_those_of_repaint():
    times = torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert torch.equal(resampled(times, 2, 1), times)
    assert resampled(times, 2, 3).tolist() == [9, 7, 5, *[9, 7, 5] * 2, 3, 2, *[5, 3, 2] * 2, 1, 2, 1, 2, 1]
    assert resampled(times, 9, 2).tolist() == times.tolist() * 2
    falls = (resampled(times, 3, 4).diff() < 0).sum()
    assert falls == 4 * 5


@pytest.mark.parametrize("jump", [1, 2, 3])
@pytest.mark.parametrize("grid", ["log_snr", "edm"])
def test_resampling_preserves_the_law(sde, mixture, grid, jump):
    """Mean and standard deviation, within four standard errors and the discretization error."""
    num = 3000
    noise, like = noises(num), torch.empty(num, 1, dtype=torch.float64)
    times = resampled(GRIDS[grid](sde, 16), jump, 2)
    x = sample(Adams(sde), mixture.denoiser(sde), sde.prior_std * noise(like), times, noise)
    std = mixture.covariance.sqrt().item()
    assert (x.mean() - mixture.mean.item()).abs() < 4 * std / num**0.5 + 0.01
    assert (x.std() / std - 1).abs() < 4 / num**0.5 + 0.02


def test_resampling_reduces_the_error_of_replacement():
    """Two entries of correlation 0.95, one known: replacement alone leaves the other too free."""
    sde, num, y = SDES["vpsde"](), 4000, 1.0
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), torch.zeros(1, 2).double(), covariance[None])
    expected, found = mixture.given(torch.eye(2)[:1], torch.tensor([y]), 0.0), []
    assert expected.mean[1].item() == pytest.approx(0.95 * y)
    for repeats in (1, 4):
        noise, like = noises(num), torch.empty(num, 2, dtype=torch.float64)
        known = torch.tensor([[y, 0.0]], dtype=torch.float64)
        times = resampled(GRIDS["log_snr"](sde, 30), 2, repeats)
        constrain = replacement(known, masked(torch.tensor([1, 0])), noise)
        x = sample(Ancestral(sde), mixture.denoiser(sde), sde.prior_std * noise(like), times, noise, constrain)
        assert (x[:, 0] == y).all()
        free = x[:, 1]
        found.append(((free.mean() - 0.95 * y).abs() + (free.var() - expected.covariance[1, 1]).abs()).item())
    assert found[1] < 0.6 * found[0]


# --- editing ----------------------------------------------------------------------------------------------------------


def test_sdedit_adds_noise_and_removes_it(sde, mixture):
    """From much noise a new sample; from little, the example."""
    num = 2000
    denoise, like = mixture.denoiser(sde), torch.empty(num, 1, dtype=torch.float64)
    far, near = GRIDS["log_snr"](sde, 30), GRIDS["log_snr"](sde, 5, start=sde.time(torch.tensor(7.0).double()).item())
    x = torch.full_like(like, 0.5)
    found = sdedit(Adams(sde), denoise, x, far, noises(num))
    std = mixture.covariance.sqrt().item()
    assert (found.mean() - mixture.mean.item()).abs() < 4 * std / num**0.5 + 0.01
    assert (sdedit(Adams(sde), denoise, x, near, noises(num)) - x).abs().max() < 0.25
    noise = noises(num)
    expected = sample(Adams(sde), denoise, sde.perturb(x, noise(x), near[0].item()), near, noise)
    assert torch.equal(sdedit(Adams(sde), denoise, x, near, noises(num)), expected)


def test_sdedit_keeps_the_constrained_part(mixture):
    sde, noise = SDES["vpsde"](), noises(2)
    x = normals(2, 1)
    keep = replacement(x, masked(torch.tensor([True])), noise)
    assert torch.equal(sdedit(DDIM(sde), mixture.denoiser(sde), x, GRIDS["log_snr"](sde, 3), noise, keep), x)


def gaussian(mean, variances):
    mean, variances = torch.tensor([mean]).double(), torch.tensor([variances]).double()
    return GaussianMixture(torch.ones(1).double(), mean, variances)


@pytest.mark.parametrize("pair", [("vpsde", "vpsde"), ("vpsde", "vesde"), ("edm", "ddpm")])
def test_translation_between_gaussians_is_optimal_transport(pair):
    """Between different SDEs, too; and the way back inverts it."""
    one, other = gaussian([1.0, -1.0], [0.3, 0.05]), gaussian([0.0, 2.0], [0.1, 0.4])
    here, there = (
        (ODE(sde, rtol=1e-8, atol=1e-8), mixture.denoiser(sde))
        for sde, mixture in ((SDES[pair[0]](), one), (SDES[pair[1]](), other))
    )
    x = one.sample(5, torch.Generator().manual_seed(0))
    moved = translate(*here, *there, x)
    expected = other.means + (other.variances / one.variances).sqrt() * (x - one.means)
    torch.testing.assert_close(moved, expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(translate(*there, *here, moved), x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(translate(*here, *here, x), x, rtol=1e-5, atol=1e-5)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: masked(torch.tensor([0.0, 0.5])), "mask with values from 0 to 0.5: need 0 and 1"),
        (
            lambda x: masked(torch.ones(3, 3))(x),
            r"mask has shape \(3, 3\), .* to states \(2, 3, 4, 4\)",
        ),
        (lambda x: masked(torch.ones(1, 2, 3, 4, 4))(x), "does not broadcast to states"),
        (lambda x: replacement(x[:, :, :2], grey, torch.zeros_like)(x, 1.0, 0.0), "the known example has shape"),
        (
            lambda x: replacement(x.repeat(2, 1, 1, 1), grey, torch.zeros_like)(x, 1.0, 0.0),
            "does not broadcast to states",
        ),
        (
            lambda x: replacement(x, lambda x: x.mean(1), torch.zeros_like)(x, 1.0, 0.0),
            r"shape \(2, 4, 4\) for \(2, 3",
        ),
        (lambda x: lowpass(3)(x), r"shape \(2, 3, 4, 4\): need \(B, C, \*\) with sides that 3 divides"),
        (lambda x: lowpass(0)(x), "that 0 divides"),
        (lambda x: block_means(x[:, :, 0, 0], 2), "need"),
        (lambda x: resampled(torch.tensor([1.0, 0.5]), 0, 2), "jump 0, repeats 2: need 1 or more"),
        (lambda x: resampled(torch.tensor([1.0, 0.5]), 1, 0), "jump 1, repeats 0"),
    ],
)
def test_invalid_arguments_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(normals(2, 3, 4, 4))
