"""Variance-preserving processes defined by their log-SNR l(t) and its inverse, and a learned schedule.

For uniform t a schedule is a distribution of log-SNR: t = P(l' > l), with the density p(l) = -dt/dl.

Reference: Kingma, Gao, "Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation", 2023.
    arXiv:2303.00848
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from score_sde.sde_lib.process import SDE


class LogSNRSDE(SDE):
    """Variance-preserving process with a given log-SNR: alpha^2 = sigmoid(l), sigma^2 = sigmoid(-l).

    A subclass defines ``log_snr`` and its inverse ``time``.
    """

    prior_std = 1.0

    def __init__(self, t_min: float, t_max: float) -> None:
        if not 0 < t_min < t_max < 1:
            raise ValueError(f"t_min {t_min} and t_max {t_max}: need 0 < t_min < t_max < 1")
        self.t_min, self.t_max = t_min, t_max

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """Log signal-to-noise ratio, a decreasing function of t."""

    def log_alpha(self, t: Tensor) -> Tensor:
        return 0.5 * logsigmoid(self.log_snr(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * logsigmoid(-self.log_snr(t)))


class SigmoidSDE(LogSNRSDE):
    """Sigmoid schedule: alpha^2 is a segment of a decreasing sigmoid, rescaled to [0, 1].

        alpha^2 = (S(b) - S(u)) / (S(b) - S(a)),    S the sigmoid, u = a + t (b - a), a = start / tau, b = end / tau

    Since S(x) - S(y) = S(x) S(-y) (1 - exp(y - x)), no digits cancel in

        l = log S(b) - log S(-a) - u + log(1 - exp(u - b)) - log(1 - exp(a - u))

    Args:
        start, end: ends of the segment, start < end.
        tau: temperature, positive; a small one concentrates the change of the noise level in the middle.
        t_min, t_max: interval, 0 < t_min < t_max < 1.
    Raises: ValueError for a value out of range.
    Reference: Jabri, Fleet, Chen, "Scalable Adaptive Computation for Iterative Generation", 2022, appendix.
        arXiv:2212.11972
    """

    def __init__(
        self, start: float = -3.0, end: float = 3.0, tau: float = 1.0, t_min: float = 1e-5, t_max: float = 0.9995
    ) -> None:
        super().__init__(t_min, t_max)
        if not start < end:
            raise ValueError(f"start {start} and end {end}: need start < end")
        _check_positive("tau", tau)
        self.width = (end - start) / tau
        self._shift = _log_sigmoid(end / tau) - _log_sigmoid(-start / tau) - start / tau

    def log_snr(self, t: Tensor) -> Tensor:
        odds = torch.log(-torch.expm1(-self.width * (1 - t))) - torch.log(-torch.expm1(-self.width * t))
        return self._shift - self.width * t + odds

    def time(self, log_snr: Tensor) -> Tensor:
        # exp(-w t) = (exp(l - shift) + exp(-w)) / (exp(l - shift) + 1)
        ratio = log_snr - self._shift
        excess = math.log(-math.expm1(-self.width)) - torch.logaddexp(ratio, torch.full_like(ratio, -self.width))
        return torch.logaddexp(excess, torch.zeros_like(excess)) / self.width


class LaplaceSDE(LogSNRSDE):
    """Laplace-distributed log-SNR: p(l) = exp(-|l - mean| / scale) / (2 scale).

        l = mean - scale sgn(1/2 - t) log(1 - 2 |1/2 - t|)

    Args:
        mean, scale: parameters of the log-SNR distribution, scale positive. The paper's scale of 0.5 gives sigma = 0.07
            at t_min and alpha = 0.18 at t_max; the default of 1 has a wider range.
        t_min, t_max: interval, 0 < t_min < t_max < 1.
    Raises: ValueError for a value out of range.
    Reference: Hang, Gu, Geng, Guo, "Improved Noise Schedule for Diffusion Training", 2024, table 1. arXiv:2407.03297
    """

    def __init__(self, mean: float = 0.0, scale: float = 1.0, t_min: float = 1e-5, t_max: float = 0.9995) -> None:
        super().__init__(t_min, t_max)
        _check_positive("scale", scale)
        self.mean, self.scale = mean, scale

    def log_snr(self, t: Tensor) -> Tensor:
        return self.mean + self.scale * torch.where(t < 0.5, -torch.log(2 * t), torch.log(2 * (1 - t)))

    def time(self, log_snr: Tensor) -> Tensor:
        l = (log_snr - self.mean) / self.scale
        tail = 0.5 * torch.exp(-l.abs())
        return torch.where(l > 0, tail, 1 - tail)


class LogisticSDE(LogSNRSDE):
    """Logistic log-SNR: p(l) = sech^2((l - mean) / (2 scale)) / (4 scale).

        l = mean - scale log(t / (1 - t))

    With mean 0 and scale 2 the log-SNR equals rectified flow's at every time, with a constant variance.

    Args:
        mean, scale: parameters of the log-SNR distribution, scale positive.
        t_min, t_max: interval, 0 < t_min < t_max < 1.
    Raises: ValueError for a value out of range.
    Reference: Kingma, Gao, 2023, where scale 2 gives the log-SNR of rectified flow. arXiv:2303.00848
    """

    def __init__(self, mean: float = 0.0, scale: float = 2.0, t_min: float = 1e-5, t_max: float = 0.999) -> None:
        super().__init__(t_min, t_max)
        _check_positive("scale", scale)
        self.mean, self.scale = mean, scale

    def log_snr(self, t: Tensor) -> Tensor:
        return self.mean - self.scale * torch.logit(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid((self.mean - log_snr) / self.scale)


class MonotoneSchedule(nn.Module):
    """Learned distribution of log-SNR on [l_min, l_max], and thus a learned schedule: time decreases in log-SNR.

        T(l) = w_0 (l_max - l) / (l_max - l_min) + sum_k w_k (S_k(l) - S_k(l_max)) / (S_k(l_min) - S_k(l_max)),
        S_k(l) = sigmoid((c_k - l) / h_k)

    The weights w are positive and sum to 1, so T(l_max) = 0, T(l_min) = 1, and p(l) = -T'(l) is a mixture of a uniform
    distribution and K truncated logistic ones. Outside the interval T is linear. ``log_snr`` solves T(l) = t in float64
    and is differentiable in t and in the parameters.

    Args:
        l_min, l_max: ends of the log-SNR range, l_min < l_max.
        num_sigmoids: K, at least 1.
    Raises: ValueError for a value out of range.
    Reference: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, appendix on the monotone network.
        arXiv:2107.00630
    """

    def __init__(self, l_min: float = -10.0, l_max: float = 10.0, num_sigmoids: int = 32) -> None:
        super().__init__()
        if not l_min < l_max:
            raise ValueError(f"l_min {l_min} and l_max {l_max}: need l_min < l_max")
        if num_sigmoids < 1:
            raise ValueError(f"num_sigmoids {num_sigmoids}: need at least 1")
        self.l_min, self.l_max = l_min, l_max
        spacing = (l_max - l_min) / num_sigmoids
        self.logits = nn.Parameter(torch.zeros(1 + num_sigmoids))
        self.centres = nn.Parameter(l_min + spacing * (torch.arange(num_sigmoids) + 0.5))
        self.log_widths = nn.Parameter(torch.full((num_sigmoids,), math.log(spacing)))

    def forward(self, log_snr: Tensor) -> Tensor:
        """T(l), the time at which the log-SNR has this value; in the shape and dtype of l."""
        l = log_snr.double()[..., None]
        inside = l.clamp(self.l_min, self.l_max)
        start, centred, end = self._scaled(self.l_max), self._scaled(inside), self._scaled(self.l_min)
        shares = (self.l_max - inside) / (self.l_max - self.l_min), _rise(centred, start) / _rise(end, start)
        times = (self._weights() * torch.cat(shares, -1)).sum(-1)
        return (times + (inside - l).squeeze(-1) * self.density(log_snr).double()).to(log_snr)

    def density(self, log_snr: Tensor) -> Tensor:
        """Density p(l) = -T'(l), in the shape and dtype of l."""
        inside = log_snr.double()[..., None].clamp(self.l_min, self.l_max)
        start, centred, end = self._scaled(self.l_max), self._scaled(inside), self._scaled(self.l_min)
        slopes = torch.sigmoid(centred) * torch.sigmoid(-centred) * torch.exp(-self.log_widths.double())
        uniform = torch.full_like(inside, 1 / (self.l_max - self.l_min))
        return (self._weights() * torch.cat([uniform, slopes / _rise(end, start)], -1)).sum(-1).to(log_snr)

    def log_snr(self, t: Tensor) -> Tensor:
        """Log-SNR at time t, the inverse of T, by bracketed Newton iteration; in the shape and dtype of t."""
        target = t.detach().double()
        with torch.no_grad():
            grid = torch.linspace(self.l_max, self.l_min, 1025, dtype=torch.float64, device=t.device)
            times = self(grid)  # rises from 0 to 1
            above = torch.searchsorted(times, target.contiguous()).clamp(1, len(grid) - 1)
            high, low = grid[above - 1], grid[above]
            l = high + (low - high) * (target - times[above - 1]) / (times[above] - times[above - 1])
            for _ in range(_MAX_ITERATIONS):
                error = self(l) - target
                low, high = torch.where(error > 0, l, low), torch.where(error > 0, high, l)
                newton = l + error / self.density(l)
                moved = torch.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
                change, l = (moved - l).abs().max(), moved
                if change <= 1e-14 * (self.l_max - self.l_min):
                    break
        # Another Newton step is zero at the solution and has the derivatives of the inverse.
        root: Tensor = l + (self.forward(l) - t.double()) / self.density(l).detach()
        return root.to(t)

    def variance(self, log_snr: Tensor, second_moment: Tensor, drawn: Tensor) -> Tensor:
        """Second moment of the estimate m(l) / p(l), l ~ p, of the integral of the loss m over l; minimised in
        training.

            mean of m^2 / (p q) over l ~ q

        The mean of the estimate is independent of p, so this equals its variance up to a constant. The minimum is
        (integral of sqrt(E[m^2]))^2, for p proportional to sqrt(E[m^2]).

        Args:
            log_snr: l, samples of the distribution q.
            second_moment: E[m(l)^2], or m(l)^2 of one example, with m the loss per unit of l.
            drawn: q(l), the density of the samples; the detached density of the schedule if q = p.
        Shapes: (B,) each; returns a scalar.
        """
        return (second_moment / (self.density(log_snr) * drawn)).mean()

    def _weights(self) -> Tensor:
        return torch.softmax(self.logits.double(), 0)

    def _scaled(self, log_snr: float | Tensor) -> Tensor:
        return (self.centres.double() - log_snr) * torch.exp(-self.log_widths.double())


class LearnedSDE(LogSNRSDE):
    """Process of a learned schedule, with times in [0, 1].

        l(t) = schedule.log_snr(t)

    Args:
        schedule: schedule with parameters that may change; values cached by ``tabulate`` keep the parameters of that
            call. Gradients flow through tensor times only.
    Reference: Kingma, Salimans, Poole, Ho, 2021, section 4. arXiv:2107.00630
    """

    t_min, t_max = 0.0, 1.0

    def __init__(self, schedule: MonotoneSchedule) -> None:
        self.schedule = schedule

    def log_snr(self, t: Tensor) -> Tensor:
        return self.schedule.log_snr(t)

    def time(self, log_snr: Tensor) -> Tensor:
        return self.schedule.forward(log_snr)


_MAX_ITERATIONS = 100


def _rise(x: Tensor, y: Tensor) -> Tensor:
    """sigmoid(x) - sigmoid(y) without cancellation."""
    return torch.sigmoid(x) * torch.sigmoid(-y) * -torch.expm1(y - x)


def _log_sigmoid(x: float) -> float:
    return min(x, 0.0) - math.log1p(math.exp(-abs(x)))


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} {value}: need {name} > 0")
