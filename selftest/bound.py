"""Bounds on the likelihood against closed forms; with the exact denoiser of Gaussian data they equal the density."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from score_sde.samplers import LearnedVariance
from score_sde.sde_lib import (
    SDE,
    SDES,
    WEIGHTS,
    Bound,
    Denoise,
    Discrete,
    Gaussian,
    GaussianMixture,
    Hybrid,
    Prediction,
    ddpm,
    diffusion_bound,
    iddpm,
    variational_bound,
)
from score_sde.sde_lib.bound import decoder_term, decoder_time, kl, log_prob_bins, step_bound
from score_sde.sde_lib.denoiser import CHAIN_PARAMETERIZATIONS
from score_sde.sde_lib.process import Time
from score_sde.selftest.rows import Row, Setting, distance, exactly, relative, worst

MEAN, STD, WIDTH = 0.5, 0.6, 0.25
CHAINS: dict[str, Callable[[], Discrete]] = {"ddpm": lambda: ddpm(40, 1e-3, 0.3), "iddpm": lambda: iddpm(40)}


def check(setting: Setting) -> Iterator[Row]:
    """Checks reverse steps, KL divergences, bin masses, bounds in discrete and continuous time, and objectives."""
    found = worst(stride(make(), setting) for make in SDES.values())
    yield Row("learned variance: mean and variance after one long step, Gaussian data", found, 1e4 * setting.rounding)
    yield Row("KL divergence of two normals", divergence(setting), 100 * setting.rounding)
    yield Row("bin masses add up to 1", distance(masses(setting), 1.0), 100 * setting.rounding)
    yield Row("bin masses far from the mean, in nats", far(setting), 1e4 * setting.rounding)
    for name, make in CHAINS.items():
        yield Row(f"{name}: a term is the weighted error of eps", eps_form(make(), setting), 1e4 * setting.rounding)
        yield Row(f"{name}: bound of Gaussian data, in nats", whole(make(), setting), 1e4 * setting.rounding)
        found = objectives(make(), setting)
        yield Row(f"{name}: objectives bound and hybrid against their terms", found, 100 * setting.rounding)
        found = from_mean(make(), setting)
        yield Row(f"{name}: x0 from the posterior's mean", found, 1e4 * setting.rounding)
    found = worst(matched(make(), setting) for make in SDES.values())
    yield Row("continuous: Gaussian data, exact moments, any noise, in nats", found, 1e4 * setting.rounding)
    yield Row("continuous: Gaussian data, wrong moments, in nats", mismatched(setting), 2e-4)
    yield Row("continuous: decoders of discrete and real-valued data, in nats", decoders(setting), 1e-6)
    found = worst(decoding_time(make()) for make in SDES.values())
    yield Row("continuous: decoder time, relative to noise of 0.3 bin widths", found, 1e-9)


def stride(sde: SDE, setting: Setting) -> float:
    """Returns the error of mean and variance after one step with the exact denoiser and v, relative to the marginal."""
    late, early = sde.time(torch.tensor([-2.0, 1.0], dtype=torch.float64)).tolist()
    (a, b, _), (c, d, _) = sde.marginal(late), sde.marginal(early)
    x, z = setting.tensor([[0.0], [1.0], [0.0]]), setting.tensor([[0.0], [0.0], [1.0]])
    states = LearnedVariance(sde)(exact(sde, late, early, setting), x, late, early, lambda like: z)
    offset, at_one, noisy = exactly(states).flatten().tolist()
    slope, std = at_one - offset, noisy - offset
    found = [slope * a * MEAN + offset, slope**2 * ((a * STD) ** 2 + b**2) + std**2]
    return relative(found, [c * MEAN, (c * STD) ** 2 + d**2])


def exact(sde: SDE, t: float, s: float, setting: Setting) -> Denoise:
    """Returns the denoiser of N(MEAN, STD^2) with the v that makes the reverse step from t to s exact.

    The exact variance is the posterior variance plus (alpha_s b^2 / sigma_t^2)^2 Var[x0 | x_t]. If s is the data time,
    the posterior variance is 0; the lower bound is then the posterior variance of level 2.
    """
    (a, b, _), (c, d, _) = sde.marginal(t), sde.marginal(s)
    forward = b**2 - (a / c * d) ** 2
    unknown = (c * forward / b**2 * STD * b) ** 2 / ((a * STD) ** 2 + b**2)
    posterior = forward * d**2 / b**2
    low = posterior if d > 0 else sde.transition(1, 2)[1] ** 2 * (sde.marginal(1).sigma / sde.marginal(2).sigma) ** 2
    v = math.log((posterior + unknown) / low) / math.log(forward / low)
    gaussian = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN]]), STD**2).denoiser(sde)

    def denoise(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        return Prediction(gaussian(x, t).x0, torch.full_like(x, v))

    return denoise


def divergence(setting: Setting) -> float:
    """Returns the error of ``kl`` against torch's."""
    mean1, mean2 = setting.normals(2, 20)
    std1, std2 = setting.normals(2, 20, seed=1).exp()
    first, second = (torch.distributions.Normal(exactly(m), exactly(s)) for m, s in ((mean1, std1), (mean2, std2)))
    return relative(kl(mean1, std1, mean2, std2), torch.distributions.kl_divergence(first, second))


