"""Constraints: what is known of an example stays known on its way from noise to data.

A constraint is ``(x, alpha, sigma) -> x``, for ``sample`` and ``trajectory``. That of this file replaces the part of a
state that a projector sees by that part of the known example, with as much noise as the state has. It draws from no
posterior: what the state knows of the noise that was replaced is lost, and the rest is as if it had never been there.
``resampled`` goes over the same levels again and makes that up in part, ``samplers/posterior.py`` needs no projector.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.samplers.loop import Constraint
from score_sde.sde_lib.process import Draw

Projector = Callable[[Tensor], Tensor]
"""x (B, *) -> the part of x that is known; linear, P P = P and P^T = P."""


def replacement(known: Tensor, project: Projector, draw: Draw) -> Constraint:
    """The known part of a state is replaced by that of the known example at the state's noise level.

        x <- x - P x + P (alpha known + sigma z)

    Where sigma = 0 the known part is that of ``known``; with ``masked``, bit for bit. ``masked`` is inpainting,
    ``grey`` colourisation, ``lowpass`` super-resolution.

    Args:
        known: an example of which only P known counts.
        project: P, an orthogonal projector.
        draw: where z comes from; the noise of the sampler will do.
    Shapes: known (B, *), or what broadcasts to it.
    Raises: ValueError, when called, for what is known or a projector's result of another shape than the states.
    References: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 5, app. I. arXiv:2011.13456;
        Choi et al., "ILVR", 2021, for ``lowpass``. arXiv:2108.02938
    """

    def constrain(x: Tensor, alpha: float, sigma: float) -> Tensor:
        _check_broadcast("what is known", known, x)
        target = alpha * known.to(x)
        parts = project(x), project((target + sigma * draw(x) if sigma else target).expand_as(x))
        for part in parts:
            if part.shape != x.shape:
                raise ValueError(
                    f"the projector makes {tuple(part.shape)} of {tuple(x.shape)}: need the part of x in x's own shape"
                )
        return x - parts[0] + parts[1]

    return constrain


def masked(mask: Tensor) -> Projector:
    """The entries where the mask is 1.

    Args:
        mask: bool, or 0 and 1; true where the example is known. Shaped as an example or as a batch.
    Raises: ValueError for other values or, when called, for a mask of another shape.
    """
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"mask with values from {mask.min():g} to {mask.max():g}: need 0 and 1, or bool; compare it")

    def project(x: Tensor) -> Tensor:
        _check_broadcast("the mask", mask, x)
        return torch.where(mask.to(x.device).bool(), x, 0)

    return project


def grey(x: Tensor) -> Tensor:
    """The mean over the channels of each pixel, in all of them; x (B, C, *)."""
    return x.mean(1, keepdim=True).expand_as(x)


def lowpass(factor: int) -> Projector:
    """The mean of each block of factor x factor pixels, in all of them: what is left of x in an image so much smaller.

    Raises: ValueError, when called, where the factor does not divide the sides.
    """
    return lambda x: enlarge(block_means(x, factor), factor)


def block_means(x: Tensor, factor: int) -> Tensor:
    """The image, or signal, with every block of ``factor`` pixels a side made one, their mean.

    Shapes: x (B, C, *); returns the same with sides divided by factor.
    Raises: ValueError where that cannot be.
    """
    if x.ndim < 3 or factor < 1 or any(side % factor for side in x.shape[2:]):
        raise ValueError(f"x is of shape {tuple(x.shape)}: need (B, C, *) with sides that {factor} divides")
    blocks = x.reshape(*x.shape[:2], *(n for side in x.shape[2:] for n in (side // factor, factor)))
    return blocks.mean(tuple(range(3, blocks.ndim, 2)))


def enlarge(x: Tensor, factor: int) -> Tensor:
    """The image, or signal, with each pixel repeated to a block of ``factor`` a side; ``block_means`` undoes it."""
    for axis in range(2, x.ndim):
        x = x.repeat_interleave(factor, axis)
    return x


def resampled(times: Tensor, jump: int, repeats: int) -> Tensor:
    """A grid that goes over its levels again: after every ``jump`` moves back up, by noise, and down once more.

    What a constraint has put into the state and what the model makes of the rest come to agree. N moves down become
    ``repeats`` N, and as many evaluations; ``repeats = 1`` is the grid itself. A grid that ends at the data goes back
    up from the noisy time before them.

    Args:
        times: decreasing, (N + 1,).
        jump: moves in a stretch, at least 1; the last has what is left.
        repeats: how often each stretch is gone, at least 1.
    Returns: times of which some rise, for ``sample`` and ``trajectory``.
    Raises: ValueError for a value out of range.
    Reference: Lugmayr et al., "RePaint", 2022, algorithm 1, section 4.2. arXiv:2201.09865
    """
    if jump < 1 or repeats < 1:
        raise ValueError(f"jump {jump}, repeats {repeats}: need 1 or more of both")
    stretches = [times[first : first + jump + 1] for first in range(0, len(times) - 1, jump)]
    return torch.cat([times[:1], *(part for down in stretches for part in (down[1:], down.repeat(repeats - 1)))])


def _check_broadcast(what: str, given: Tensor, x: Tensor) -> None:
    """Raise unless ``given`` broadcasts to the shape of x."""
    axes = zip(reversed(given.shape), reversed(x.shape))
    if given.ndim > x.ndim or any(side not in (1, full) for side, full in axes):
        raise ValueError(f"{what} is of shape {tuple(given.shape)}, the states of {tuple(x.shape)}: need one of theirs")
