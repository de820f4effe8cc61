"""What a reader of published weights hands over, and how it matches tensors with a network of ours."""

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
"""Most blocks a level of a network, levels of a chain, and numbers in an example, in files that can be read."""

MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, RuntimeError, TypeError, ValueError)
"""What a reader runs into where a file is of its format and says something else than it should."""


class Foreign(NamedTuple):
    """Somebody's weights in our words.

    format: whose, for the reader of a message: ``score_sde``, ``edm``, ``guided_diffusion``, ``diffusers``.
    config: sections of ours, ``{"sde": {"name": ...}, "network": ..., "denoiser": ..., "codec": ...}``.
    weights: name in our network -> tensor, all of them and no other.
    shape: (C, H, W) of one example.
    levels: number of values an entry of the data can take, 0 for real-valued data.
    step: optimiser steps that the weights have seen, 0 where the file does not say.
    wrapper: the containers and the prefix around the weights that were taken off; empty if there were none.
    choice: whether the source holds an average and other weights as well.
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
    """The weights under our names, once it is sure that each fits: none left over, none lacking, none of another shape.

    Args:
        network: ours, on any device, ``meta`` included; it is not changed.
        weights: theirs.
        names: for each entry of ``network.state_dict()``, the name of theirs; or several, one after the other along the
            first axis; none for zeros.
        path: of their file, for the message.
    Raises: ForeignError naming the missing, the unexpected and the misshapen in one line, or a tensor whose numbers are
        not all finite.
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
    told = [
        f"{what} {', '.join(listed[:3])}{f' and {len(listed) - 3} more' if len(listed) > 3 else ''}"
        for what, listed in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if listed
    ]
    if told:
        raise ForeignError(f"{path} does not fit the network of its config: {'; '.join(told)}; give the config it had")
    for part in wanted:
        if not torch.isfinite(weights[part]).all():
            raise ForeignError(f"{path}: {part} holds NaN or infinite numbers; get a checkpoint of before they came up")
    return {
        name: torch.cat([weights[part] for part in several]).to(ours[name].dtype)
        if several
        else torch.zeros(ours[name].shape, dtype=ours[name].dtype)
        for name, several in parts.items()
    }


def skeleton(network: type[nn.Module], **options: Any) -> nn.Module:
    """A network without memory, for names and shapes.

    Raises: ValueError for more blocks than any network has; each would be made, whatever the file holds.
    """
    if options.get("num_blocks", 0) > MOST_BLOCKS:
        raise ValueError(f"num_blocks {options['num_blocks']}: at most {MOST_BLOCKS} a level are read")
    with torch.device("meta"):
        return network(**options)


def guarded(read: Callable[..., Foreign]) -> Callable[..., Foreign]:
    """The same reader, for files that are of its format and hold nonsense: ForeignError is all that it raises for them.

    So it does where an example or a chain is too large for any memory, which nothing in the weights speaks against.
    """

    def guard(path: str | PathLike, **options: Any) -> Foreign:
        try:
            foreign = read(path, **options)
            levels = foreign.config["sde"].get("num_levels", 1)
            fits = 0 < math.prod(foreign.shape) <= MOST_NUMBERS and min(foreign.shape) > 0 and 0 < levels <= MOST_LEVELS
        except ForeignError:
            raise
        except MALFORMED as error:
            reason = f"{type(error).__name__}: {error}"
            raise ForeignError(f"{path} or a file beside it is damaged ({reason[:200]}); get it again") from error
        if not fits:
            raise ForeignError(f"{path}: no examples of shape {foreign.shape} in a chain of {levels} levels are read")
        return foreign

    return guard
