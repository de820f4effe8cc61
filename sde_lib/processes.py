"""Published processes: two functions of time, an inverse and a prior each, and their discretisations.

All formulas keep the accuracy of float32 down to t = 1e-6: they contain no 1 - exp(-x) and no difference of two numbers
close to 1.
"""

import math

import torch
from torch import Tensor

from score_sde.sde_lib.discrete import Discrete
from score_sde.sde_lib.process import SDE


class VPSDE(SDE):
    """Variance preserving (VP), with the noise rate beta(t) = beta_min + t (beta_max - beta_min).

        log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,    sigma^2 = 1 - alpha^2

    Its N-step discretisation is DDPM.

    Args:
        beta_min, beta_max: noise rate at t = 0 and t = 1, positive.
        t_min: earliest time, in (0, 1).
    Raises: ValueError unless 0 < beta_min <= beta_max and 0 < t_min < 1.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, eq. 32, 33. arXiv:2011.13456
    """

    t_max = 1.0
    prior_std = 1.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> None:
        _check(0 < beta_min <= beta_max, f"beta_min {beta_min} and beta_max {beta_max}: need 0 < beta_min <= beta_max")
        _check(0 < t_min < 1, f"t_min {t_min}: need 0 < t_min < 1")
        self.beta_min, self.beta_max, self.t_min = beta_min, beta_max, t_min

    def log_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def time(self, log_snr: Tensor) -> Tensor:
        return _linear_rate_time(self, -0.5 * torch.logaddexp(-log_snr, torch.zeros_like(log_snr)))

    def discretize(self, num_steps: int = 1000) -> Discrete:
        """DDPM's process: beta_i = beta(t_i) / N at N times evenly spaced over [0, 1]. Song et al., 2021, app. B."""
        return ddpm(num_steps, self.beta_min / num_steps, self.beta_max / num_steps)


class SubVPSDE(SDE):
    """Sub-VP: the drift of VP with a smaller variance at every time.

        log alpha as VP,    sigma = 1 - alpha^2

    Args:
        beta_min, beta_max: rate of noise at t = 0 and t = 1, positive.
        t_min: earliest time, in (0, 1).
    Raises: ValueError where a rate is not positive or the rates fall.
    Reference: Song et al., 2021, eq. 28, 29. arXiv:2011.13456
    """

    t_max = 1.0
    prior_std = 1.0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5) -> None:
        self._vp = VPSDE(beta_min, beta_max, t_min)
        self.beta_min, self.beta_max, self.t_min = beta_min, beta_max, t_min

    def log_alpha(self, t: Tensor) -> Tensor:
        return self._vp.log_alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def time(self, log_snr: Tensor) -> Tensor:
        return _linear_rate_time(self, -torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))


class CosineSDE(SDE):
    """Variance preserving with the cosine schedule, which adds noise more evenly.

        alpha = cos(theta(t)) / cos(theta(0)),    theta(t) = pi/2 (t + offset) / (1 + offset),    sigma^2 = 1 - alpha^2

    Both are computed from sines of exact differences of angles, without cancellation at either end. The interval ends
    before t = 1, where the signal is zero and the noise rate infinite.

    Args:
        offset: increases the noise near t = 0, at least 0.
        t_min, t_max: interval, 0 < t_min < t_max < 1.
    Reference: Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, eq. 17. arXiv:2102.09672
    """

    prior_std = 1.0

    def __init__(self, offset: float = 0.008, t_min: float = 1e-5, t_max: float = 0.995) -> None:
        _check(offset >= 0, f"offset {offset}: need offset >= 0")
        _check(0 < t_min < t_max < 1, f"t_min {t_min} and t_max {t_max}: need 0 < t_min < t_max < 1")
        self.offset, self.t_min, self.t_max = offset, t_min, t_max
        self._speed = 0.5 * math.pi / (1 + offset)
        self._start = self._speed * offset

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(torch.sin(self._speed * (1 - t)) / math.cos(self._start))

    def sigma(self, t: Tensor) -> Tensor:
        angle = self._speed * t
        return torch.sqrt(torch.sin(angle) * torch.sin(angle + 2 * self._start)) / math.cos(self._start)

    def time(self, log_snr: Tensor) -> Tensor:
        # sigma^2 = sin^2(theta) - sin^2(theta_0) over cos^2(theta_0): theta from its sine and cosine, both exact.
        cos, sin = math.cos(self._start), math.sin(self._start)
        alpha_squared, sigma_squared = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
        small = cos**2 * sigma_squared
        theta = torch.atan2(torch.sqrt(small + sin**2), cos * torch.sqrt(alpha_squared))
        near = small / (torch.sin(theta + self._start))  # sin(theta - theta_0), for the digits of small t
        return torch.where(near < 0.5, torch.asin(near.clamp(max=0.5)), theta - self._start) / self._speed

    def discretize(self, num_steps: int = 1000) -> Discrete:
        """Improved DDPM's process: beta_i = 1 - alpha(i / N)^2 / alpha((i - 1) / N)^2, at most 0.999.

        Reference: Nichol, Dhariwal, 2021, eq. 17 and the cap below it.
        """
        levels = _evenly(1, num_steps, num_steps)
        _, std = self.transition((levels - 1) / num_steps, levels / num_steps)
        return Discrete.of_betas((std**2).clamp(max=0.999))


