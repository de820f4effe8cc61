"""Guidance: functions from a denoiser to a denoiser that leans towards a condition.

Both multiply the score of the condition, grad log p(y | x_t), by a scale: 0 ignores the condition, 1 samples
p(x_0 | y) if the denoisers are right, more than 1 sharpens it beyond any law of x_0 and trades variety for fidelity.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sde_lib import SDE
from sde_lib.denoiser import Denoiser, Prediction
from sde_lib.process import Time

Guided = Callable[..., Prediction]
"""``(x, t, **cond) -> Prediction``, as any denoiser."""


def classifier_free(denoise: Denoiser, scale: float) -> Guided:
    """Guidance by the difference that the condition makes to one network.

        x0 = x0(x, null) + scale (x0(x, y) - x0(x, null))

    Scale 0 is the unconditional denoiser and scale 1 the conditional one, exactly. Two evaluations.

    Args:
        denoise: takes ``keep``, bool (B,): whose condition counts.
        scale: of the condition's score; 1 + w in the notation of the paper.
    Reference: Ho, Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6. arXiv:2207.12598
    """

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        with_cond, without = (denoise(x, t, keep=keep, **cond).x0 for keep in (everyone, ~everyone))
        return Prediction(torch.lerp(without, with_cond, scale))

    return guided


def classifier(denoise: Denoiser, sde: SDE, log_prob: Callable[[Tensor, Time], Tensor], scale: float) -> Guided:
    """Guidance by the gradient of a classifier of noisy states.

        x0 = x0(x) + scale sigma^2 / alpha grad log p(y | x_t)

    With the true p(y | x_t), scale 1 is the conditional denoiser.

    Args:
        denoise: an unconditional denoiser; a conditional one is leaned further.
        log_prob: (x, t) -> log p(y | x_t) in nats, (B,), differentiable in x.
        scale: of the gradient, at least 0.
    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, eq. 10, 14. arXiv:2105.05233
    """

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            gradient = torch.autograd.grad(log_prob(leaf, t).sum(), leaf)[0]
        alpha, sigma, _ = sde.at(t)
        return Prediction(denoise(x, t, **cond).x0 + scale * sigma**2 / alpha * gradient)

    return guided
