"""Shared by the readers of U-Nets: block names, the order of queries, keys and values, and label tables."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from score_sde.models.blocks import Block, SelfAttention, Stage
from score_sde.models.checkpoints.foreign import place, skeleton
from score_sde.models.checkpoints.safe import ForeignError, read
from score_sde.models.checkpoints.wrappers import unwrap

HALF = (torch.float16, torch.bfloat16)


class Tensors(dict[str, Tensor]):
    """A foreign state dict without its wrappers; half-precision tensors are converted to float32.

    Args:
        path: path of the file.
        mark: name of a tensor that every network of this format has.
        format: name of the format, for messages.
        weights: ``ema`` or ``raw``, for a file with both.
    Raises: ForeignError for a file that cannot be read safely or is no state dict of this format, and on access to a
        missing tensor.
    """

    def __init__(self, path: str | PathLike[str], mark: str, format: str, weights: str):
        found = unwrap(read(path), [mark], weights)
        if found is None or not all(isinstance(tensor, Tensor) for tensor in found.tensors.values()):
            raise ForeignError(f"{path} is no state dict of {format}, which has a tensor {mark}; check the file")
        single = {name: t.float() if t.dtype in HALF else t for name, t in found.tensors.items()}
        super().__init__(single)
        self.path, self.wrapper, self.choice = path, found.wrapper, found.choice

    def __missing__(self, name: str) -> Tensor:
        raise ForeignError(f"{self.path} is not a complete network: missing {name}; download it again")

    def placed(
        self,
        network: type[nn.Module],
        options: Mapping[str, Any],
        arrange: Callable[..., Mapping[str, str | tuple[str, ...]]],
    ) -> dict[str, Tensor]:
        """The weights under a network's own names; ``arrange(network)`` changes these tensors and returns the names.

        Raises: ForeignError unless names and shapes match exactly.
        """
        try:
            ours = skeleton(network, **options)
        except ValueError as error:
            raise ForeignError(f"{self.path}: {error}") from None
        return place(ours, self, arrange(ours), self.path)


class Dialect(NamedTuple):
    """Foreign names of the layers of blocks and attention.

    Args:
        block: layer of ``Block`` -> foreign layer.
        attention: layer of ``SelfAttention`` -> foreign layer.
    """

    block: Mapping[str, str]
    attention: Mapping[str, str]

    def stage(self, ours: str, module: nn.Module, block: str, attention: str) -> dict[str, str]:
        """Module -> foreign module, for a block or a stage of a block and attention."""
        if isinstance(module, Block):
            return {f"{ours}.{part}": f"{block}.{name}" for part, name in self.block.items()}
        if not isinstance(module, Stage):
            raise TypeError(f"{ours} is a {type(module).__name__}")
        found = self.stage(f"{ours}.block", module.block, block, attention)
        if isinstance(module.attention, SelfAttention):
            found |= {f"{ours}.attention.{part}": f"{attention}.{name}" for part, name in self.attention.items()}
        return found


def names(network: nn.Module, modules: Mapping[str, str]) -> dict[str, str]:
    """Name of each tensor -> foreign name; ``modules`` may contain single tensors, too.

    Tensors of modules that are not in ``modules`` are left out.
    """
    found = {}
    for name in network.state_dict():
        module, _, leaf = name.rpartition(".")
        if name in modules:
            found[name] = modules[name]
        elif module in modules:
            found[name] = f"{modules[module]}.{leaf}"
    return found


def linear_attention(
    network: nn.Module, modules: Mapping[str, str], weights: dict[str, Tensor], order: Callable[[Tensor, int], Tensor]
) -> None:
    """Converts the 1 x 1 convolutions around each attention to matrices and reorders queries, keys and values.

    Args:
        modules: module -> foreign module.
        weights: foreign tensors, changed in place.
        order: (rows (3 C, *), heads) -> rows in the order (query key value, head, channel).
    """
    for name, module in network.named_modules():
        if isinstance(module, SelfAttention):
            for part in ("qkv", "output"):
                for leaf in ("weight", "bias"):
                    key = f"{modules[f'{name}.{part}']}.{leaf}"
                    if key in weights:
                        flat = weights[key].flatten(1) if leaf == "weight" else weights[key]
                        fits = part == "qkv" and len(flat) % (3 * module.heads) == 0
                        weights[key] = order(flat, module.heads) if fits else flat


def head_first(rows: Tensor, heads: int) -> Tensor:
    """Reorders rows from (head, query key value, channel)."""
    return rows.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def value_fastest(rows: Tensor, heads: int) -> Tensor:
    """Reorders rows from (head, channel, query key value)."""
    return rows.unflatten(0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)


def as_it_is(rows: Tensor, heads: int) -> Tensor:
    """Returns rows in the order (query key value, head, channel) unchanged."""
    return rows


def with_null(table: Tensor, null: Tensor | None = None) -> Tensor:
    """Appends the null label to a label table (K, width): ``null``, or zeros for a network trained without one."""
    return torch.cat([table, (table.new_zeros(table.shape[1]) if null is None else null)[None]])
