"""Variational bounds on the negative log-likelihood, as a sum over levels or as an integral over the log-SNR l.

    -log p(x_0) <= KL(q(x_T | x_0) || prior) + diffusion - log p(x_0 | x_e),    e the earliest time of the bound

    discrete time:    diffusion = sum over t = 2, ..., N of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)),    e = 1
    continuous time:  diffusion = 1/2 integral from l_T to l_e of exp(l) |x_0 - x0_hat(x_t)|^2 dl

The three terms are named prior, diffusion and decoder. Each is an expectation over x_t ~ q(x_t | x_0).

References: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, eq. 5. arXiv:2006.11239; Kingma,
Salimans, Poole, Ho, "Variational Diffusion Models", 2021, eq. 11 to 15. arXiv:2107.00630; Guo, Shamai, Verdu, "Mutual
information and minimum mean-square error in Gaussian channels", 2005; Kong, Brekelmans, Ver Steeg,
"Information-Theoretic Diffusion", 2023. arXiv:2302.03792
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib.denoiser import Denoise, Estimate, Prediction, as_denoiser
from score_sde.sde_lib.discrete import Discrete
from score_sde.sde_lib.gaussian import Gaussian
from score_sde.sde_lib.losses import Weight
from score_sde.sde_lib.nodes import logistic_uniform
from score_sde.sde_lib.objective import Denoising, Objective
from score_sde.sde_lib.process import SDE, Draw, Time, check_state, reverse_std

DECODER_NOISE = 0.3
"""sigma / alpha at which levels are decoded, in units of their width. For eight networks on the digits the bound is
lowest between 0.28 and 0.35: with more noise the network is better than the decoder, with less noise it is worse."""


def kl(mean1: Tensor, std1: Time, mean2: Tensor | float, std2: Time) -> Tensor:
    """KL(N(mean1, std1^2) || N(mean2, std2^2)) in nats, elementwise; 0 only for equal distributions.

        (r^2 - 1 - log r^2 + (mean1 - mean2)^2 / std2^2) / 2,    r = std1 / std2

    Shapes: all arguments broadcast to the result.
    """
    log_ratio = torch.log(torch.as_tensor(std1 / std2, dtype=mean1.dtype))
    return 0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio + ((mean1 - mean2) / std2) ** 2)


def log_prob_bins(x0: Tensor, mean: Tensor, std: Time, bin_width: float, edge: float = 1.0) -> Tensor:
    """Log-probability of the bin around x0 under N(mean, std^2), in nats, elementwise.

        log(Phi((x0 + w/2 - mean) / std) - Phi((x0 - w/2 - mean) / std))

    The bins fill [-edge, edge], and the outer two extend to infinity, so the probabilities of all bins sum to 1. The
    result is accurate at any distance of the bin from the mean.

    Args:
        x0: centres of bins.
        std: positive.
        bin_width: w, positive.
        edge: outer edge of the last bin, in units of x0: 1 for the codec ``pixels``, 256/255 for 256 levels from -1 to
            1.
    Shapes: all broadcast to the result.
    Reference: Ho, Jain, Abbeel, 2020, eq. 13.
    """
    below = x0 < mean  # else mirrored, so that the tail has the small probability
    distance, half = torch.where(below, mean - x0, x0 - mean), 0.5 * bin_width
    first, last = x0 < bin_width - edge, x0 > edge - bin_width
    near = torch.where(torch.where(below, last, first), math.inf, (half - distance) / std)
    far = torch.where(torch.where(below, first, last), -math.inf, (-half - distance) / std)
    within: Tensor = torch.special.log_ndtr(near)
    return within + torch.log(-torch.expm1(torch.special.log_ndtr(far) - within))


def log_prob_data(x0: Tensor, mean: Tensor, std: Time, bin_width: float, low: float = -1.0) -> Tensor:
    """Log-likelihood of the decoder N(x0; mean, std^2), elementwise: of a bin, or a density for real-valued data.

    The bins fill [low, 1].
    """
    if bin_width > 0:
        middle = 0.5 * (1 + low)
        return log_prob_bins(x0 - middle, mean - middle, std, bin_width, edge=1 - middle)
    std = torch.as_tensor(std, dtype=x0.dtype)
    return -0.5 * ((x0 - mean) / std) ** 2 - torch.log(math.sqrt(2 * math.pi) * std)


def prior_term(sde: SDE, x0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || prior) in nats; its mean bounds the divergence of q(x_T) from the prior.

        sum over dimensions of (alpha^2 x0^2 + sigma^2) / (2 s^2) - 1/2 - log(sigma / s),    s = prior_std

    Shapes: x0 (B, *); returns (B,).
    Reference: Ho, Jain, Abbeel, 2020, eq. 5, L_T.
    """
    alpha, sigma, _ = sde.marginal(sde.t_max)
    return kl(alpha * x0, sigma, 0.0, sde.prior_std).flatten(1).sum(1)