def masses(setting: Setting) -> Tensor:
    """Returns the sums over the eight bins of [-1, 1], for normals inside and outside, wide and narrow."""
    centres = setting.tensor(torch.arange(8) * WIDTH + WIDTH / 2 - 1)
    means, stds = setting.tensor([[-3.0], [0.0], [0.3], [2.0]]), setting.tensor([[0.01], [0.1], [1.0], [3.0]])
    return log_prob_bins(centres, means, stds, WIDTH).exp().sum(1)


def far(setting: Setting) -> float:
    """Returns the relative error of the log-mass of a bin 20 standard deviations from the mean, on either side."""
    near, end = torch.special.log_ndtr(exactly([-20.0, -22.5]))
    expected = near + torch.log1p(-torch.exp(end - near))
    x0 = setting.tensor([2.125, -2.125])
    return relative(log_prob_bins(x0, torch.zeros_like(x0), 0.1, WIDTH, edge=10.0), expected.expand(2))


def eps_form(chain: Discrete, setting: Setting) -> float:
    """Returns the relative error against beta^2 / (2 std^2 (1 - beta) sigma^2) |eps - eps_hat|^2.

    Reference: Ho, Jain, Abbeel, 2020, eq. 12.
    """
    t = torch.tensor([2.0, 11.0, 25.0, 38.0], dtype=torch.float64)[:, None]
    square, earlier = chain.marginal(t).alpha ** 2, chain.marginal(t - 1).alpha ** 2
    beta = 1 - square / earlier
    variance = beta * (1 - earlier) / (1 - square)
    x0, found, eps = setting.normals(3, 4, 3)
    x = chain.perturb(x0, eps, setting.tensor(t))
    x0_hat = chain.x0(x, found, setting.tensor(t))
    expected = beta**2 / (2 * variance * (1 - beta) * (1 - square)) * exactly(eps - found).square()
    terms = [
        step_bound(chain, Prediction(x0_hat[i : i + 1]), x0[i : i + 1], x[i : i + 1], level, 0.0, 0.0)
        for i, level in enumerate(t.flatten().tolist())
    ]
    return relative(torch.cat(terms), expected.sum(1))


