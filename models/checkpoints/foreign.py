"""What a reader of published weights hands over, and how it matches tensors with a network of ours."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.checkpoints.safe import ForeignError


class Foreign(NamedTuple):
    """Somebody's weights in our words.

    format: whose, for the reader of a message: ``score_sde``, ``edm``, ``guided_diffusion``, ``diffusers``.
    config: sections of ours, ``{"sde": {"name": ...}, "network": ..., "denoiser": ..., "codec": ...}``.
    weights: name in our network -> tensor, all of them and no other.
    shape: (C, H, W) of one example.
    levels: number of values an entry of the data can take, 0 for real-valued data.
    step: optimiser steps that the weights have seen, 0 where the file does not say.
    """

    format: str
    config: dict[str, dict[str, Any]]
    weights: dict[str, Tensor]
    shape: tuple[int, ...]
    levels: int = 256
    step: int = 0


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
    Raises: ForeignError naming the missing, the unexpected and the misshapen, in one line.
    """
    ours = network.state_dict()
    parts = {name: (names[name],) if isinstance(names[name], str) else names[name] for name in ours}
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
    return {
        name: torch.cat([weights[part] for part in several]).to(ours[name].dtype)
        if several
        else torch.zeros(ours[name].shape, dtype=ours[name].dtype)
        for name, several in parts.items()
    }


def skeleton(network: type[nn.Module], **options: Any) -> nn.Module:
    """A network without memory, for names and shapes."""
    with torch.device("meta"):
        return network(**options)
