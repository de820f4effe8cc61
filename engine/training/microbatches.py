"""Losses and gradients of a batch, a microbatch at a time."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from score_sde.engine import ranks
from score_sde.engine.randomness import OBJECTIVE, noise, positions, seed_dropout
from score_sde.sde_lib import Denoise, Objective


class Microbatches:
    """Losses and gradients of this process's part of a batch.

    Dropout masks and the objective's noise follow from the seed and the position of the microbatch's first example.

    Args:
        objective: returns a loss (N,) for each example.
        precision: of the network, by autocast.
        total_images: examples of the whole training, for objectives with a schedule.
        first: index of this process's first example in a batch.
        size: examples per microbatch.
    """

    def __init__(
        self, objective: Objective, precision: torch.dtype, seed: int, total_images: int, first: int, size: int
    ) -> None:
        self.objective, self.precision, self.seed = objective, precision, seed
        self.total_images, self.first, self.size = total_images, first, size

    def losses(self, denoise: Denoise, inputs: Mapping[str, Tensor], seen: int, begin: int = 0) -> Tensor:
        """Returns the losses (N,) of a microbatch.

        Args:
            inputs: of ``Batches.inputs``, for the microbatch.
            seen: examples before the step.
            begin: index of the first example in this process's part of the batch.
        """
        x0, device = inputs["x0"], inputs["x0"].device
        cond = {key: value for key, value in inputs.items() if key not in ("x0", "eps", "t", "correction")}
        position = seen + self.first + begin
        seed_dropout(self.seed, position, device)
        draw = noise(self.seed, OBJECTIVE, positions(position, len(x0)))
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            return self.objective(denoise, x0, inputs["eps"], inputs["t"], draw, seen / self.total_images, **cond)

    def backward(self, denoise: Denoise, network: nn.Module, inputs: Mapping[str, Tensor], seen: int) -> Tensor:
        """Adds the gradient of the mean loss to the parameters and returns the losses (N,) of all examples.

        The processes average their gradients once, in the last microbatch.

        Args:
            network: of ``ranks.parallel`` or ``ranks.sharded``, the network in ``denoise``.
        """
        num, losses = len(inputs["x0"]), []
        for begin in range(0, num, self.size):
            part = {key: value[begin : begin + self.size] for key, value in inputs.items()}
            last = begin + self.size >= num
            with contextlib.nullcontext() if last else ranks.apart(network):
                found = self.losses(denoise, part, seen, begin)
                ((part["correction"].flatten() * found).sum() / num).backward()
            losses.append(found.detach())
        return torch.cat(losses)
