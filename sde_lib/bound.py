"""DDPM's bound on the negative log-likelihood, level by level of a chain.

    -log p(x_0) <= KL(q(x_N | x_0) || prior) + sum over t = 2, ..., N of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))
                   - log p(x_0 | x_1)

The terms are called prior, diffusion and decoder; each is an expectation over x_t ~ q(x_t | x_0).

Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, eq. 5. arXiv:2006.11239
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sde_lib.denoiser import Denoiser, Prediction
from sde_lib.discrete import Discrete
from sde_lib.losses import Weight
from sde_lib.objective import Denoising, Draw, Objective
from sde_lib.process import SDE, Time, reverse_std


def kl(mean1: Tensor, std1: Time, mean2: Tensor | float, std2: Time) -> Tensor:
    """KL(N(mean1, std1^2) || N(mean2, std2^2)) in nats, entry by entry; 0 only where the two are one law.

        (r^2 - 1 - log r^2 + (mean1 - mean2)^2 / std2^2) / 2,    r = std1 / std2

    Shapes: all broadcast to the result.
    """
    log_ratio = torch.log(torch.as_tensor(std1 / std2, dtype=mean1.dtype))
    return 0.5 * (torch.expm1(2 * log_ratio) - 2 * log_ratio + ((mean1 - mean2) / std2) ** 2)


def log_prob_bins(x0: Tensor, mean: Tensor, std: Time, bin_width: float, edge: float = 1.0) -> Tensor:
    """Log of the mass that N(mean, std^2) gives to the bin around x0, in nats, entry by entry.

        log(Phi((x0 + w/2 - mean) / std) - Phi((x0 - w/2 - mean) / std))

    The bins fill [-edge, edge], and the outer two go on to infinity: the masses of all bins add up to 1. No digits are
    lost however far the bin is.

    Args:
        x0: centres of bins.
        std: positive.
        bin_width: w, positive.
        edge: of the outer bins, in units of x0: 1 for the codec ``pixels``, 256/255 for 256 levels from -1 to 1.
    Shapes: all broadcast to the result.
    Reference: Ho, Jain, Abbeel, 2020, eq. 13.
    """
    below = x0 < mean  # mirrored where not: then the tail is the small probability
    distance, half = torch.where(below, mean - x0, x0 - mean), 0.5 * bin_width
    first, last = x0 < bin_width - edge, x0 > edge - bin_width
    near = torch.where(torch.where(below, last, first), math.inf, (half - distance) / std)
    far = torch.where(torch.where(below, first, last), -math.inf, (-half - distance) / std)
    within = torch.special.log_ndtr(near)
    return within + torch.log(-torch.expm1(torch.special.log_ndtr(far) - within))


def log_prob_data(x0: Tensor, mean: Tensor, std: Time, bin_width: float) -> Tensor:
    """The decoder log N(x0; mean, std^2), entry by entry: the mass of a bin, or the density of data without bins."""
    if bin_width > 0:
        return log_prob_bins(x0, mean, std, bin_width)
    std = torch.as_tensor(std, dtype=x0.dtype)
    return -0.5 * ((x0 - mean) / std) ** 2 - torch.log(math.sqrt(2 * math.pi) * std)


def prior_term(sde: SDE, x0: Tensor) -> Tensor:
    """KL(q(x_T | x_0) || prior) in nats: how far the end of the forward process is from the prior, at most.

        sum over dimensions of (alpha^2 x0^2 + sigma^2) / (2 s^2) - 1/2 - log(sigma / s),    s = prior_std

    Shapes: x0 (B, *); returns (B,).
    Reference: Ho, Jain, Abbeel, 2020, eq. 5, L_T.
    """
    alpha, sigma, _ = sde.at(sde.t_max)
    return kl(alpha * x0, sigma, 0.0, sde.prior_std).flatten(1).sum(1)


def step_bound(
    sde: SDE, prediction: Prediction, x0: Tensor, x: Tensor, t: Time, variance: float | Tensor, bin_width: float
) -> Tensor:
    """The term of the move from level t to t - 1 in nats: KL(q(x_{t-1} | x_t, x_0) || p), or for t = 1 the decoder.

    The posterior of level 1 has no width; for the share of ``SDE.reverse`` it is given that of level 2. With the
    exact x0 and share of Gaussian data, what the terms and ``prior_term`` add up to is -log p(x_0) itself, but for
    what the prior is off.

    Args:
        prediction: of x0 from x.
        variance: share that counts where the prediction tells none.
        bin_width: of a level of the data, 0 for real data.
    Shapes: x0, x (B, *); t a whole level, a number or (B, 1, ..., 1); returns (B,).
    Reference: Ho, Jain, Abbeel, 2020, eq. 5 to 8; Nichol, Dhariwal, 2021, section 3.1.
    """
    share = variance if prediction.variance is None else prediction.variance
    second = t.clamp(min=2) if isinstance(t, Tensor) else max(t, 2)
    truth, _ = sde.bridge(x, x0, t, t - 1, eta=1.0)
    mean, _ = sde.bridge(x, prediction.x0, t, t - 1, eta=1.0)
    _, posterior = sde.bridge(x, x0, second, second - 1, eta=1.0)
    std = reverse_std(posterior, sde.transition(t - 1, t)[1], share)
    moves = torch.as_tensor(t > 1, device=x.device)
    terms = torch.where(moves, kl(truth, posterior, mean, std), -log_prob_data(x0, mean, std, bin_width))
    return terms.flatten(1).sum(1)


class VariationalBound(NamedTuple):
    """The bound of each example and its terms, in nats, each by itself.

    prior: (B,), ``prior_term``.
    levels: (B, N), ``step_bound`` of the levels 1 (the decoder), ..., N.
    distortion: (B, N), root mean square of x0_hat - x0 at each level, in units of x0.
    """

    prior: Tensor
    levels: Tensor
    distortion: Tensor

    @property
    def nats(self) -> Tensor:
        """The bound on -log p(x_0), (B,)."""
        return self.prior + self.levels.sum(1)


def variational_bound(
    sde: Discrete, denoise: Denoiser, x0: Tensor, draw: Draw, variance: float, bin_width: float, **cond: Tensor
) -> VariationalBound:
    """All N terms of the bound, each with a fresh x_t: N evaluations.

    Its expectation is at least -log p(x_0) of what ancestral sampling down all levels draws, and so, in the mean over
    the data, at least their entropy.

    Args:
        draw: standard normals, one draw for each level from 1 to N.
        variance, bin_width: as ``step_bound``.
    Shapes: x0 (B, *).
    Raises: ValueError if sde is no chain.
    Reference: Ho, Jain, Abbeel, 2020, eq. 5, and section 4.3 for rate and distortion.
    """
    chain, levels, distortion = as_chain(sde), [], []
    for t in range(1, int(chain.t_max) + 1):
        x = chain.perturb(x0, draw(x0), t)
        prediction = denoise(x, t, **cond)
        levels.append(step_bound(chain, prediction, x0, x, t, variance, bin_width))
        distortion.append((prediction.x0 - x0).flatten(1).square().mean(1).sqrt())
    return VariationalBound(prior_term(chain, x0), torch.stack(levels, 1), torch.stack(distortion, 1))


class Bound(Objective):
    """The bound itself, by the term of one level for all: N L_{t-1} / (D log 2), in bits per dimension.

    The mean over uniform levels is the bound but for its prior term, which nothing learned enters.

    Args:
        bin_width: of a level of the data, 0 for real data.
        variance: share that counts where the network tells none: 0 posterior, 1 forward.
    Raises: ValueError if sde is no chain.
    Reference: Ho, Jain, Abbeel, 2020, eq. 5; L_vlb of Nichol, Dhariwal, 2021, section 2.
    """

    def __init__(self, sde: SDE, bin_width: float, variance: float = 0.0) -> None:
        super().__init__(as_chain(sde))
        self.bin_width, self.variance = bin_width, variance

    def __call__(
        self, denoise: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        x = self.sde.perturb(x0, eps, t)
        nats = step_bound(self.sde, denoise(x, t, **cond), x0, x, t, self.variance, self.bin_width)
        return self.sde.t_max / (x0[0].numel() * math.log(2)) * nats


class Hybrid(Objective):
    """The denoising loss for the mean and a little of the bound for the variance: L_simple + 0.001 L_vlb.

    The bound takes the mean as it is and sends no gradient into it.

    Args:
        weight, bin_width: as ``Denoising``, ``Bound``.
    Raises: ValueError if sde is no chain, or the network tells no variance.
    Reference: Nichol, Dhariwal, 2021, eq. 16. arXiv:2102.09672
    """

    share_of_bound = 1e-3

    def __init__(self, sde: SDE, weight: Weight, bin_width: float) -> None:
        super().__init__(sde)
        self.simple, self.bound = Denoising(sde, weight), Bound(sde, bin_width)

    def __call__(
        self, denoise: Denoiser, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        found, variance = denoise(self.sde.perturb(x0, eps, t), t, **cond)
        if variance is None:
            raise ValueError("the objective hybrid learns a variance: set network.learned_variance=True")
        simple = self.simple(lambda x, t: Prediction(found), x0, eps, t, draw, progress)
        bound = self.bound(lambda x, t: Prediction(found.detach(), variance), x0, eps, t, draw, progress)
        return simple + self.share_of_bound * bound


def as_chain(sde: SDE) -> Discrete:
    """The same SDE.

    Raises: ValueError if it is no chain.
    """
    if not isinstance(sde, Discrete):
        raise ValueError(f"{type(sde).__name__} has no levels to bound the likelihood by: use --config ddpm or iddpm")
    return sde
