"""Update of the weights: clipping, learning rate, optimizer and averages."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.engine import ranks
from score_sde.engine.torch_private import scale_
from score_sde.engine.training.adam import Adam
from score_sde.engine.training.ema import EMA


class Update:
    """Update of the weights from their gradients, and of the averages from the weights.

    Args:
        learning_rate: function of the number of examples before the step.
        clip_norm: largest norm of the gradient; 0 for no limit.
    """

    def __init__(self, optimizer: Adam, ema: EMA, learning_rate: Callable[[int], float], clip_norm: float) -> None:
        self.optimizer, self.ema, self.learning_rate = optimizer, ema, learning_rate
        self.clip_norm = clip_norm or math.inf

    def __call__(self, loss: Tensor, images_seen: int) -> Tensor:
        """Updates all parameters and drops their gradients; returns the gradient's norm before clipping, 0-d.

        A loss or norm that is not finite leaves weights and moments unchanged.

        Args:
            loss: mean over the batch, 0-d.
        """
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        norm = clip_gradients(gradients, self.clip_norm)
        self.optimizer.lr = self.learning_rate(images_seen)
        self.optimizer.step(found_inf=(~torch.isfinite(norm + loss)).float())
        self.optimizer.zero_grad()
        self.ema.update()
        return norm


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], limit: float) -> Tensor:
    """Scales the gradients in place to a norm of at most ``limit``; returns the norm before, 0-d.

    Equal to ``torch.nn.utils.clip_grad_norm_``, also for gradients spread over the processes.
    """
    norm = ranks.norm(gradients)
    scale_([ranks.local(gradient) for gradient in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm
