"""The U-Net and the noisy classifier of guided diffusion; options give the U-Nets of improved diffusion and EDM."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.blocks import StageFactory, Style, attend
from score_sde.models.embeddings import LabelEmbedding, Positional
from score_sde.models.layers import (
    all_of,
    ascend,
    check_image,
    check_num_classes,
    convolution,
    descend,
    double,
    halve,
    resolutions,
    zeroed,
)


class Conditioning(nn.Module):
    """The conditioning vector: Fourier features of the noise level, two linear layers, plus label; outside autocast.

        silu(layers(waves(noise) + augment) + label)

    Shapes: noise (B,), keep and label (B,) or None, augment (B, augment_dim) or None; returns (B, width).
    """

    def __init__(self, channels: int, width: int, num_classes: int, augment_dim: int):
        super().__init__()
        self.waves = Positional(channels, cos_first=True, ends=False)
        self.layers = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        self.label = LabelEmbedding(num_classes, width) if num_classes else None
        self.augment = nn.Linear(augment_dim, channels, bias=False) if augment_dim else None

    def forward(self, noise: Tensor, keep: Tensor | None, label: Tensor | None, augment: Tensor | None) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            c = self.waves(noise)
            if self.augment is not None and augment is not None:
                c = c + self.augment(augment.to(c.dtype))
            c = self.layers(c)
            return F.silu(c if self.label is None else c + self.label(keep, label))


class ADMEncoder(nn.Module):
    """The encoder of the U-Net, and its two middle blocks.

    Args: as in ``ADM``.
    Raises: ValueError if shape is not (C, H, W), the levels do not divide H or W, or heads do not divide channels.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int,
        channel_mult: tuple[float, ...],
        num_blocks: int,
        attention: tuple[int, ...],
        heads: int,
        head_channels: int,
        dropout: float,
        num_classes: int,
        scale_shift: bool,
        resample_blocks: bool,
        embedding_mult: int,
        norm_group: int,
        norm_groups: int,
        norm_eps: float,
        augment_dim: int,
    ):
        super().__init__()
        levels, sides = len(channel_mult), shape[1:]
        check_image(shape, levels, type(self).__name__.lower())
        style = Style(scale_shift, eps=norm_eps, group=norm_group, groups=norm_groups)
        self.make = StageFactory(channels * embedding_mult, dropout, style, heads, head_channels)
        self.resample_blocks = resample_blocks
        self.attends = [side in attention for side in resolutions(sides, levels)]
        self.counts = [int(channels * multiple) for multiple in channel_mult]

        self.conditioning = Conditioning(channels, self.make.width, num_classes, augment_dim)
        current = self.counts[0]
        self.stem = convolution(2, shape[0], current)
        self.encoder, self.skips = nn.ModuleList(), [current]
        for level, count in enumerate(self.counts):
            if level:
                self.encoder.append(self.resampling(current, halve))
                self.skips.append(current)
            self.encoder.extend(self.make.stages(current, count, num_blocks, self.attends[level]))
            self.skips += num_blocks * [count]
            current = count
        self.middle = self.make.middle(current)

    def resampling(self, channels: int, resample: Callable[[Tensor], Tensor]) -> nn.Module:
        """The layer that halves or doubles the resolution: a block, or a convolution as in improved diffusion."""
        if self.resample_blocks:
            return self.make.block(channels, channels, resample)
        return Strided(channels) if resample is halve else Doubled(channels)

    def encode(self, x: Tensor, c: Tensor) -> list[Tensor]:
        """The outputs of the stem and of each block, from the finest resolution to the coarsest, then of the middle."""
        written = [self.stem(x)]
        h = descend(self.encoder, written[-1], c, written)
        for stage in self.middle:
            h = stage(h, c)
        return [*written, h]


class ADM(ADMEncoder):
    """U-Net with residual blocks, attention, and a skip connection from each encoder block to a decoder block.

    The output is zero at initialisation.

    Args:
        shape: (C, H, W) of one example.
        channels: base number of channels, which ``channel_mult`` multiplies; an even number.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: resolutions (longer side, in pixels) whose blocks are followed by attention, such as (32, 16, 8); the
            first of the two middle blocks always is.
        heads: number of attention heads; 0 derives it from ``head_channels``.
        head_channels: channels per attention head if heads is 0; blocks with fewer channels have no attention.
        dropout: dropout probability, in [0, 1).
        num_classes: number of class labels; 0 for an unconditional network.
        learned_variance: whether the output has twice the channels, the second half for the variance of reverse steps
            (objectives ``bound`` and ``hybrid``); see ``Prediction``.
        scale_shift: whether the conditioning scales and shifts the features, or is added; improved diffusion has both
            variants.
        resample_blocks: whether residual blocks change the resolution, or single convolutions as in improved diffusion.
        embedding_mult: width of the conditioning vector as a multiple of ``channels``.
        norm_group: least channels per group of a group normalisation; 4 in EDM, 1 in guided diffusion, where a network
            of few channels ignores an added conditioning.
        norm_groups: largest number of groups of a group normalisation.
        norm_eps: constant added to the variances of a group normalisation.
        augment_dim: number of features that describe the augmentation of an example; 0 for none, 9 in EDM.
    Shapes: x (B, C, H, W), noise (B,), keep bool (B,), label int64 (B,), augment (B, augment_dim), zeros by default;
        returns (B, C, H, W), or twice its channels.
    Raises: ValueError if shape is not (C, H, W), the levels do not divide H or W, or heads do not divide channels.
    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, section 3. arXiv:2105.05233
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 8, for the
        variant of EDM. arXiv:2206.00364
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 32,
        channel_mult: tuple[float, ...] = (1.0, 2.0),
        num_blocks: int = 1,
        attention: tuple[int, ...] = (),
        heads: int = 0,
        head_channels: int = 64,
        dropout: float = 0.0,
        num_classes: int = 0,
        learned_variance: bool = False,
        scale_shift: bool = True,
        resample_blocks: bool = True,
        embedding_mult: int = 4,
        norm_group: int = 4,
        norm_groups: int = 32,
        norm_eps: float = 1e-5,
        augment_dim: int = 0,
    ):
        super().__init__(
            shape,
            channels,
            channel_mult,
            num_blocks,
            attention,
            heads,
            head_channels,
            dropout,
            num_classes,
            scale_shift,
            resample_blocks,
            embedding_mult,
            norm_group,
            norm_groups,
            norm_eps,
            augment_dim,
        )
        levels = self.make.decoder(self.counts, self.skips, num_blocks, self.attends, always=True)
        self.decoder = nn.ModuleList(levels)
        self.ups = nn.ModuleList(self.resampling(count, double) for count in reversed(self.counts[1:]))
        outputs = shape[0] * (1 + learned_variance)
        last = zeroed(convolution(2, self.counts[0], outputs))
        self.output = nn.Sequential(self.make.style.norm(self.counts[0]), nn.SiLU(), last)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        keep: Tensor | None = None,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        c = self.conditioning(noise, keep, label, augment)
        *written, h = self.encode(x, c)
        for level, stages in enumerate(all_of(self.decoder, nn.ModuleList)):
            h = self.ups[level - 1](h, c) if level else h
            h = ascend(stages, h, c, written)
        return self.output(h)


class Strided(nn.Module):
    """A convolution with stride 2, which halves the resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.conv(x)


