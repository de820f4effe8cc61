"""Exponential moving averages of the weights."""

import copy

import torch
from torch import nn


class EMA:
    """Averages of a network's parameters, each in a network of its own, so that nothing is ever swapped.

        average <- average + (1 - r) (parameters - average),    r = min(rate, (1 + n) / (10 + n)) with warm-up

    Kept in float32. Buffers are not averaged but copied: they hold tables and counts, which have no mean.

    Args:
        network: averaged from its present state.
        rates: share of an average that one update keeps, in [0, 1).
        warmup: whether early updates, of number n, keep less, so that the initial weights are forgotten.
    Raises: ValueError for a rate outside [0, 1) or no rate at all.
    """

    def __init__(self, network: nn.Module, rates: tuple[float, ...], warmup: bool = True) -> None:
        if not rates or not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"ema.rates {rates}: need one or more rates from 0 to below 1")
        self.rates, self.warmup, self.num_updates = rates, warmup, 0
        self.networks = [copy.deepcopy(network).float().eval().requires_grad_(False) for _ in rates]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the averages towards the parameters of the network."""
        parameters = [p.float() for p in network.parameters()]
        for rate, average in zip(self.rates, self.networks, strict=True):
            kept = min(rate, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else rate
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - kept)
            for target, buffer in zip(average.buffers(), network.buffers(), strict=True):
                target.copy_(buffer)
        self.num_updates += 1