def prior_divergence(sde: SDE, gaussian: Gaussian) -> float:
    """KL(q(x_T) || prior) in nats for Gaussian data N(mean, C): the mismatch of q(x_T) and the prior of samples.

        (alpha^2 |mean|^2 + tr V) / (2 s^2) - D / 2 - log det(V / s^2) / 2,
        V = alpha^2 C + sigma^2,  s = prior_std

    It is 0 if no signal is left at t_max, and at most the mean of ``prior_term``.
    """
    alpha, sigma, _ = sde.marginal(sde.t_max)

    def excess(variance: Tensor) -> Tensor:
        ratio = (alpha**2 * variance + sigma**2) / sde.prior_std**2
        return ratio - 1 - torch.log(ratio)

    offset = (alpha / sde.prior_std) ** 2 * gaussian.mean.double().square().sum().item()
    return 0.5 * (offset + gaussian.trace(excess).item())


def step_bound(
    sde: SDE,
    prediction: Prediction,
    x0: Tensor,
    x: Tensor,
    t: Time,
    v: float | Tensor,
    bin_width: float,
    low: float = -1.0,
) -> Tensor:
    """Term of the step from level t to t - 1 in nats: KL(q(x_{t-1} | x_t, x_0) || p), or the decoder for t = 1.

    The posterior of level 1 has zero variance; for the interpolation of ``SDE.reverse`` it takes the variance of level
    2. With the exact x0 and v of Gaussian data, the terms and ``prior_term`` sum to -log p(x_0), up to the mismatch of
    the prior.

    Args:
        prediction: prediction of x_0 from x.
        v: interpolation weight for predictions without one.
        bin_width: width of a level of the data, 0 for real-valued data.
        low: lower end of the levels; the upper end is 1.
    Shapes: x0, x (B, *); t a whole level, a number or (B, 1, ..., 1); returns (B,).
    Reference: Ho, Jain, Abbeel, 2020, eq. 5 to 8; Nichol, Dhariwal, 2021, section 3.1.
    """
    v = v if prediction.v is None else prediction.v
    second = t.clamp(min=2) if isinstance(t, Tensor) else max(t, 2)
    truth, _ = sde.bridge(x, x0, t, t - 1, eta=1.0)
    mean, _ = sde.bridge(x, prediction.x0, t, t - 1, eta=1.0)
    _, posterior = sde.bridge(x, x0, second, second - 1, eta=1.0)
    std = reverse_std(posterior, sde.transition(t - 1, t)[1], v)
    moves = torch.as_tensor(t > 1, device=x.device)
    terms = torch.where(moves, kl(truth, posterior, mean, std), -log_prob_data(x0, mean, std, bin_width, low))
    return terms.flatten(1).sum(1)