class Doubled(nn.Module):
    """Nearest-neighbour upsampling and a convolution, which double the resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = convolution(2, channels, channels)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.conv(double(x))


class ADMClassifier(ADMEncoder):
    """The encoder and the middle of ``ADM``, pooling over all positions, and a linear layer; zero at initialisation.

    Args:
        shape: (C, H, W) of one example.
        channels: base number of channels, which ``channel_mult`` multiplies; an even number.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level.
        attention: resolutions (longer side, in pixels) whose blocks are followed by attention, such as (32, 16, 8); the
            first of the two middle blocks always is.
        heads: number of attention heads; 0 derives it from ``head_channels``.
        head_channels: channels per attention head if heads is 0; blocks with fewer channels have no attention.
        dropout: dropout probability, in [0, 1).
        num_classes: number of logits, at least 2: the number of classes of the data.
        pool: pooling over positions, a key of ``POOLS``: attention, adaptive (the mean), spatial or spatial_v2.
        scale_shift: whether the conditioning scales and shifts the features, or is added; improved diffusion has both
            variants.
        resample_blocks: whether residual blocks change the resolution, or single convolutions as in improved diffusion.
        norm_group: least channels per group of a group normalisation; 1 in guided diffusion.
    Shapes: x (B, C, H, W), noise (B,); returns (B, num_classes).
    Raises: ValueError for fewer than two classes or an unknown pool, and as ``ADM``.
    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, section 4.3. arXiv:2105.05233
    """

    output_kinds: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 32,
        channel_mult: tuple[float, ...] = (1.0, 2.0),
        num_blocks: int = 1,
        attention: tuple[int, ...] = (),
        heads: int = 0,
        head_channels: int = 64,
        dropout: float = 0.0,
        num_classes: int = 10,
        pool: str = "attention",
        scale_shift: bool = True,
        resample_blocks: bool = True,
        norm_group: int = 4,
    ):
        check_num_classes(num_classes)
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}; known: {', '.join(POOLS)}")
        super().__init__(
            shape,
            channels,
            channel_mult,
            num_blocks,
            attention,
            heads,
            head_channels,
            dropout,
            num_classes=0,
            scale_shift=scale_shift,
            resample_blocks=resample_blocks,
            embedding_mult=4,
            norm_group=norm_group,
            norm_groups=32,
            norm_eps=1e-5,
            augment_dim=0,
        )
        sides = [side // 2 ** (len(channel_mult) - 1) for side in shape[1:]]
        self.pool = POOLS[pool](self, sides)
        self.num_classes, self.num_features = num_classes, self.pool.num_features
        self.output = zeroed(nn.Linear(self.num_features, num_classes))

    def features(self, x: Tensor, noise: Tensor) -> Tensor:
        """Input of the last layer, (B, num_features)."""
        return self.pool(self.encode(x, self.conditioning(noise, None, None, None)))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.output(self.features(x, noise))


class MeanPool(nn.Module):
    """Mean of the middle's features over all positions."""

    def __init__(self, encoder: ADMEncoder, sides: list[int]):
        super().__init__()
        self.num_features = encoder.counts[-1]
        self.norm = encoder.make.style.norm(self.num_features)

    def forward(self, written: list[Tensor]) -> Tensor:
        return F.silu(self.norm(written[-1])).flatten(2).mean(2)


class AttentionPool(nn.Module):
    """Attention over all positions with their mean as the query.

    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section
        2.4. arXiv:2103.00020
    """

    def __init__(self, encoder: ADMEncoder, sides: list[int]):
        super().__init__()
        self.num_features = encoder.counts[-1]
        self.heads = encoder.make.heads or max(1, self.num_features // encoder.make.head_channels)
        self.norm = encoder.make.style.norm(self.num_features)
        self.positions = nn.Parameter(torch.randn(sides[0] * sides[1] + 1, self.num_features) * self.num_features**-0.5)
        self.qkv = nn.Linear(self.num_features, 3 * self.num_features)

    def forward(self, written: list[Tensor]) -> Tensor:
        tokens = F.silu(self.norm(written[-1])).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positions
        return attend(self.qkv(tokens), self.heads)[:, 0]


class SpatialPool(nn.Module):
    """Means over all positions of the outputs of stem, blocks and middle, then a hidden layer of 2,048 units."""

    width = 2048

    def __init__(self, encoder: ADMEncoder, sides: list[int], normalised: bool = False):
        super().__init__()
        self.num_features = self.width
        self.hidden = nn.Linear(sum(encoder.skips) + encoder.counts[-1], self.width)
        self.norm = nn.GroupNorm(32, self.width) if normalised else nn.Identity()
        self.activation = nn.SiLU() if normalised else nn.ReLU()

    def forward(self, written: list[Tensor]) -> Tensor:
        means = torch.cat([h.flatten(2).mean(2) for h in written], dim=1)
        return self.activation(self.norm(self.hidden(means)))


def normalised_spatial_pool(encoder: ADMEncoder, sides: list[int]) -> SpatialPool:
    """``SpatialPool`` with a group normalisation of its hidden layer."""
    return SpatialPool(encoder, sides, normalised=True)


POOLS: dict[str, Callable[[ADMEncoder, list[int]], AttentionPool | MeanPool | SpatialPool]] = {
    "attention": AttentionPool,
    "adaptive": MeanPool,
    "spatial": SpatialPool,
    "spatial_v2": normalised_spatial_pool,
}
"""Published name -> pool factory ``(encoder, sides of the coarsest grid) -> pool``."""
