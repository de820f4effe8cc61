"""Guidance: functions from a denoiser to a denoiser that leans towards a condition, or that keeps to what data are.

What they give is a denoiser again, so they go into each other, and conditions pass through all of them. Two multiply
the score of the condition, grad log p(y | x_t), by a scale: 0 ignores the condition, 1 samples p(x_0 | y) if the
denoisers are right, more than 1 sharpens it beyond any law of x_0 and trades variety for fidelity. Two more take what
encoders find alike for log p(y | x_t).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor

from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise, Estimate, Prediction, as_denoiser, per_example
from score_sde.sde_lib.process import Time

Guided = Denoise
"""``(x, t, **cond) -> Prediction``, as any denoiser."""


@per_example
def classifier_free(denoise: Estimate, scale: float) -> Guided:
    """Guidance by the difference that the condition makes to one network.

        x0 = x0(x, null) + scale (x0(x, y) - x0(x, null))

    Scale 0 is the unconditional denoiser and scale 1 the conditional one, bit for bit, and only that one is asked. Any
    other is one evaluation of a batch of twice the size: what is conditioned, then what is not.

    Args:
        denoise: takes ``keep``, bool (B,): whose condition counts. Its conditions have an entry for each example.
        scale: of the condition's score; 1 + w in the notation of the paper.
    Reference: Ho, Salimans, "Classifier-Free Diffusion Guidance", 2022, eq. 6. arXiv:2207.12598
    """
    denoise = as_denoiser(denoise)

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        if scale in (0, 1):
            return denoise(x, t, keep=torch.full((len(x),), scale == 1, device=x.device), **cond)
        keep = torch.arange(2 * len(x), device=x.device) < len(x)
        doubled = {name: _twice(value) for name, value in cond.items()}
        x0, v = denoise(_twice(x), _twice(t), keep=keep, **doubled)
        with_cond, without = x0.chunk(2)
        return Prediction(torch.lerp(without, with_cond, scale), None if v is None else v[: len(x)])

    return guided


@per_example
def classifier(denoise: Estimate, sde: SDE, log_prob: Callable[[Tensor, Time], Tensor], scale: float) -> Guided:
    """Guidance by the gradient of a classifier of noisy states.

        x0 = x0(x) + scale sigma^2 / alpha grad log p(y | x_t)

    With the true p(y | x_t), scale 1 is the conditional denoiser. Whoever differentiates what it gives, differentiates
    the gradient too.

    Args:
        denoise: an unconditional denoiser; a conditional one is leaned further.
        log_prob: (x, t) -> log p(y | x_t) in nats, (B,), differentiable in x.
        scale: of the gradient; below 0 it leans away from the condition.
    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, eq. 10, 14. arXiv:2105.05233
    """
    denoise = as_denoiser(denoise, sde)

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        with _differentiable(x) as (leaf, deeper):
            gradient = torch.autograd.grad(log_prob(leaf, t).sum(), leaf, create_graph=deeper)[0]
        alpha, sigma, _ = sde.marginal(t)
        x0, v = denoise(x, t, **cond)
        return Prediction(x0 + scale * sigma**2 / alpha * gradient, v)

    return guided


@per_example
def embedding_guidance(
    denoise: Estimate, sde: SDE, encode: Callable[[Tensor, Time], Tensor], target: Tensor, scale: float
) -> Guided:
    """Guidance towards what a pair of encoders finds alike, by an encoder of noisy states.

        x0 = x0(x) + scale sigma^2 / alpha grad <f(x_t, t), g>

    The dot product is taken for a log-probability; of a pair trained by contrast it is that of the target given the
    state, up to what all targets share.

    Args:
        encode: f, (x, t) -> (B, D), differentiable; one that ignores t is the same at every noise level.
        target: g, the embedding of a text or of another image, in the scale of the pair's logits.
        scale: of the gradient; below 0 it leans away from the target.
    Shapes: target (B, D) or (1, D).
    Reference: Nichol et al., "GLIDE", 2021, section 2.4. arXiv:2112.10741
    """
    return classifier(denoise, sde, lambda x, t: (encode(x, t) * target).sum(1), scale)


@per_example
def clean_embedding_guidance(
    denoise: Estimate, sde: SDE, encode: Callable[[Tensor], Tensor], target: Tensor, scale: float
) -> Guided:
    """As ``embedding_guidance``, by an encoder that has only seen clean data: it is shown the estimate of them.

        x0 = x0(x) + scale sigma^2 / alpha grad_x <f(x0(x_t)), g>

    The gradient goes through the denoiser, whose Jacobian, alpha / sigma^2 times the covariance of x_0 given x_t, turns
    it to where data can go. So for Gaussian data and a linear encoder the flow ends in p(x_0) exp(scale <f(x_0), g>),
    exactly; with the gradient stopped there it would not. One evaluation, and one vector-Jacobian product.

    Args:
        encode: f, x_0 -> (B, D), differentiable.
        target, scale: as ``embedding_guidance``.
    References: Nichol et al., 2021, section 2.4; Bansal et al., "Universal Guidance for Diffusion Models", 2023,
        section 3.1, for estimates. arXiv:2302.07121
    """
    denoise = as_denoiser(denoise, sde)

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        with _differentiable(x) as (leaf, deeper):
            x0, v = denoise(leaf, t, **cond)
            alike = (encode(x0) * target).sum()
            gradient = torch.autograd.grad(alike, leaf, create_graph=deeper)[0]
        alpha, sigma, _ = sde.marginal(t)
        found = Prediction(x0 + scale * sigma**2 / alpha * gradient, v)
        return found if deeper else detached(found)

    return guided


@per_example
def autoguidance(denoise: Denoise, weaker: Denoise, scale: float) -> Guided:
    """Guidance away from the mistakes of a weaker version of the model: smaller, or trained for less.

        x0 = x0_weaker + scale (x0 - x0_weaker)

    Scale 1 is ``denoise`` and scale 0 ``weaker``, bit for bit, and only that one is asked.

    Args:
        weaker: of the same SDE and data; is told the same conditions.
        scale: at least 0, usually 1 to 3.
    Raises: ValueError for a scale below 0.
    Reference: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024. arXiv:2406.02507
    """
    if not scale >= 0:
        raise ValueError(f"scale {scale}: need 0, the weaker model alone, or more")
    if scale in (0, 1):
        return denoise if scale else weaker
    denoise, weaker = as_denoiser(denoise), as_denoiser(weaker, getattr(denoise, "sde", None))

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        x0, v = denoise(x, t, **cond)
        return Prediction(torch.lerp(weaker(x, t, **cond).x0, x0, scale), v)

    return guided


@per_example
def within(guided: Estimate, denoise: Estimate, sde: SDE, low: float = 0.0, high: float = math.inf) -> Guided:
    """Guidance at some noise levels alone: ``guided`` where low <= sigma / alpha <= high, else ``denoise``.

    At a time that is a number only one of them is asked; of times for each example both are.

    Args:
        low, high: noise of data of size 1; 0 <= low < high.
    Raises: ValueError for an interval that is none.
    Reference: Kynkaanniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models", 2024. arXiv:2404.07724
    """
    if not 0 <= low < high:
        raise ValueError(f"noise levels from {low} to {high}: need 0 <= low < high")
    guided, denoise = as_denoiser(guided, sde), as_denoiser(denoise, sde)

    def choose(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        ratio = sde.marginal(t).ratio
        if not isinstance(ratio, Tensor):
            return (guided if low <= ratio <= high else denoise)(x, t, **cond)
        inside, (x0, v), beside = (low <= ratio) & (ratio <= high), guided(x, t, **cond), denoise(x, t, **cond)
        if v is not None and beside.v is not None:
            return Prediction(torch.where(inside, x0, beside.x0), torch.where(inside, v, beside.v))
        return Prediction(torch.where(inside, x0, beside.x0))

    return choose


@per_example
def static_threshold(denoise: Estimate, low: float = -1.0, high: float = 1.0) -> Guided:
    """Keep estimates among the values that data have: x0 clipped to [low, high].

    Raises: ValueError unless low < high.
    Reference: Saharia et al., "Photorealistic Text-to-Image Diffusion Models", 2022, section 2.3. arXiv:2205.11487
    """
    _check_range(low, high)
    denoise = as_denoiser(denoise)

    def clipped(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        x0, v = denoise(x, t, **cond)
        return Prediction(x0.clamp(low, high), v)

    return clipped


@per_example
def dynamic_threshold(denoise: Estimate, quantile: float = 0.995, low: float = -1.0, high: float = 1.0) -> Guided:
    """Keep estimates among the values that data have, by as little clipping as a share of the entries allows.

        u <- clip(u, -s, s) / s,    s = max(1, quantile of |u|),    u = 2 (x0 - low) / (high - low) - 1

    The quantile is the smallest entry of an example's |u| that the share does not exceed. An estimate of which that
    share lies in [low, high] is only clipped there; any other is shrunk too, so that entries do not pile up at an end.

    Args:
        quantile: the share, in (0, 1]; 1 shrinks and never clips.
    Raises: ValueError for a quantile outside (0, 1], or unless low < high.
    Reference: Saharia et al., 2022, section 2.3. arXiv:2205.11487
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile {quantile}: need a share of the entries above 0 and at most 1, usually 0.995")
    _check_range(low, high)
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    denoise = as_denoiser(denoise)

    def clipped(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        x0, v = denoise(x, t, **cond)
        u = (x0 - middle) / half
        size = u.flatten(1).abs()
        bound = size.kthvalue(math.ceil(quantile * size.shape[1]), dim=1).values.clamp_min(1)
        bound = bound.reshape(-1, *[1] * (x.ndim - 1))
        return Prediction(middle + half * (u.clamp(-bound, bound) / bound), v)

    return clipped


def detached(prediction: Prediction) -> Prediction:
    """The same without gradients."""
    x0, v = prediction
    return Prediction(x0.detach(), None if v is None else v.detach())


@contextmanager
def _differentiable(x: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Gradients on: x itself and True for whoever differentiates x already, else a leaf in its stead and False."""
    deeper = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        yield (x if deeper else x.detach().clone().requires_grad_()), deeper


@overload
def _twice(value: Tensor) -> Tensor: ...
@overload
def _twice(value: float) -> float: ...
def _twice(value: Time) -> Time:
    """A batch followed by itself; a number, of which all examples have the same, stays one."""
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"values from {low} to {high}: need low < high")
