"""Score matching: four losses with one gradient and constant differences; each learns the score of a density."""

import itertools

import pytest
import torch

from score_sde.configs.choices import choose
from score_sde.engine.build import build
from score_sde.engine.config import load
from score_sde.engine.facts import DataFacts
from score_sde.engine.objective import make_objective, make_timestep_sampler
from score_sde.models import NETWORKS
from score_sde.sde_lib import OBJECTIVES, VESDE, WEIGHTS, Denoiser, Prediction, explicit

DIGITS = DataFacts(shape=(1, 8, 8), levels=17, std=0.7, diameter=9.0)
NUM = 3_000
NAMES = ("implicit", "sliced", "sliced_vr")
LEVELS = (-3.0, 0.0, 3.0)


def make(name, sde, weight="sigma2", **options):
    return OBJECTIVES[name](sde, WEIGHTS[weight], **options)


def draws(sde, density, log_snr, num=NUM):
    """x0, eps, t and further normals."""
    generator = torch.Generator().manual_seed(0)
    x0 = density.sample(num, generator)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    t = sde.time(torch.full((num, *[1] * (x0.ndim - 1)), log_snr, dtype=torch.float64))
    return x0, eps, t, lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)


def signs(shape):
    """All 2^D directions of the Rademacher distribution, each for a whole batch, and their number."""
    num = 2 ** torch.Size(shape).numel()
    directions = iter(itertools.product((1.0, -1.0), repeat=torch.Size(shape).numel()))
    return num, lambda like: torch.tensor(next(directions)).to(like).reshape(shape).expand_as(like)


class Wrong:
    """An exact denoiser with an error in a few shapes, whose coefficients differ between examples."""

    def __init__(self, exact, num, size):
        self.exact, self.sde = exact, exact.sde
        self.coefficients = torch.full((num, 4), size, dtype=torch.float64, requires_grad=True)

    def __call__(self, x, t):
        alpha, sigma, _ = self.sde.marginal(t)
        y = x / (alpha**2 + sigma**2) ** 0.5
        shapes = torch.stack([torch.ones_like(y), y, torch.sin(3 * y), y.roll(1, 1)])
        error = (self.coefficients.T.reshape(4, -1, *[1] * (x.ndim - 1)) * shapes).sum(0)
        return Prediction(self.exact(x, t).x0 + sigma / alpha * error)


def is_mean(values, expected):
    """Within four standard errors; (num, ...) each."""
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() < 4 * error + 1e-12).all(), (values.mean(0), expected, error)


