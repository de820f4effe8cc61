"""Layers for signals (B, C, L) and images (B, C, H, W); the constructor takes the rank."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


def convolution(rank: int, channels_in: int, channels_out: int, kernel: int = 3) -> nn.Module:
    """A convolution over ``rank`` axes that keeps their lengths."""
    return CONVOLUTIONS[rank](channels_in, channels_out, kernel, padding=kernel // 2)


def group_norm(channels: int) -> nn.GroupNorm:
    """A group normalisation with at most 32 groups of about four or more channels."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels)


def zeroed(module: M) -> M:
    """Sets every parameter of a module to zero and returns the module."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def halve(x: Tensor) -> Tensor:
    """Averages neighbours: halves the length of every axis after the channels."""
    return F.interpolate(x, scale_factor=0.5, mode="area")


def double(x: Tensor) -> Tensor:
    """Repeats each entry: doubles the length of every axis after the channels."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def per_example(values: Tensor, x: Tensor) -> Tensor:
    """Reshapes one value per example to broadcast against x: (B,) becomes (B, 1, ..., 1)."""
    return values.reshape(len(values), *[1] * (x.ndim - 1))


def all_of(modules: Iterable[nn.Module], kind: type[M]) -> list[M]:
    """The modules of a list, typed as ``kind``, since a torch ModuleList has no element type."""
    found = []
    for module in modules:
        assert isinstance(module, kind)
        found.append(module)
    return found


def descend(stages: Iterable[nn.Module], h: Tensor, c: Tensor, written: list[Tensor]) -> Tensor:
    """Applies the stages in sequence and appends each output to ``written``."""
    for stage in stages:
        h = stage(h, c)
        written.append(h)
    return h


def ascend(stages: Iterable[nn.Module], h: Tensor, c: Tensor, written: list[Tensor]) -> Tensor:
    """Applies the stages in sequence, each to h concatenated with the last entry popped from ``written``."""
    for stage in stages:
        h = stage(torch.cat([h, written.pop()], dim=1), c)
    return h


def check_image(shape: tuple[int, ...], levels: int, name: str) -> None:
    """Raises: ValueError unless shape is (C, H, W) and 2^(levels - 1) divides H and W."""
    if len(shape) != 3:
        raise ValueError(f"the {name} network takes images of shape (C, H, W), not {tuple(shape)}; use unet or mlp")
    if any(side % 2 ** (levels - 1) for side in shape[1:]):
        raise ValueError(f"{indivisible(shape, levels)}, or take the unet network with network.pad=True")


def check_num_classes(num_classes: int) -> None:
    """Raises: ValueError if a classifier has fewer than two classes."""
    if num_classes < 2:
        raise ValueError(f"num_classes {num_classes}: a classifier needs at least 2, as many as the data have")


def check_choices(known: Mapping[str, tuple[str, ...]], **chosen: str) -> None:
    """Raises: ValueError if an option has a value that is not among its known ones."""
    for option, value in chosen.items():
        if value not in known[option]:
            raise ValueError(f"unknown {option} {value!r}; known: {', '.join(known[option])}")


def resolutions(sides: Sequence[int], levels: int) -> list[int]:
    """The longer side of each level, in positions, finest level first, after padding to a multiple of 2^(levels - 1).

    Raises: ValueError if there are no levels.
    """
    if levels < 1:
        raise ValueError("channel_mult is empty: give a number for each level, such as (1, 2)")
    multiple = 2 ** (levels - 1)
    longest = max(side + -side % multiple for side in sides)
    return [longest // 2**level for level in range(levels)]


def indivisible(shape: tuple[int, ...], levels: int) -> str:
    """Error message for a shape that the levels do not divide, with the nearest shapes that they do."""
    channels, *sides = shape
    multiple = 2 ** (levels - 1)
    smaller = (channels, *(max(multiple, side - side % multiple) for side in sides))
    larger = (channels, *(side + -side % multiple for side in sides))
    return (
        f"shape {tuple(shape)} does not divide by {multiple}, as {levels} levels need; "
        f"the nearest shapes that do are {smaller} and {larger}"
    )


class Dropout(nn.Dropout):
    """Dropout: in training, sets each activation to zero with probability p and rescales the others.

        y = x m / (1 - p),    m = 1 with probability 1 - p, else 0

    On a CPU it takes less than half the time of torch's: each 64-bit random number gives four entries of m, so p is
    rounded to a multiple of 2^-16.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = min(round(2**16 * self.p), 2**16 - 1)
        if not (self.training and x.is_cpu and dropped > 0 and self.p < 1):
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return x * kept.to(x.dtype).mul_(2**16 / (2**16 - dropped))


class FiLM(nn.Module):
    """Scales and shifts each channel by linear functions of the conditioning vector; the identity at initialisation.

        h -> h (1 + scale(c)) + shift(c)

    Shapes: h (B, C, *), c (B, width); returns (B, C, *).
    Reference: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018. arXiv:1709.07871
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.projection = zeroed(nn.Linear(width, 2 * channels))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        steered = self.projection(c)
        scale, shift = steered.reshape(*steered.shape, *[1] * (h.ndim - 2)).chunk(2, dim=1)
        return torch.addcmul(shift, h, 1 + scale)


class ResidualBlock(nn.Module):
    """Residual block of two normalised convolutions, modulated by the conditioning vector.

        (shortcut(x) + conv(dropout(silu(film(norm(conv(silu(norm(x)))), c))))) / sqrt(2)

    The second convolution is zero at initialisation, so a new block equals its shortcut; sqrt(2) keeps the variance.

    Args:
        rank: 1 for signals, 2 for images.
        dropout: dropout probability, in [0, 1).
    Shapes: x (B, channels_in, *), c (B, width); returns (B, channels_out, *).
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix H. arXiv:2011.13456
    """

    def __init__(self, rank: int, channels_in: int, channels_out: int, width: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = group_norm(channels_in), convolution(rank, channels_in, channels_out)
        self.norm2, self.conv2 = group_norm(channels_out), zeroed(convolution(rank, channels_out, channels_out))
        self.film = FiLM(channels_out, width)
        self.dropout = Dropout(dropout)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else convolution(rank, channels_in, channels_out, kernel=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.film(self.norm2(h), c))))
        return (self.shortcut(x) + h) * math.sqrt(0.5)


class Attention(nn.Module):
    """Self-attention over all positions, with a shortcut and one head per 64 channels.

    Shapes: x (B, C, *); returns the same.
    Reference: Vaswani et al., "Attention Is All You Need", 2017, eq. 1. arXiv:1706.03762
    """

    def __init__(self, channels: int):
        super().__init__()
        self.heads = max(1, channels // 64)
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + h.transpose(1, 2).reshape_as(x)) * math.sqrt(0.5)