def whole(chain: Discrete, setting: Setting) -> float:
    """Returns the error against -log p(x0) + KL(q(x_N | x_0) || prior) - KL(q(x_N | x_0) || q(x_N)).

    Three quadrature points give the exact mean over the noise of the square of a normal.
    """
    x0, nodes = (
        torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64),
        math.sqrt(3) * torch.tensor([-1.0, 0.0, 1.0]).double(),
    )
    eps, weights = setting.tensor(nodes.repeat(3)[:, None]), torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64) / 6

    def denoise(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        return exact(chain, float(t), float(t) - 1, setting)(x, t)

    x = setting.tensor(x0.repeat_interleave(3)[:, None])
    found = variational_bound(chain, denoise, x, lambda like: eps, 0.0, 0.0)
    alpha, sigma, _ = chain.marginal(chain.t_max)
    moments = ((0.0, 1.0), (alpha * MEAN, math.hypot(alpha * STD, sigma)), (MEAN, STD))
    prior, last, data = (torch.distributions.Normal(exactly(mean), exactly(std)) for mean, std in moments)
    end = torch.distributions.Normal(alpha * x0, sigma)
    to_prior, to_last = (torch.distributions.kl_divergence(end, other) for other in (prior, last))
    return distance(exactly(found.nats).reshape(3, 3) @ weights, to_prior - to_last - data.log_prob(x0))


def objectives(chain: Discrete, setting: Setting) -> float:
    """Returns the largest relative error of both objectives.

    bound = N L_{t-1} / (D log 2),    hybrid = |eps_hat - eps|^2 / D + bound / 1000
    """
    t = setting.tensor([[1.0], [2.0], [17.0], [40.0]])
    x0, eps, guess = setting.normals(3, 4, 3)
    prediction = Prediction(guess, torch.sigmoid(setting.normals(4, 3, seed=1)))
    x = chain.perturb(x0, eps, t)
    bits = 40 / (3 * math.log(2)) * exactly(step_bound(chain, prediction, x0, x, t, 0.0, WIDTH))
    simple = exactly(chain.eps(x, guess, t) - eps).square().mean(1)

    def denoise(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        return prediction

    bound = Bound(chain, bin_width=WIDTH)(denoise, x0, eps, t, torch.zeros_like, 0.0)
    hybrid = Hybrid(chain, WEIGHTS["simple"], bin_width=WIDTH)(denoise, x0, eps, t, torch.zeros_like, 0.0)
    return max(relative(bound, bits), relative(hybrid, simple + bits / 1000))


def from_mean(chain: Discrete, setting: Setting) -> float:
    """Returns the error of x0 recovered from alpha_s beta / sigma_t^2 x0 + sqrt(1 - beta) sigma_s^2 / sigma_t^2 x.

    Reference: Ho, Jain, Abbeel, 2020, eq. 7.
    """
    t = torch.tensor([2.0, 11.0, 25.0], dtype=torch.float64)[:, None]
    late, early = chain.marginal(t), chain.marginal(t - 1)
    x0, x = exactly(setting.normals(3, 2)), exactly(setting.normals(3, 2, seed=1))
    beta = 1 - (late.alpha / early.alpha) ** 2
    mean = (early.alpha * beta * x0 + torch.sqrt(1 - beta) * early.sigma**2 * x) / late.sigma**2
    times = setting.tensor(t)
    skip, out = CHAIN_PARAMETERIZATIONS["mean"](chain, times, chain.marginal(times), STD)
    return distance(exactly(skip) * x + exactly(out) * mean, x0)


def matched(sde: SDE, setting: Setting) -> float:
    """Returns the error of diffusion and decoder terms from log-SNR 6, with three evaluations and exact moments.

    The data have two dimensions of different variance.
    """
    mean, variances, eps = setting.tensor([0.5, -0.3]), setting.tensor([0.04, 0.36]), setting.normals(5, 2, seed=1)
    data = GaussianMixture(setting.tensor([1.0]), mean[None], variances)
    gaussian = Gaussian(mean, 0.04, variances[1:], setting.tensor([[0.0], [1.0]]))
    x0, t = setting.normals(5, 2), sde.time(torch.tensor(6.0, dtype=torch.float64)).item()
    u = torch.tensor([[0.1, 0.5, 0.8]]).expand(5, -1)
    found = diffusion_bound(sde, data.denoiser(sde), x0, gaussian, u, lambda like: eps, 0.0, t)
    return distance(found.diffusion.sum(1) + found.decoder, integral(sde, t, x0, mean, variances))


def mismatched(setting: Setting) -> float:
    """Returns the same error for N(MEAN, STD^2) with wrong moments, averaged over u and the noise.

    Three quadrature points integrate the square over the noise exactly.
    """
    sde, num = SDES["vpsde"](), 256
    data = GaussianMixture(setting.tensor([1.0]), setting.tensor([[MEAN]]), STD**2)
    x0, nodes = setting.tensor([[-1.0], [0.9]]), math.sqrt(3) * torch.tensor([-1.0, 0.0, 1.0]).double()
    t, eps = sde.time(torch.tensor(6.0, dtype=torch.float64)).item(), setting.tensor(nodes.repeat(2)[:, None])
    u, rows = ((torch.arange(num) + 0.5) / num).expand(6, -1), x0.repeat_interleave(3, 0)
    gaussian = Gaussian(setting.tensor([-0.4]), 2.0)
    found = diffusion_bound(sde, data.denoiser(sde), rows, gaussian, u, lambda like: eps, 0.0, t)
    mean = exactly(found.diffusion.sum(1) + found.decoder).reshape(2, 3) @ torch.tensor([1.0, 4.0, 1.0]).double() / 6
    return distance(mean, integral(sde, t, x0, setting.tensor([MEAN]), setting.tensor([STD**2])))


def integral(sde: SDE, t: float, x0: Tensor, mean: Tensor, variances: Tensor) -> Tensor:
    """Returns the sum of diffusion and decoder terms in closed form, with s = (sigma / alpha)^2 at t and at t_max."""
    v, square = exactly(variances), exactly(x0 - mean).square()
    first, last = ((sde.marginal(end).sigma / sde.marginal(end).alpha) ** 2 for end in (t, sde.t_max))
    ends = [0.5 * (square / (v + s) + torch.log(1 + v / s) - v / (v + s)) for s in (first, last)]
    return (ends[0] - ends[1] + 0.5 * math.log(2 * math.pi * math.e * first)).sum(1)


def decoders(setting: Setting) -> float:
    """Returns the error for levels 0, 3 and 7 of eight against a fine sum over the noise, and for real values."""
    centres, z = torch.arange(8).double() * WIDTH + WIDTH / 2 - 1, torch.linspace(-10, 10, 4001, dtype=torch.float64)
    steps = torch.distributions.Normal(0.0, 1.0).log_prob(z).exp() * (z[1] - z[0])
    errors = []
    for ratio in (0.05, 0.1, 1.0):
        x0 = centres[[0, 3, 7]]
        log_p = torch.distributions.Normal(centres, ratio).log_prob((x0[:, None] + ratio * z)[..., None])
        expected = (torch.logsumexp(log_p, 2) - log_p[[0, 1, 2], :, [0, 3, 7]]) @ steps
        errors.append(distance(decoder_term(setting.tensor(x0)[:, None], ratio, WIDTH), expected))
    entropy = 2 * torch.distributions.Normal(0.0, 0.1).entropy()
    return worst([*errors, distance(decoder_term(setting.normals(1, 2), 0.1, 0.0), entropy)])


def decoding_time(sde: SDE) -> float:
    """Returns the error of the noise at the decoder time for bins of this width, and of t_min for real values."""
    t = decoder_time(sde, WIDTH)
    return max(
        relative(sde.marginal(t).sigma / sde.marginal(t).alpha, 0.3 * WIDTH),
        relative(decoder_time(sde, 0.0), sde.t_min),
    )
