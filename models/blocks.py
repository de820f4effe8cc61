"""The residual block of published U-Nets, attention over positions, and a factory for both."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.layers import Dropout, convolution, zeroed


class Style(NamedTuple):
    """Settings shared by all blocks of a network.

    Args:
        scale_shift: whether the conditioning scales and shifts the output of the second normalisation, or is added to
            its input.
        gain: factor of the sum of shortcut and branch; sqrt(1/2) keeps the variance.
        eps: constant added to the variances of a group normalisation.
        group: least channels per group.
        groups: largest number of groups.
    """

    scale_shift: bool = True
    gain: float = 1.0
    eps: float = 1e-5
    group: int = 1
    groups: int = 32

    def norm(self, channels: int) -> nn.GroupNorm:
        """A group normalisation with these settings."""
        return nn.GroupNorm(math.gcd(channels, max(1, min(self.groups, channels // self.group))), channels, self.eps)


class Block(nn.Module):
    """Residual block of two normalised convolutions, modulated by the conditioning vector.

        h = conv1(resample(silu(norm1(x))))
        h = norm2(h) (1 + scale(c)) + shift(c),    or norm2(h + shift(c)) if the style does not scale
        gain (shortcut(resample(x)) + conv2(dropout(silu(h))))

    Args:
        width: number of channels of the conditioning vector.
        dropout: dropout probability, in [0, 1).
        style: settings shared by all blocks of the network.
        resample: changes the resolution of both paths; None keeps it.
        project: whether the shortcut is a convolution even if the number of channels stays the same.
    Shapes: x (B, channels_in, H, W), c (B, width); returns (B, channels_out, H', W').
    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, section 3. arXiv:2105.05233
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        dropout: float,
        style: Style,
        resample: Callable[[Tensor], Tensor] | None = None,
        project: bool = False,
    ):
        super().__init__()
        self.style, self.resample = style, resample or nn.Identity()
        self.norm1, self.conv1 = style.norm(channels_in), convolution(2, channels_in, channels_out)
        self.affine = nn.Linear(width, channels_out * (1 + style.scale_shift))
        self.norm2, self.conv2 = style.norm(channels_out), zeroed(convolution(2, channels_out, channels_out))
        self.dropout = Dropout(dropout)
        same = channels_in == channels_out and not project
        self.shortcut = nn.Identity() if same else convolution(2, channels_in, channels_out, kernel=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.conv1(self.resample(F.silu(self.norm1(x))))
        c = self.affine(c)[..., None, None]
        if self.style.scale_shift:
            scale, shift = c.chunk(2, dim=1)
            h = F.silu(shift + self.norm2(h) * (1 + scale))
        else:
            h = F.silu(self.norm2(h.add_(c)))  # in place: no gradient needs a convolution's output
        h = self.conv2(self.dropout(h)).add_(self.shortcut(self.resample(x)))
        return h if self.style.gain == 1 else h.mul_(self.style.gain)


class SelfAttention(nn.Module):
    """Self-attention over all positions, with a shortcut.

    Args:
        heads: number of attention heads, a divisor of channels.
    Shapes: x (B, channels, H, W); returns the same.
    Raises: ValueError if heads does not divide channels.
    Reference: Vaswani et al., "Attention Is All You Need", 2017, eq. 1. arXiv:1706.03762
    """

    def __init__(self, channels: int, heads: int, style: Style):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{heads} heads do not divide {channels} channels; choose heads or head_channels that do")
        self.heads, self.gain = heads, style.gain
        self.norm = style.norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.output = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.output(attend(self.qkv(self.norm(x).flatten(2).transpose(1, 2)), self.heads))
        h = x + h.transpose(1, 2).reshape_as(x)
        return h if self.gain == 1 else h * self.gain


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Returns multi-head attention; queries, keys and values are consecutive channels, each split into heads.

    Shapes: qkv (B, N, 3 C); returns (B, N, C).
    """
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def initialise(network: nn.Module) -> None:
    """Draws uniform weights of variance 2 / (inputs + outputs); the last layers of branches and attention are zero."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in network.modules():
        if isinstance(module, (Block, SelfAttention)):
            zeroed(module.conv2 if isinstance(module, Block) else module.output)


class Stage(nn.Module):
    """A block, followed by attention with ``heads`` heads; no attention if heads is 0."""

    def __init__(self, block: Block, heads: int):
        super().__init__()
        self.block = block
        self.attention = SelfAttention(block.norm2.num_channels, heads, block.style) if heads else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.attention(self.block(x, c))


class StageFactory(NamedTuple):
    """Builds the residual blocks of one network, with or without attention.

    Args:
        width: number of channels of the conditioning vector.
        dropout: dropout probability of each block, in [0, 1).
        style: normalisation, conditioning and scaling of all blocks.
        heads: attention heads; 0 derives them from ``head_channels``.
        head_channels: channels per attention head if heads is 0; 0 for a single head. Blocks with fewer channels have
            no attention.
    """

    width: int
    dropout: float
    style: Style
    heads: int = 0
    head_channels: int = 0

    def block(
        self,
        channels_in: int,
        channels_out: int,
        resample: Callable[[Tensor], Tensor] | None = None,
        project: bool = False,
    ) -> Block:
        """A residual block, see ``Block``."""
        return Block(channels_in, channels_out, self.width, self.dropout, self.style, resample, project)

    def stage(self, channels_in: int, channels_out: int, attends: bool) -> Stage:
        """A residual block, followed by attention if ``attends``."""
        heads = self.heads or channels_out // (self.head_channels or channels_out)
        return Stage(self.block(channels_in, channels_out), heads if attends else 0)

    def stages(self, channels_in: int, channels_out: int, num: int, attends: bool) -> nn.ModuleList:
        """``num`` stages in sequence; the first reads ``channels_in`` channels."""
        inputs = [channels_in, *[channels_out] * (num - 1)]
        return nn.ModuleList(self.stage(channels, channels_out, attends) for channels in inputs)

    def encoder(
        self, inputs: Sequence[int], counts: Sequence[int], num_blocks: int, attends: Sequence[bool]
    ) -> tuple[list[nn.ModuleList], list[int]]:
        """The stages of each encoder level, and the channels of the skip connections in the order of the forward pass.

        Args:
            inputs: number of channels that each level reads, which is its first skip connection.
            counts: number of channels of each level, finest level first.
            num_blocks: stages per level.
            attends: whether the stages of each level are followed by attention.
        """
        levels, skips = list[nn.ModuleList](), list[int]()
        for channels, count, attending in zip(inputs, counts, attends):
            levels.append(self.stages(channels, count, num_blocks, attending))
            skips += [channels, *num_blocks * [count]]
        return levels, skips

    def middle(self, channels: int) -> nn.ModuleList:
        """The two stages at the coarsest resolution, the first followed by attention."""
        return nn.ModuleList([self.stage(channels, channels, True), self.stage(channels, channels, False)])

    def decoder(
        self, counts: Sequence[int], skips: Sequence[int], num_blocks: int, attends: Sequence[bool], always: bool
    ) -> list[nn.ModuleList]:
        """The stages of each decoder level, coarsest level first; each stage reads one skip connection.

        Args:
            counts, num_blocks, attends: as in ``encoder``; each level has num_blocks + 1 stages.
            skips: channels of the skip connections, read from the last to the first.
            always: whether every stage of an attending level is followed by attention, not only the last one.
        """
        levels, current, left = list[nn.ModuleList](), counts[-1], list(skips)
        for count, attending in zip(reversed(counts), reversed(attends)):
            stages = nn.ModuleList()
            for last in (*num_blocks * [False], True):
                stages.append(self.stage(current + left.pop(), count, attending and (always or last)))
                current = count
            levels.append(stages)
        return levels
