"""Exponential moving averages and power-function averages of the weights."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from score_sde.engine import ranks

WIDEST = math.sqrt(1 / 12)
"""Width of the widest profile, the uniform one."""


class EMA:
    """Averages of a network's parameters, each in a separate network, so that no weights are swapped.

        average <- average + (1 - k) (parameters - average)

        a rate       k = min(rate, (1 + n) / (10 + n)) with warm-up, else k = rate
        a profile    k = (1 - 1 / t)^(gamma + 1),  t = n + 1

    at update number n = 0, 1, ... A profile weights the parameters at time tau by tau^gamma; its width is the standard
    deviation of tau over t, for any t. Averages are float32. Buffers are copied, since tables and counts have no mean.
    Averages of a sharded network are sharded, except within ``whole``.

    Args:
        network: the network to average, from its present weights on.
        rates: fraction of an average that one update keeps, in [0, 1).
        warmup: whether early updates keep a smaller fraction, so that the initial weights decay faster.
        profiles: widths in (0, WIDEST); their averages are the last of ``networks``.
    Raises: ValueError for a rate outside [0, 1), no rates, or a width outside (0, WIDEST).
    Reference: Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion Models, sec. 3.
    """

    def __init__(
        self,
        network: nn.Module,
        rates: tuple[float, ...],
        warmup: bool = True,
        profiles: tuple[float, ...] = (),
    ) -> None:
        if not rates or not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"ema.rates {rates}: need one or more rates from 0 to below 1")
        if not all(0 < width < WIDEST for width in profiles):
            raise ValueError(f"ema.profiles {profiles}: need widths above 0 and below {WIDEST:.3f}")
        self.rates, self.warmup, self.profiles, self.num_updates = rates, warmup, profiles, 0
        self._kept = [partial(kept_of_rate, rate, warmup) for rate in rates]
        self._kept += [partial(kept_of_profile, exponent(width)) for width in profiles]
        self.networks = [copy.deepcopy(network).float().eval().requires_grad_(False) for _ in self._kept]
        self._own = self.networks
        self._averages = [([ranks.local(p) for p in own.parameters()], list(own.buffers())) for own in self._own]
        self._followed = list(network.parameters()), list(network.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Updates the averages with the present parameters of the network."""
        parameters, buffers = self._followed
        present = [ranks.local(p).float() for p in parameters]
        for kept, (average, copies) in zip(self._kept, self._averages, strict=True):
            get_ema_multi_avg_fn(kept(self.num_updates))(average, present, None)
            for target, buffer in zip(copies, buffers, strict=True):
                target.copy_(buffer)
        self.num_updates += 1

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Returns |parameters - average| / |average| for the first average, 0-d; all processes take part."""
        pairs = zip(self._followed[0], self._own[0].parameters(), strict=True)
        sums = (((p - a).square().sum(), a.square().sum()) for p, a in pairs)
        apart, size = zip(*(map(ranks.whole, pair) for pair in sums), strict=True)
        return torch.sqrt(sum(apart) / sum(size))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Context in which the first process has whole ``networks`` of a sharded network; all processes take part.

        The first average is on the device of the network, for validation and pictures; the others are on the CPU.
        """
        if self.networks is not self._own:
            yield
            return
        places: list[torch.device | str] = [self._followed[0][0].device, *["cpu"] * len(self._own)]
        to_place = [partial(ranks.to_first, device=place) for place in places]
        self.networks = [ranks.whole_network(own, get) for own, get in zip(self._own, to_place)]
        try:
            yield
        finally:
            self.networks = self._own


def kept_of_rate(rate: float, warmup: bool, n: int) -> float:
    """Fraction of an exponential average that update number n keeps."""
    return min(rate, (1 + n) / (10 + n)) if warmup else rate


def kept_of_profile(gamma: float, n: int) -> float:
    """Fraction of a power average that update number n keeps: (1 - 1 / t)^(gamma + 1), t = n + 1."""
    return (n / (n + 1)) ** (gamma + 1)


def width(gamma: float) -> float:
    """Standard deviation of the density (gamma + 1) tau^gamma on [0, 1]."""
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def exponent(sigma_rel: float) -> float:
    """Returns the gamma >= 0 of a profile of this width: the inverse of ``width``, by bisection."""
    low, high = 0.0, 1 / sigma_rel
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if width(middle) > sigma_rel else (low, middle)
    return (low + high) / 2