# --- one gradient, constant differences between the values ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_values_differ_by_the_known_constants(sde, plane, name):
    for log_snr, weight in zip(LEVELS, ("sigma2", "x0", "likelihood")):
        x0, eps, t, draw = draws(sde, plane, log_snr)
        denoise = Wrong(plane.denoiser(sde), NUM, 0.2)
        losses = {key: make(key, sde, weight)(denoise, x0, eps, t, draw, 0.0).detach() for key in ("denoising", name)}
        w, (alpha, sigma, snr) = WEIGHTS[weight](sde, t[:1]).item(), sde.marginal(t[0].item())
        is_mean(losses["denoising"] - losses[name], w * torch.tensor(-snr).exp())

        x = sde.perturb(x0, eps, t)
        score = denoise.exact.score(x, t)
        fisher = explicit(sde.score(x, denoise(x, t).x0, t), score).detach()
        is_mean(losses[name] - w * sigma**4 / alpha**2 * (fisher - explicit(score, torch.zeros_like(score))), 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradients_equal_those_of_denoising(sde, plane, name):
    for log_snr in LEVELS:
        x0, eps, t, draw = draws(sde, plane, log_snr)
        denoise = Wrong(plane.denoiser(sde), NUM, 0.2)
        found, expected = (
            torch.autograd.grad(make(key, sde)(denoise, x0, eps, t, draw, 0.0).sum(), denoise.coefficients)[0]
            for key in (name, "denoising")
        )
        is_mean(found - expected, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_score_is_the_minimum(sde, plane, name):
    """The slope vanishes in every direction there, and the loss is convex."""
    for log_snr in LEVELS:
        x0, eps, t, draw = draws(sde, plane, log_snr)
        denoise = Wrong(plane.denoiser(sde), NUM, 0.0)
        loss = make(name, sde)(denoise, x0, eps, t, draw, 0.0)
        is_mean(torch.autograd.grad(loss.sum(), denoise.coefficients)[0], 0.0)


@pytest.mark.parametrize("name", ["sliced", "sliced_vr"])
def test_the_mean_over_all_directions_is_the_exact_trace(shaped_mixture, name):
    sde = VESDE()
    x0, eps, t, draw = draws(sde, shaped_mixture, 0.0, num=5)
    denoise = Wrong(shaped_mixture.denoiser(sde), 5, 0.2)
    num, direction = signs(shaped_mixture.shape)
    found = make(name, sde, projections=num)(denoise, x0, eps, t, direction, 0.0)
    torch.testing.assert_close(found, make("implicit", sde)(denoise, x0, eps, t, draw, 0.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probe", ["rademacher", "gauss"])
@pytest.mark.parametrize("name", ["sliced", "sliced_vr"])
def test_projections_are_averaged(plane, name, probe):
    sde = VESDE()
    x0, eps, t, draw = draws(sde, plane, 0.0, num=50)
    denoise, directions = plane.denoiser(sde), [draw(x0) for _ in range(3)]

    def loss(vectors):
        each = iter(vectors)
        return make(name, sde, projections=len(vectors), probe=probe)(denoise, x0, eps, t, lambda like: next(each), 0.0)

    torch.testing.assert_close(loss(directions), torch.stack([loss([v]) for v in directions]).mean(0))


# --- in training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_reach_every_weight(name):
    """Slope of the loss along a direction in the weights of a U-Net with attention, against finite differences."""
    torch.manual_seed(0)
    network = NETWORKS["unet"]((1, 2, 4), channels=4, channel_mult=(1,), attention=(4,)).double()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.eval()
    sde = VESDE()
    x0, eps, t = torch.randn(3, 1, 2, 4).double(), torch.randn(3, 1, 2, 4).double(), torch.full((3, 1, 1, 1), 0.5)
    v, denoise, objective = torch.randn_like(x0), Denoiser(network, sde, "edm", 0.5), make(name, sde)

    def loss():
        return objective(denoise, x0, eps, t.double(), lambda like: v, 0.0).mean()

    loss().backward()
    assert all(p.grad.any() for p in network.parameters())
    direction = [torch.randn_like(p) for p in network.parameters()]
    found = sum((p.grad * d).sum() for p, d in zip(network.parameters(), direction))
    ends = []
    for h in (1e-5, -2e-5):
        for p, d in zip(network.parameters(), direction):
            p.data += h * d
        with torch.no_grad():
            ends.append(loss())
    assert found.item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_without_gradients_has_no_graph(plane, name):
    sde = VESDE()
    x0, eps, t, draw = draws(sde, plane, 0.0, num=4)
    direction = draw(x0)
    denoise = Wrong(plane.denoiser(sde), 4, 0.2)
    trained = make(name, sde)(denoise, x0, eps, t, lambda like: direction, 0.0)
    with torch.no_grad():
        measured = make(name, sde)(denoise, x0, eps, t, lambda like: direction, 1.0)
    assert trained.requires_grad
    assert not measured.requires_grad
    torch.testing.assert_close(measured, trained.detach())


def test_options_are_checked_and_come_from_the_config():
    for options in ({"projections": 0}, {"probe": "signs"}):
        with pytest.raises(ValueError, match=str(next(iter(options.values())))):
            make("sliced", VESDE(), **options)
    config = load("sliced")
    config.loss.objective.projections, config.loss.objective.probe = 3, "gauss"
    objective = make_objective(config, build(config, DIGITS))
    assert (type(objective), objective.projections) == (OBJECTIVES["sliced_vr"], 3)
    assert objective.probe is not OBJECTIVES["sliced_vr"](VESDE(), WEIGHTS["x0"]).probe


def test_one_noise_level_is_the_log_normal_law_without_width(sde):
    config = load("sliced")
    config.loss.timestep_sampler = choose("loss.timestep_sampler", "lognormal", mean=-1.0, std=1e-6)
    t, correction = make_timestep_sampler(config.loss.timestep_sampler)(
        sde, torch.linspace(0, 1 - 2**-24, 100, dtype=torch.float64)
    )
    torch.testing.assert_close(sde.log_snr(t), torch.full_like(t, 2.0), rtol=0, atol=1e-4)
    assert (correction == 1).all()


def test_ncsnv2_follows_from_the_data():
    config = load("ncsnv2")
    experiment = build(config, DIGITS)
    noise = [experiment.sde.marginal(float(level)).sigma for level in range(1, int(experiment.sde.t_max) + 1)]
    assert noise[0] == pytest.approx(config.sde.sigma_min)
    assert noise[-1] == pytest.approx(9.0)
    width = 128**0.5
    assert max(b / a for a, b in itertools.pairwise(noise)) <= width / (width - 3)
    assert experiment.network.conditioning.log_snr is None


# --- the score of a density -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoising", *NAMES])
def test_a_network_learns_the_score(plane, name):
    torch.manual_seed(0)
    sde, num = VESDE(), 256
    network = NETWORKS["mlp"]((2,), width=64, depth=2)
    denoise, objective = Denoiser(network, sde, "edm", 1.0), make(name, sde)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    t = sde.time(torch.full((num, 1), -2 * torch.tensor(0.3).log().item()))
    for _ in range(1500):
        x0 = plane.sample(num).float()
        objective(denoise, x0, torch.randn(num, 2), t, torch.randn_like, 0.0).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    x0, eps, t, _ = draws(sde, plane, -2 * torch.tensor(0.3).double().log().item(), num=4000)
    x = sde.perturb(x0, eps, t).float()
    with torch.no_grad():
        found = denoise.score(x, t.float())
    score = plane.denoiser(sde).score(x, t.float())
    error = explicit(found, score).mean() / explicit(torch.zeros_like(score), score).mean()
    assert error < 0.02
