"""Training in one function: weighted denoising score matching of a network on a tensor or on batches of data.

    x_t = alpha x_0 + sigma eps,    loss = E_t E_x0,eps [ weight(t) |x0_hat(x_t, t) - x_0|^2 / D ]

``engine/training/trainer.py`` is the trainer for long runs, with averages of the weights, checkpoints for a bitwise
resume, several processes, reduced precision, and a check for non-finite steps.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from score_sde.sde_lib.denoiser import Denoiser
from score_sde.sde_lib.losses import denoising_loss, edm
from score_sde.sde_lib.process import SDE
from score_sde.sde_lib.timestep_samplers import GOLDEN_RATIO, lognormal, stratified
from score_sde.sde_lib.velocity import NonFiniteError


def fit(
    network: nn.Module,
    sde: SDE,
    data: Tensor | Iterable[Tensor],
    steps: int,
    learning_rate: float = 2e-3,
    batch_size: int = 256,
    seed: int = 0,
) -> Denoiser:
    """Trains a network in place by Adam, with a learning rate that decays to 0, and returns it as a denoiser.

    Parameterization, weight and distribution of t follow EDM. The same network, data and seed give the same denoiser.

    Args:
        network: called as ``network(x, log_snr)``, see ``Denoiser``; training runs on its device.
        sde: the process of the noise.
        data: examples (N, *), from which each step draws a batch; or an iterable of batches (B, *), such as a list or a
            DataLoader, which is repeated. Their standard deviation should be near 1.
        steps: number of optimiser steps, at least 1.
        learning_rate: initial learning rate.
        batch_size: examples per step if data is a tensor.
        seed: seed of examples, noise and dropout.
    Raises: ValueError for data without examples or of integers, batches that cannot be repeated, or steps below 1;
        NonFiniteError for a non-finite loss.
    Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1.
        arXiv:2206.00364
    """
    if steps < 1:
        raise ValueError(f"steps {steps}: need at least 1")
    device = next(network.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        batches = _batches(data, batch_size)
        first = next(batches)
        if not isinstance(first, Tensor) or not first.is_floating_point():
            raise ValueError(f"a batch is {getattr(first, 'dtype', type(first).__name__)}: give float tensors (B, *)")
        sigma_data = (data if isinstance(data, Tensor) else first).std().item()
        denoise, weight = Denoiser(network.train(), sde, "edm", sigma_data), partial(edm, sigma_data=sigma_data)
        optimizer = torch.optim.Adam(network.parameters(), learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step, batch in zip(range(steps), chain([first], batches)):
            x0 = batch.to(device)
            u = stratified(step * GOLDEN_RATIO % 1, 0, len(x0), len(x0)).to(device)
            t, _ = lognormal(sde, u.reshape(-1, *[1] * (x0.ndim - 1)), mean=-0.5, std=1.0, tail=0.05)
            loss = denoising_loss(sde, denoise, weight, x0, torch.randn_like(x0), t).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    if not loss.isfinite():
        raise NonFiniteError(f"the loss is {loss.item()} after {steps} steps: take a lower learning_rate")
    network.eval()
    return denoise


def _batches(data: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Endless batches: random examples of a tensor, or the batches of an iterable in repetition."""
    if isinstance(data, Tensor):
        while len(data):
            yield data[torch.randint(len(data), (batch_size,))]
        raise ValueError("data hold no example")
    while (first := next(again := iter(data), None)) is not None:
        yield first
        yield from again
    raise ValueError("data hold no batch, or cannot begin again: give a tensor, a list of batches or a DataLoader")
