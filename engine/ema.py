"""Exponential moving averages of the weights."""

import copy

import torch
from torch import nn


class EMA:
    """Averages of a network's parameters, each in a network of its own, so that nothing is ever swapped.

        average <- average + (1 - r) (parameters - average),    r = min(rate, (1 + n) / (10 + n)) with warm-up

    Kept in float32. Buffers are not averaged but copied: they hold tables and counts, which have no mean.

    Args:
        network: what is followed, from its present state on.
        rates: share of an average that one update keeps, in [0, 1).
        warmup: whether early updates, of number n, keep less, so that the initial weights are forgotten.
    Raises: ValueError for a rate outside [0, 1) or no rate at all.
    """

    def __init__(self, network: nn.Module, rates: tuple[float, ...], warmup: bool = True) -> None:
        if not rates or not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"ema.rates {rates}: need one or more rates from 0 to below 1")
        self.rates, self.warmup, self.num_updates = rates, warmup, 0
        self.networks = [copy.deepcopy(network).float().eval().requires_grad_(False) for _ in rates]
        self._averages = [(list(average.parameters()), list(average.buffers())) for average in self.networks]
        self._followed = list(network.parameters()), list(network.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the present parameters of the network."""
        parameters, buffers = self._followed
        parameters = [p.float() for p in parameters]
        for rate, (average, copies) in zip(self.rates, self._averages, strict=True):
            kept = min(rate, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else rate
            torch._foreach_lerp_(average, parameters, 1 - kept)
            for target, buffer in zip(copies, buffers, strict=True):
                target.copy_(buffer)
        self.num_updates += 1
