"""Constraints: keep the known part of an example fixed during sampling.

A constraint is ``(x, alpha, sigma) -> x``, for ``sample`` and ``trajectory``. ``replacement`` replaces the known part
of the state by the known part of the example, with as much noise as the state has. This is not posterior sampling: the
correlation of the replaced noise with the rest of the state is lost. ``resampled`` repeats noise levels and makes up
for it in part; ``samplers/posterior.py`` needs no projector.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.samplers.loop import Constraint
from score_sde.sde_lib.process import Draw

Projector = Callable[[Tensor], Tensor]
"""x (B, *) -> the known part of x; linear, P P = P and P^T = P."""


def replacement(known: Tensor, project: Projector, draw: Draw) -> Constraint:
    """Constraint that replaces the known part of a state by the known example at the same noise level.

        x <- x - P x + P (alpha known + sigma z)

    Where sigma = 0 the known part equals ``known``; with ``masked``, bit for bit. ``masked`` is inpainting, ``grey``
    colourisation, ``lowpass`` super-resolution.

    Args:
        known: example of which only P known is used.
        project: P, an orthogonal projector.
        draw: source of z; may be the noise of the sampler.
    Shapes: known (B, *), or a shape that broadcasts to it.
    Raises: ValueError, when called, if ``known`` or the result of the projector does not fit the shape of the states.
    References: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 5, app. I. arXiv:2011.13456;
        Choi et al., "ILVR", 2021, for ``lowpass``. arXiv:2108.02938
    """

    def constrain(x: Tensor, alpha: float, sigma: float) -> Tensor:
        _check_broadcast("the known example", known, x)
        target = alpha * known.to(x)
        parts = project(x), project((target + sigma * draw(x) if sigma else target).expand_as(x))
        for part in parts:
            if part.shape != x.shape:
                raise ValueError(
                    f"the projector returns shape {tuple(part.shape)} for {tuple(x.shape)}: need the shape of x"
                )
        return x - parts[0] + parts[1]

    return constrain


def masked(mask: Tensor) -> Projector:
    """Projector onto the entries where the mask is 1.

    Args:
        mask: bool, or 0 and 1; true at known entries. Shaped as an example or as a batch.
    Raises: ValueError for other values or, when called, for a mask of another shape.
    """
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"mask with values from {mask.min():g} to {mask.max():g}: need 0 and 1, or bool; compare it")

    def project(x: Tensor) -> Tensor:
        _check_broadcast("the mask", mask, x)
        return torch.where(mask.to(x.device).bool(), x, 0)

    return project


def grey(x: Tensor) -> Tensor:
    """Mean over the channels of each pixel, repeated in all channels; x (B, C, *)."""
    return x.mean(1, keepdim=True).expand_as(x)


def lowpass(factor: int) -> Projector:
    """Projector to the mean of each block of factor x factor pixels, the content of an image smaller by ``factor``.

    Raises: ValueError, when called, if the factor does not divide the sides.
    """
    return lambda x: enlarge(block_means(x, factor), factor)


def block_means(x: Tensor, factor: int) -> Tensor:
    """Image or signal with each block of ``factor`` pixels a side averaged to one.

    Shapes: x (B, C, *); returns the same with sides divided by factor.
    Raises: ValueError if the factor does not divide the sides.
    """
    if x.ndim < 3 or factor < 1 or any(side % factor for side in x.shape[2:]):
        raise ValueError(f"x is of shape {tuple(x.shape)}: need (B, C, *) with sides that {factor} divides")
    blocks = x.reshape(*x.shape[:2], *(n for side in x.shape[2:] for n in (side // factor, factor)))
    return blocks.mean(tuple(range(3, blocks.ndim, 2)))


def enlarge(x: Tensor, factor: int) -> Tensor:
    """Image or signal with each pixel repeated to a block of ``factor`` a side; ``block_means`` reverses it."""
    for axis in range(2, x.ndim):
        x = x.repeat_interleave(factor, axis)
    return x


def resampled(times: Tensor, jump: int, repeats: int) -> Tensor:
    """RePaint's grid: after every ``jump`` steps, noise goes back up and the same steps are taken once more.

    The repetitions bring the constrained part and the model's part of the state into agreement. N steps become
    ``repeats`` N, with as many evaluations; ``repeats = 1`` is the grid itself. A grid that ends at the data goes back
    up from the last noisy time.

    Args:
        times: decreasing, (N + 1,).
        jump: steps in a stretch, at least 1; the last stretch may be shorter.
        repeats: number of passes over each stretch, at least 1.
    Returns: times with rises, for ``sample`` and ``trajectory``.
    Raises: ValueError for a value out of range.
    Reference: Lugmayr et al., "RePaint", 2022, algorithm 1, section 4.2. arXiv:2201.09865
    """
    if jump < 1 or repeats < 1:
        raise ValueError(f"jump {jump}, repeats {repeats}: need 1 or more of both")
    stretches = [times[first : first + jump + 1] for first in range(0, len(times) - 1, jump)]
    return torch.cat([times[:1], *(part for down in stretches for part in (down[1:], down.repeat(repeats - 1)))])


def _check_broadcast(name: str, given: Tensor, x: Tensor) -> None:
    """Raises ValueError unless ``given`` broadcasts to the shape of x."""
    axes = zip(reversed(given.shape), reversed(x.shape))
    if given.ndim > x.ndim or any(side not in (1, full) for side, full in axes):
        raise ValueError(f"{name} has shape {tuple(given.shape)}, which does not broadcast to states {tuple(x.shape)}")