class VariationalBound(NamedTuple):
    """Terms of the bound of each example, in nats.

    prior: (B,), ``prior_term``.
    diffusion: (B, M), from the data to the noise: ``step_bound`` of the levels 2, ..., N in discrete time, or M pieces
        of the integral.
    decoder: (B,), ``step_bound`` of level 1, or ``decoder_term``.
    log_snr: (M + 1,) float64, log-SNR of the levels 1, ..., N, or of the ends of the pieces.
    distortion: (B, N), root mean square of x0_hat - x0 at each evaluation, in units of x0: at each level, or once in
        each piece.
    """

    prior: Tensor
    diffusion: Tensor
    decoder: Tensor
    log_snr: Tensor
    distortion: Tensor

    @property
    def levels(self) -> Tensor:
        """Decoder and diffusion terms, (B, M + 1): in discrete time, the terms of the levels 1, ..., N."""
        return torch.cat([self.decoder[:, None], self.diffusion], 1)

    @property
    def nats(self) -> Tensor:
        """Bound on -log p(x_0), (B,)."""
        return self.prior + self.levels.sum(1)


def variational_bound(
    sde: Discrete,
    denoise: Estimate,
    x0: Tensor,
    draw: Draw,
    v: float,
    bin_width: float,
    low: float = -1.0,
    **cond: Tensor,
) -> VariationalBound:
    """All N terms of the bound of a discrete-time process, each with a new x_t: N evaluations.

    The expectation is at least -log p(x_0), with p the distribution of ancestral samples over all levels. Its mean over
    the data is therefore at least their entropy.

    Args:
        draw: source of standard normals, called once for each level from 1 to N.
        v, bin_width, low: as ``step_bound``.
    Shapes: x0 (B, *).
    Raises: ValueError unless sde is a discrete-time process.
    Reference: Ho, Jain, Abbeel, 2020, eq. 5, and section 4.3 for rate and distortion.
    """
    check_state(x0)
    chain, terms, distortion = as_chain(sde), [], []
    denoise = as_denoiser(denoise, chain)
    for t in range(1, int(chain.t_max) + 1):
        x = chain.perturb(x0, draw(x0), t)
        prediction = denoise(x, t, **cond)
        terms.append(step_bound(chain, prediction, x0, x, t, v, bin_width, low))
        distortion.append(_rms(prediction.x0 - x0))
    log_snr = chain.log_snr(torch.arange(1, len(terms) + 1, dtype=torch.float64))
    decoder, *moves = terms
    return VariationalBound(prior_term(chain, x0), torch.stack(moves, 1), decoder, log_snr, torch.stack(distortion, 1))


@torch.no_grad()
def diffusion_bound(
    sde: SDE,
    denoise: Estimate,
    x0: Tensor,
    gaussian: Gaussian,
    u: Tensor,
    draw: Draw,
    bin_width: float,
    t: float | None = None,
    low: float = -1.0,
    **cond: Tensor,
) -> VariationalBound:
    """The bound in continuous time, with one evaluation in each of N pieces of the range from data to noise.

        diffusion = integral over log r of E|x_0 - x0_hat|^2 / r^2,    r = sigma / alpha
                  = E[d log r / du (|x_0 - x0_hat|^2 - |x_0 - guess|^2) / r^2] + the integral for the guess

    The pieces have equal probability under ``nodes.logistic_uniform``. The guess is the linear denoiser of N(mean, C)
    at the same x_t, a control variate with a known integral. The bound is unbiased for every Gaussian, and has no
    variance if x0_hat equals the guess. With the exact x0_hat its expectation is -log p(x_0) for every x_0, up to the
    mismatch of the prior and the decoder.

    Args:
        gaussian: N(mean, C), in the dtype and on the device of x0.
        u: positions, u[:, i] in [i / N, (i + 1) / N); the bound is unbiased if they are uniform there.
        draw: source of standard normals, called once for each of the N evaluations.
        bin_width: width of a level of the data, 0 for real-valued data.
        t: time of the decoder, default ``decoder_time``, at least sde.t_min.
        low: lower end of the levels; the upper end is 1.
    Shapes: x0 (B, *), u (B, N).
    Raises: ValueError for a t below sde.t_min, the earliest time of training.
    Reference: Kingma, Salimans, Poole, Ho, 2021, eq. 15; Kong, Brekelmans, Ver Steeg, 2023, for the Gaussian part.
    """
    check_state(x0)
    denoise = as_denoiser(denoise, sde)
    t = decoder_time(sde, bin_width) if t is None else t
    if not sde.t_min <= t < sde.t_max:
        raise ValueError(f"decoder at t = {t}: the network was trained on [{sde.t_min}, {sde.t_max}]")
    num, like = u.shape[1], (-1, *[1] * (x0.ndim - 1))
    near, far = (sde.ratio(end) for end in (t, sde.t_max))
    ratios, rises = logistic_uniform(near, far, u.double().cpu().numpy(), gaussian.std)
    times = sde.time_of_ratio(torch.from_numpy(ratios)).clamp(t, sde.t_max).to(x0)
    borders, _ = logistic_uniform(near, far, np.arange(num + 1) / num, gaussian.std)
    expected = torch.stack([_guess_error(gaussian, x0, ratio) for ratio in borders], 1).diff(dim=1)
    surplus, distortion = [], []
    for time in times.unbind(1):
        time = time.reshape(like)
        alpha, _, log_snr = sde.marginal(time)
        x = sde.perturb(x0, draw(x0), time)
        found = denoise(x, time, **cond).x0
        guess = gaussian.posterior_mean(x / alpha, torch.exp(-0.5 * log_snr).flatten(1))
        error = ((guess - found) * (2 * x0 - found - guess)).flatten(1).sum(1)  # |x0 - found|^2 - |x0 - guess|^2
        surplus.append(torch.exp(log_snr).flatten() * error)
        distortion.append(_rms(found - x0))
    diffusion = torch.from_numpy(rises / num).to(x0) * torch.stack(surplus, 1) + expected
    return VariationalBound(
        prior_term(sde, x0),
        diffusion,
        decoder_term(x0, near, bin_width, low),
        -2 * torch.from_numpy(np.log(borders)),
        torch.stack(distortion, 1),
    )


def _guess_error(gaussian: Gaussian, x0: Tensor, ratio: float) -> Tensor:
    """Antiderivative in log r of E|x_0 - guess|^2 / r^2 for the linear denoiser of N(mean, C); (B,).

    In a direction of variance v, with z the offset of x_0 from the mean and s = r^2:

        integral of (s z^2 + v^2) / (v + s)^2 ds / (2 s) = (v / (v + s) - log(1 + v / s) - z^2 / (v + s)) / 2
    """
    volume = x0.shape[1:].numel() * math.log(ratio) - gaussian.log_volume(ratio)
    known = 0.5 * gaussian.trace(lambda v: v / (v + ratio**2)).item()
    return volume + known - 0.5 * gaussian.whiten(x0, ratio).flatten(1).square().sum(1)


def decoder_time(sde: SDE, bin_width: float) -> float:
    """Time of the decoder: sigma / alpha is ``DECODER_NOISE`` level widths there, and the time is at least t_min.

    For real-valued data, bin_width 0, it is t_min.
    """
    if bin_width == 0:
        return sde.t_min
    return max(sde.time_of_ratio(DECODER_NOISE * bin_width), sde.t_min)


def decoder_term(x0: Tensor, ratio: float, bin_width: float, low: float = -1.0) -> Tensor:
    """E[-log p(x_0 | x_e)] in nats for the decoder without a network, r = sigma / alpha; (B,).

        levels:  p(x_0 | y) proportional to N(y; x_0, r^2) over the centres of all bins of [low, 1], elementwise
        real:    p(x_0 | y) = N(x_0; y, r^2), with the expectation D/2 log(2 pi e r^2)

    Args:
        bin_width: width of a level of the data, 0 for real-valued data.
    Shapes: x0 (B, *).
    Reference: Kingma, Salimans, Poole, Ho, 2021, section 3.3.
    """
    if bin_width == 0:
        return x0.new_full((len(x0),), 0.5 * x0.shape[1:].numel() * math.log(2 * math.pi * math.e * ratio**2))
    centres = (torch.arange(round((1 - low) / bin_width), dtype=torch.float64) + 0.5) * bin_width + low
    away = (centres[:, None] - centres) / ratio
    eps = torch.linspace(-7, 7, 71, dtype=torch.float64)  # the trapezoidal rule has an error of 1e-9
    nats = torch.stack([torch.logsumexp(-away * (0.5 * away + z), 1) for z in eps], 1) @ torch.softmax(-0.5 * eps**2, 0)
    return nats.to(x0)[((x0 - low) / bin_width - 0.5).round().long()].flatten(1).sum(1)


def _rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()


class Bound(Objective[Denoise]):
    """The variational bound, estimated from one level: N L_{t-1} / (D log 2), in bits per dimension.

    The mean over uniform levels is the bound without its prior term, which does not depend on the network.

    Args:
        bin_width: width of a level of the data, 0 for real-valued data.
        v: interpolation weight for networks that learn none: 0 posterior, 1 forward.
        low: lower end of the levels; the upper end is 1.
    Raises: ValueError unless sde is a discrete-time process.
    Reference: Ho, Jain, Abbeel, 2020, eq. 5; L_vlb of Nichol, Dhariwal, 2021, section 2.
    """

    def __init__(self, sde: SDE, bin_width: float, v: float = 0.0, low: float = -1.0) -> None:
        super().__init__(as_chain(sde))
        self.bin_width, self.v, self.low = bin_width, v, low

    def __call__(
        self, denoise: Denoise, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        x = self.sde.perturb(x0, eps, t)
        nats = step_bound(self.sde, denoise(x, t, **cond), x0, x, t, self.v, self.bin_width, self.low)
        return self.sde.t_max / (x0.shape[1:].numel() * math.log(2)) * nats


class Hybrid(Objective[Denoise]):
    """Denoising loss for the mean plus a small weight on the bound for the variance: L_simple + 0.001 L_vlb.

    The bound has no gradient with respect to the mean.

    Args:
        weight, bin_width, low: as ``Denoising``, ``Bound``.
    Raises: ValueError unless sde is a discrete-time process and the network learns a variance.
    Reference: Nichol, Dhariwal, 2021, eq. 16. arXiv:2102.09672
    """

    bound_weight = 1e-3

    def __init__(self, sde: SDE, weight: Weight, bin_width: float, low: float = -1.0) -> None:
        super().__init__(sde)
        self.simple, self.bound = Denoising(sde, weight), Bound(sde, bin_width, low=low)

    def __call__(
        self, denoise: Denoise, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        found, v = denoise(self.sde.perturb(x0, eps, t), t, **cond)
        if v is None:
            raise ValueError("the objective hybrid learns a variance: set network.learned_variance=True")
        simple = self.simple(_always(Prediction(found)), x0, eps, t, draw, progress)
        bound = self.bound(_always(Prediction(found.detach(), v)), x0, eps, t, draw, progress)
        return simple + self.bound_weight * bound


def _always(prediction: Prediction) -> Denoise:
    return lambda x, t, **cond: prediction


def as_chain(sde: SDE) -> Discrete:
    """Returns the SDE as a ``Discrete``.

    Raises: ValueError unless it is one.
    """
    if not isinstance(sde, Discrete):
        raise ValueError(
            f"the bound by level needs a discrete-time process, and {type(sde).__name__} has no levels: "
            "use --config ddpm or iddpm"
        )
    return sde