class VESDE(SDE):
    """Variance exploding (VE): geometric growth of the noise on unscaled data.

        alpha = 1,    sigma = sigma_min (sigma_max / sigma_min)^t

    Its N-level discretisation is NCSN's geometric sequence of noise levels.

    Args:
        sigma_min: noise at t = 0, in units of the data; the modelled density includes it.
        sigma_max: noise at t = 1, above the largest distance between two examples.
        t_min: earliest time, in [0, 1).
    Raises: ValueError unless 0 < sigma_min < sigma_max.
    Reference: Song et al., 2021, eq. 30, 31. arXiv:2011.13456
    """

    t_max = 1.0

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5) -> None:
        _check_sigmas(sigma_min, sigma_max)
        _check(0 <= t_min < 1, f"t_min {t_min}: need 0 <= t_min < 1")
        self.sigma_min, self.sigma_max, self.t_min = sigma_min, sigma_max, t_min
        self.prior_std = sigma_max
        self._rate = math.log(sigma_max / sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        return 0 * self.sigma(t)  # 0 * t is NaN at t = -inf, the time of the data

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._rate * t)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._rate

    def discretize(self, num_steps: int = 1000) -> Discrete:
        """NCSN's process: num_steps levels in geometric progression from sigma_min to sigma_max."""
        times = _evenly(0, 1, num_steps)
        return Discrete(self.log_alpha(times), self.sigma(times), self.prior_std)


class EDMSDE(SDE):
    """EDM's process, with the noise level as time.

        alpha = 1,    sigma = t

    Args:
        sigma_min, sigma_max: ends of the interval, in units of the data.
    Raises: ValueError unless 0 < sigma_min < sigma_max.
    Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1.
    """

    grid = "karras"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        _check_sigmas(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.t_min, self.t_max = sigma_min, sigma_max
        self.prior_std = sigma_max

    def log_alpha(self, t: Tensor) -> Tensor:
        return 0 * t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 * t

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-0.5 * log_snr)


class RectifiedSDE(SDE):
    """Rectified flow: straight lines from data to noise.

        alpha = 1 - t,    sigma = t

    The velocity of flow matching, E[eps - x0 | x], equals dx/dt = f x - g^2 score / 2 of this process. At equal log-SNR
    and scaled state its trajectories therefore coincide with every other process's. The timestep sampler ``lognormal``
    of sigma / alpha = t / (1 - t) is the logit-normal distribution of t in Stable Diffusion 3. The interval ends before
    t = 1, where alpha = 0.

    Args:
        t_min, t_max: interval, 0 < t_min < t_max < 1; the prior is N(0, t_max^2).
    Raises: ValueError for another interval.
    Reference: Liu et al., "Flow Straight and Fast", 2022, eq. 1. arXiv:2209.03003; Lipman et al., "Flow Matching for
        Generative Modeling", 2022, eq. 20. arXiv:2210.02747; Albergo, Vanden-Eijnden, "Building Normalizing Flows with
        Stochastic Interpolants", 2022. arXiv:2209.15571; Esser et al., 2024, section 3.1. arXiv:2403.03206
    """

    def __init__(self, t_min: float = 1e-5, t_max: float = 0.999) -> None:
        _check(0 < t_min < t_max < 1, f"t_min {t_min} and t_max {t_max}: need 0 < t_min < t_max < 1")
        self.t_min, self.t_max, self.prior_std = t_min, t_max, t_max

    def log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def sigma(self, t: Tensor) -> Tensor:
        return 1 * t

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-0.5 * log_snr)


def ddpm(num_levels: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Discrete:
    """DDPM's discrete-time process, x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z, with evenly spaced betas.

    Args:
        num_levels: N, at least 2.
        beta_min, beta_max: beta at levels 1 and N, in (0, 1).
    Raises: ValueError for a value out of range.
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 4. arXiv:2006.11239
    """
    return Discrete.of_betas(_evenly(beta_min, beta_max, num_levels))


def iddpm(num_levels: int = 1000, offset: float = 0.008) -> Discrete:
    """Improved DDPM's discrete-time process: the discretised ``CosineSDE``, down to a signal of nearly zero.

    Args:
        num_levels: N, at least 2.
        offset: as ``CosineSDE``.
    Raises: ValueError for a value out of range.
    Reference: Nichol, Dhariwal, 2021, eq. 17. arXiv:2102.09672
    """
    return CosineSDE(offset).discretize(num_levels)


def ncsn(sigma_min: float = 0.01, sigma_max: float = 50.0, num_levels: int = 232) -> Discrete:
    """NCSN's discrete-time process, the discretised ``VESDE``; the defaults are NCSNv2's for CIFAR-10.

    Args:
        sigma_min, sigma_max: noise at levels 1 and N, in units of the data.
        num_levels: N, at least 2; ``ladder_size`` computes the number by NCSNv2's criterion.
    Raises: ValueError for a value out of range.
    Reference: Song, Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019.
        arXiv:1907.05600; Song, Ermon, 2020, section 3. arXiv:2006.09011
    """
    return VESDE(sigma_min, sigma_max).discretize(num_levels)


def _evenly(first: float, last: float, num_levels: int) -> Tensor:
    """Evenly spaced values, one for each level."""
    _check(num_levels >= 2, f"num_levels {num_levels}: need at least 2")
    return torch.linspace(first, last, num_levels, dtype=torch.float64)


def _linear_rate_time(sde: VPSDE | SubVPSDE, log_alpha: Tensor) -> Tensor:
    """Solves log_alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2 for t, in the form without cancellation."""
    discriminant = sde.beta_min**2 - 4 * (sde.beta_max - sde.beta_min) * log_alpha
    return -4 * log_alpha / (sde.beta_min + torch.sqrt(discriminant))


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    _check(
        0 < sigma_min < sigma_max, f"sigma_min {sigma_min} and sigma_max {sigma_max}: need 0 < sigma_min < sigma_max"
    )


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
