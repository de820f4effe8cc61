"""The result of a reader of published weights, and the assignment of foreign tensors to a network."""

import math
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from score_sde.models.checkpoints.safe import ForeignError

MOST_BLOCKS = 256
MOST_LEVELS = 1_000_000
MOST_NUMBERS = 2**26
"""Upper limits for blocks per level, levels of a discrete-time process, and entries of an example in a file."""

MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, RuntimeError, TypeError, ValueError)
"""Errors that readers raise on files of their format with inconsistent content."""


class Foreign(NamedTuple):
    """Foreign weights, converted to the toolkit's config and names.

    Args:
        format: name of the source format: ``score_sde``, ``edm``, ``guided_diffusion`` or ``diffusers``.
        config: config sections, ``{"sde": {"name": ...}, "network": ..., "denoiser": ..., "codec": ...}``.
        weights: the complete state dict of the network.
        shape: (C, H, W) of one example.
        levels: number of values an entry of the data can take, 0 for real-valued data.
        step: number of optimiser steps, 0 if the file does not contain it.
        wrapper: containers and prefix that were removed from the weights; empty for none.
        choice: whether the source contains both averaged and raw weights.
    """

    format: str
    config: dict[str, dict[str, Any]]
    weights: dict[str, Tensor]
    shape: tuple[int, ...]
    levels: int = 256
    step: int = 0
    wrapper: str = ""
    choice: bool = False


def place(
    network: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, str | tuple[str, ...]], path: object
) -> dict[str, Tensor]:
    """Foreign weights under the network's own names, after a check that names and shapes match exactly.

    Args:
        network: network of the toolkit on any device, including ``meta``; it is not changed.
        weights: foreign state dict.
        names: for each entry of ``network.state_dict()``, the foreign name; a tuple of names is concatenated along the
            first axis, and an empty tuple stands for zeros.
        path: path of the foreign file, for messages.
    Raises: ForeignError with the missing, unexpected and misshapen tensors in one line, or naming a non-finite tensor.
    """
    ours = network.state_dict()
    theirs = {name: names[name] for name in ours}
    parts = {name: (found,) if isinstance(found, str) else found for name, found in theirs.items()}
    wanted = [part for several in parts.values() for part in several]
    missing = sorted(set(wanted) - set(weights))
    unexpected = sorted(set(weights) - set(wanted))
    misshapen = []
    for name, several in parts.items():
        rows, *others = ours[name].shape
        for part in several:
            shape = (rows // len(several), *others)
            if part in weights and weights[part].shape != shape:
                misshapen.append(f"{part} {tuple(weights[part].shape)} for {shape}")
    mismatches = [
        f"{kind} {', '.join(listed[:3])}{f' and {len(listed) - 3} more' if len(listed) > 3 else ''}"
        for kind, listed in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if listed
    ]
    if mismatches:
        reason = "; ".join(mismatches)
        raise ForeignError(f"{path} does not fit the network of its config: {reason}; give the config it had")
    for part in wanted:
        if not torch.isfinite(weights[part]).all():
            raise ForeignError(f"{path}: {part} contains NaN or infinity; take an earlier checkpoint")
    return {
        name: torch.cat([weights[part] for part in several]).to(ours[name].dtype)
        if several
        else torch.zeros(ours[name].shape, dtype=ours[name].dtype)
        for name, several in parts.items()
    }


def skeleton(network: type[nn.Module], **options: Any) -> nn.Module:
    """A network on the device ``meta``, which has names and shapes but takes no memory.

    Raises: ValueError for more than ``MOST_BLOCKS`` blocks per level, since each block is constructed.
    """
    if options.get("num_blocks", 0) > MOST_BLOCKS:
        raise ValueError(f"num_blocks {options['num_blocks']}: at most {MOST_BLOCKS} per level are supported")
    with torch.device("meta"):
        return network(**options)


def guarded(read: Callable[..., Foreign]) -> Callable[..., Foreign]:
    """Wraps a reader so that inconsistent files raise ForeignError and nothing else.

    It also refuses examples and discrete-time processes beyond ``MOST_NUMBERS`` and ``MOST_LEVELS``, which the weights
    alone do not limit.
    """

    def guard(path: str | PathLike[str], **options: Any) -> Foreign:
        try:
            foreign = read(path, **options)
            levels = foreign.config["sde"].get("num_levels", 1)
            fits = 0 < math.prod(foreign.shape) <= MOST_NUMBERS and min(foreign.shape) > 0 and 0 < levels <= MOST_LEVELS
        except ForeignError:
            raise
        except MALFORMED as error:
            reason = f"{type(error).__name__}: {error}"
            raise ForeignError(f"{path} or a file next to it is damaged ({reason[:200]}); download it again") from error
        if not fits:
            raise ForeignError(
                f"{path}: examples of shape {foreign.shape} with {levels} noise levels are not supported"
            )
        return foreign

    return guard
