"""Guidance: functions from a denoiser to a denoiser that favours a condition, or restricts x0 to the range of the data.

The result is a denoiser again, so guidance composes, and conditions pass through. ``classifier_free`` and
``classifier`` multiply the score of the condition, grad log p(y | x_t), by a scale: 0 ignores the condition, 1 samples
p(x_0 | y) if the denoisers are right, and more than 1 sharpens it beyond any distribution of x_0, trading diversity for
fidelity. ``embedding_guidance`` and ``clean_embedding_guidance`` use the similarity of embeddings as log p(y | x_t).
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
"""A denoiser ``(x, t, **cond) -> Prediction`` with guidance."""


@per_example
def classifier_free(denoise: Estimate, scale: float) -> Guided:
    """Classifier-free guidance: extrapolates from the unconditional to the conditional estimate of one network.

        x0 = x0(x, null) + scale (x0(x, y) - x0(x, null))

    Scale 0 is the unconditional denoiser and scale 1 the conditional one, bit for bit, with one evaluation. Any other
    scale takes one evaluation of a batch of twice the size: first the conditional half, then the unconditional one.

    Args:
        denoise: takes ``keep``, bool (B,), true for examples that keep their condition. Its conditions have one entry
            per example.
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
    """Classifier guidance: adds the gradient of a classifier of noisy states.

        x0 = x0(x) + scale sigma^2 / alpha grad log p(y | x_t)

    With the true p(y | x_t), scale 1 is the conditional denoiser. The result is differentiable in x, through the
    gradient, too.

    Args:
        denoise: an unconditional denoiser; guidance adds to the condition of a conditional one.
        log_prob: (x, t) -> log p(y | x_t) in nats, (B,), differentiable in x.
        scale: of the gradient; negative values guide away from the condition.
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
    """Guidance towards a target embedding, by an encoder of noisy states.

        x0 = x0(x) + scale sigma^2 / alpha grad <f(x_t, t), g>

    The dot product serves as a log-probability. For contrastively trained encoders it is the log-probability of the
    target given the state, up to a term that is the same for all targets.

    Args:
        encode: f, (x, t) -> (B, D), differentiable; one that ignores t is the same at every noise level.
        target: g, the embedding of a text or of another image, in the scale of the logits.
        scale: of the gradient; negative values guide away from the target.
    Shapes: target (B, D) or (1, D).
    Reference: Nichol et al., "GLIDE", 2021, section 2.4. arXiv:2112.10741
    """
    return classifier(denoise, sde, lambda x, t: (encode(x, t) * target).sum(1), scale)


@per_example
def clean_embedding_guidance(
    denoise: Estimate, sde: SDE, encode: Callable[[Tensor], Tensor], target: Tensor, scale: float
) -> Guided:
    """As ``embedding_guidance``, with an encoder of clean data, applied to the estimate x0.

        x0 = x0(x) + scale sigma^2 / alpha grad_x <f(x0(x_t)), g>

    The gradient passes through the denoiser. Its Jacobian, alpha / sigma^2 times the covariance of x_0 given x_t,
    turns the gradient to directions in which the data vary. So for Gaussian data and a linear encoder the flow ends
    exactly in p(x_0) exp(scale <f(x_0), g>); with a stopped gradient it would not. One evaluation, and one
    vector-Jacobian product.

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
            similarity = (encode(x0) * target).sum()
            gradient = torch.autograd.grad(similarity, leaf, create_graph=deeper)[0]
        alpha, sigma, _ = sde.marginal(t)
        found = Prediction(x0 + scale * sigma**2 / alpha * gradient, v)
        return found if deeper else detached(found)

    return guided


@per_example
def autoguidance(denoise: Denoise, weaker: Denoise, scale: float) -> Guided:
    """Autoguidance: extrapolates away from the errors of a weaker model, which is smaller or trained for less time.

        x0 = x0_weaker + scale (x0 - x0_weaker)

    Scale 1 is ``denoise`` and scale 0 ``weaker``, bit for bit, with one evaluation.

    Args:
        weaker: a denoiser of the same SDE and data; receives the same conditions.
        scale: at least 0, usually 1 to 3.
    Raises: ValueError for a scale below 0.
    Reference: Karras et al., "Guiding a Diffusion Model with a Bad Version of Itself", 2024. arXiv:2406.02507
    """
    if not scale >= 0:
        raise ValueError(f"scale {scale}: need 0 or more; 0 is the weaker model alone")
    if scale in (0, 1):
        return denoise if scale else weaker
    denoise, weaker = as_denoiser(denoise), as_denoiser(weaker, getattr(denoise, "sde", None))

    def guided(x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        x0, v = denoise(x, t, **cond)
        return Prediction(torch.lerp(weaker(x, t, **cond).x0, x0, scale), v)

    return guided


@per_example
def within(guided: Estimate, denoise: Estimate, sde: SDE, low: float = 0.0, high: float = math.inf) -> Guided:
    """Guidance in an interval of noise levels: ``guided`` where low <= sigma / alpha <= high, else ``denoise``.

    For a time that is a number only one of them is evaluated, for times per example both.

    Args:
        low, high: limits of sigma / alpha; 0 <= low < high.
    Raises: ValueError unless 0 <= low < high.
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
        inside, (x0, v), outside = (low <= ratio) & (ratio <= high), guided(x, t, **cond), denoise(x, t, **cond)
        if v is not None and outside.v is not None:
            return Prediction(torch.where(inside, x0, outside.x0), torch.where(inside, v, outside.v))
        return Prediction(torch.where(inside, x0, outside.x0))

    return choose


@per_example
def static_threshold(denoise: Estimate, low: float = -1.0, high: float = 1.0) -> Guided:
    """Static thresholding: clips x0 to the range [low, high] of the data.

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
    """Dynamic thresholding: scales x0 so that a fraction of its entries lies in [low, high], and clips the rest.

        u <- clip(u, -s, s) / s,    s = max(1, quantile of |u|),    u = 2 (x0 - low) / (high - low) - 1

    The quantile is the smallest entry of an example's |u| with at least this fraction of the entries at or below it. An
    estimate with that fraction in [low, high] is only clipped; any other is also scaled, so that entries do not
    accumulate at the limits.

    Args:
        quantile: the fraction, in (0, 1]; 1 scales and never clips.
    Raises: ValueError for a quantile outside (0, 1], or unless low < high.
    Reference: Saharia et al., 2022, section 2.3. arXiv:2205.11487
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile {quantile}: need a fraction of the entries above 0 and at most 1, usually 0.995")
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
    """The same prediction without gradients."""
    x0, v = prediction
    return Prediction(x0.detach(), None if v is None else v.detach())


@contextmanager
def _differentiable(x: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """Enables gradients; yields x and True inside a differentiated computation, else a new leaf and False."""
    deeper = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        yield (x if deeper else x.detach().clone().requires_grad_()), deeper


@overload
def _twice(value: Tensor) -> Tensor: ...
@overload
def _twice(value: float) -> float: ...
def _twice(value: Time) -> Time:
    """Batch repeated twice; a number, which holds for all examples, is returned unchanged."""
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value


def _check_range(low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"values from {low} to {high}: need low < high")
