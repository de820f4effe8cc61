"""Timestep samplers: distributions of t in training, as functions of numbers in [0, 1).

    (sde, u) -> (t, correction)

With a correction the mean loss equals its mean over uniform t; without one, the distribution is part of the objective.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from score_sde.sde_lib.devices import put
from score_sde.sde_lib.process import SDE
from score_sde.sde_lib.schedules import LearnedSDE, MonotoneSchedule


def uniform_time(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform t in [t_min, t_max], or uniform integer levels for a discrete-time process."""
    return sde.quantile(u).clamp(sde.t_min, sde.t_max), torch.ones_like(u)


def importance(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Density of t proportional to g^2 / sigma^2, that is uniform log-SNR, with a correction for an unbiased loss.

    With the weight ``likelihood`` the range of the weight does not contribute to the variance of the loss.

        t = time(l),  l uniform over the interval,    correction = |l range| sigma^2 / (g^2 (t_max - t_min))

    Reference: Song, Durkan, Murray, Ermon, 2021, section 4.2; with the inverse of the log-SNR it is exact for all SDEs.
    """
    lowest, highest = _log_snr_range(sde)
    t = sde.time(highest + (lowest - highest) * u).clamp(sde.t_min, sde.t_max)
    rate = (sde.diffusion(t) / sde.sigma(t)) ** 2
    return t, (highest - lowest) / (rate * (sde.t_max - sde.t_min))


def log_snr_uniform(sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform log-SNR without correction, as part of the objective. Kingma, Gao, 2023."""
    t, _ = importance(sde, u)
    return t, torch.ones_like(u)


def lognormal(sde: SDE, u: Tensor, mean: float = -1.2, std: float = 1.2, tail: float = 0.0) -> tuple[Tensor, Tensor]:
    """Normal log(sigma / alpha), truncated to the interval, without correction. Karras et al., 2022, table 1.

    The fraction ``tail`` of the draws is uniform in log-SNR over the whole interval instead. Samplers start at its
    noisy end, which a normal distribution may never draw.

    For the process ``rectified``, sigma / alpha = t / (1 - t), and t is logit-normal. Esser et al., 2024, section 3.1.
    arXiv:2403.03206

    Args:
        mean, std: mean and standard deviation of log(sigma / alpha), std positive.
        tail: fraction in [0, 1); the lowest u belong to it.
    Raises: ValueError for a std or a tail out of range.
    """
    if not std > 0:
        raise ValueError(f"loss.timestep_sampler.std {std}: need a standard deviation above 0")
    if not 0 <= tail < 1:
        raise ValueError(f"loss.timestep_sampler.tail {tail}: need a fraction from 0 to below 1")
    least, most = _log_snr_range(sde)
    lowest, highest = (_normal_cdf((-0.5 * l - mean) / std) for l in (most, least))
    position = (u.double() - tail) / (1 - tail)  # negative in the tail
    # The normal quantile of 0 or 1 is infinite; the clamp of t maps it to the end of the interval.
    z = torch.special.ndtri((lowest + (highest - lowest) * position).clamp(0, 1)).clamp(-38, 38)
    log_snr = -2 * (mean + std * z)
    if tail:
        log_snr = torch.where(position < 0, most + (least - most) * u.double() / tail, log_snr)
    return sde.time(log_snr).to(u.dtype).clamp(sde.t_min, sde.t_max), torch.ones_like(u)


TIMESTEP_SAMPLERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "uniform": uniform_time,
    "importance": importance,
    "log_snr": log_snr_uniform,
    "lognormal": lognormal,
    "logit_normal": lognormal,
}


class TimestepSampler(ABC):
    """A distribution of t that may adapt to the losses; its state is part of a checkpoint."""

    @abstractmethod
    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns times and corrections, shaped as u."""

    learns = False
    """Whether ``observe`` changes the distribution."""

    def observe(self, sde: SDE, t: Tensor, loss: Tensor) -> None:  # noqa: B027, most are fixed
        """Updates the distribution with losses (B,), without correction, at times t (B, 1, ..., 1)."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the learned state as tensors and numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restores the state of a ``state_dict``."""


class Fixed(TimestepSampler):
    """A fixed distribution, given as a function of u."""

    def __init__(self, law: Callable[[SDE, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.law = law

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.law(sde, u)


class LossAware(TimestepSampler):
    """Importance sampling of times by their loss, for the least variance of the bound's estimate.

        p_k proportional to sqrt(E[loss^2 | bin k]),    correction = 1 / (bins p_k)

    The range of t is divided into equal bins, and the mean is over the last losses of each bin. The distribution is
    uniform until every bin has a full history. After that the fraction ``uniform_part`` of it stays uniform, so that
    every bin is drawn.

    Args:
        bins: number of bins; the paper uses the number of levels of the discrete-time process.
        history: number of stored losses per bin.
    Reference: Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, section 3.3, eq. 18.
        arXiv:2102.09672
    """

    uniform_part = 1e-3

    learns = True

    def __init__(self, bins: int = 100, history: int = 10) -> None:
        if bins < 1 or history < 1:
            raise ValueError(f"loss.timestep_sampler.bins {bins} and history {history}: need at least 1")
        self.losses = torch.zeros(bins, history, dtype=torch.float64)
        self.seen = torch.zeros(bins, dtype=torch.int64)

    @property
    def probabilities(self) -> Tensor:
        """Probability of each bin, (bins,) float64."""
        bins, history = self.losses.shape
        uniform = torch.full_like(self.losses[:, 0], 1 / bins)
        spread = self.losses.square().mean(1).sqrt()
        learned = torch.lerp(spread / spread.sum(), uniform, self.uniform_part)
        return torch.where((self.seen < history).any(), uniform, learned)

    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        self._move(u.device)
        p, v = self.probabilities, u.flatten().double()
        above = p.cumsum(0)
        k = torch.searchsorted(above, v, right=True).clamp(max=len(p) - 1)
        position = ((v - above[k]) / p[k] + 1).clamp(0, 1 - 2**-24)  # position in the bin
        t, _ = uniform_time(sde, ((k + position) / len(p)).reshape(u.shape))
        return t.to(u), (1 / (len(p) * p[k])).to(u).reshape(u.shape)

    def observe(self, sde: SDE, t: Tensor, loss: Tensor) -> None:
        """Replaces the oldest losses of the bins, in order, without synchronisation with the device."""
        self._move(loss.device)
        bins, history = self.losses.shape
        k = (sde.fraction(t).flatten().double() * bins).long().clamp(0, bins - 1)
        order = k.argsort(stable=True)
        k, value = k[order], loss[order].double()
        first, end = (torch.searchsorted(k, k, right=right) for right in (False, True))
        number = torch.arange(len(k), device=k.device) - first  # position within its bin
        finite = torch.isfinite(loss).all()
        kept = finite & (number >= end - first - history)
        slot = torch.where(kept, k * history + (self.seen[k] + number) % history, bins * history)
        table = torch.cat([self.losses.flatten(), self.losses.new_zeros(1)])  # the last entry takes dropped losses
        table[slot] = value
        self.losses = table[:-1].view(bins, history)
        self.seen = self.seen.scatter_add(0, k, finite.expand(len(k)).to(self.seen))

    def _move(self, device: torch.device) -> None:
        self.losses, self.seen = put(self.losses, device), put(self.seen, device)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.seen = state["losses"], state["seen"]


class Learned(TimestepSampler):
    """Learned distribution of log-SNR for the least variance of the loss; its mean over uniform t is unchanged.

        correction = |dt/dl| / ((t_max - t_min) p(l)),    p(l) proportional to sqrt(E[loss^2 | l]) |dt/dl| at best

    In continuous time a noise schedule is equivalent to a distribution of log-SNR, so this is the learned schedule of
    the paper, with fixed ends. The gradient is taken of the squared loss.

    Args:
        learning_rate: learning rate of Adam for the schedule, positive.
        num_sigmoids: number of sigmoids of the monotone network.
    Reference: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, section 5.1, appendix I.
        arXiv:2107.00630
    """

    learns = True

    def __init__(self, learning_rate: float = 0.01, num_sigmoids: int = 32) -> None:
        self.schedule = MonotoneSchedule(0.0, 1.0, num_sigmoids)  # of the fraction of the range of log-SNR
        self.optimizer = torch.optim.Adam(self.schedule.parameters(), lr=learning_rate)

    @torch.no_grad()
    def __call__(self, sde: SDE, u: Tensor) -> tuple[Tensor, Tensor]:
        position = self.schedule.log_snr(u.cpu())
        t, correction = importance(sde, (1 - position).to(u))
        return t, correction / self.schedule.density(position).to(u)

    def process(self, sde: SDE) -> LearnedSDE:
        """Returns the process over the log-SNR range of sde for which uniform times have this distribution."""
        lowest, highest = _log_snr_range(sde)
        schedule = MonotoneSchedule(lowest, highest, len(self.schedule.centres))
        with torch.no_grad():
            schedule.logits.copy_(self.schedule.logits)
            schedule.centres.copy_(lowest + (highest - lowest) * self.schedule.centres)
            schedule.log_widths.copy_(self.schedule.log_widths + math.log(highest - lowest))
        return LearnedSDE(schedule)

    def observe(self, sde: SDE, t: Tensor, loss: Tensor) -> None:
        if not torch.isfinite(loss).all():
            return
        lowest, highest = _log_snr_range(sde)
        position = ((sde.log_snr(t) - lowest) / (highest - lowest)).flatten().cpu().clamp(0, 1)
        rate = (highest - lowest) * (sde.sigma(t) / sde.diffusion(t)) ** 2 / (sde.t_max - sde.t_min)
        m = loss.cpu() * rate.flatten().cpu()
        variance = self.schedule.variance(position, m.square(), self.schedule.density(position).detach())
        self.optimizer.zero_grad()
        torch.log(variance).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"schedule": self.schedule.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state["schedule"])
        self.optimizer.load_state_dict(state["optimizer"])


LEARNING_TIMESTEP_SAMPLERS: dict[str, type[TimestepSampler]] = {"loss_aware": LossAware, "learned": Learned}
"""Timestep samplers that adapt to the losses, by name, in addition to ``TIMESTEP_SAMPLERS``."""


GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Its multiples modulo 1 cover the unit interval evenly; successive batches use them as offsets."""


def stratified(offset: float, start: int, num: int, total: int) -> Tensor:
    """Entries start, ..., start + num - 1 of ``total`` evenly spaced numbers in [0, 1), shifted by offset modulo 1.

    One number per stratum of the global batch gives the loss much less variance than independent numbers.

    Reference: Kingma, Salimans, Poole, Ho, "Variational Diffusion Models", 2021, appendix I.1. arXiv:2107.00630
    """
    return (
        torch.remainder(offset + torch.arange(start, start + num, dtype=torch.float64) / total, 1.0)
        .float()
        .clamp(max=1 - 2**-24)
    )


def _log_snr_range(sde: SDE) -> tuple[float, float]:
    return sde.marginal(sde.t_max).log_snr, sde.marginal(sde.t_min).log_snr


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
