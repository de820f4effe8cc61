"""DDPM++ and NCSN++, the U-Nets of score_sde, and their variants."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.blocks import StageFactory, Style, initialise
from score_sde.models.embeddings import Fourier, LabelEmbedding, Positional
from score_sde.models.layers import (
    ascend,
    check_choices,
    check_image,
    convolution,
    descend,
    per_example,
    resolutions,
    zeroed,
)
from score_sde.models.resampling import FIR, Down, Up

CHOICES = {
    "blocks": ("biggan", "ddpm"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive": ("none", "output_skip", "residual"),
    "combine": ("sum", "cat"),
    "embedding": ("positional", "fourier"),
}


class Conditioning(nn.Module):
    """The conditioning vector: features of the noise level through two linear layers, plus label; outside autocast.

        silu(linear2(silu(linear1(features(noise)))) + label)

    Without features, for a noise-unconditional network, it is silu(label).

    Shapes: noise (B,), keep and label (B,) or None; returns (B, width).
    """

    def __init__(self, features: Positional | Fourier | None, width: int, num_classes: int):
        super().__init__()
        self.features = features
        if features is not None:
            self.linear1, self.linear2 = nn.Linear(features.width, width), nn.Linear(width, width)
        self.label = LabelEmbedding(num_classes, width) if num_classes or features is None else None

    def forward(self, noise: Tensor, keep: Tensor | None, label: Tensor | None) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            terms = [] if self.features is None else [self.linear2(F.silu(self.linear1(self.features(noise))))]
            if self.label is not None:
                terms.append(self.label(keep, label))
            return F.silu(sum(terms[1:], terms[0]))


class LogFourier(Fourier):
    """Random Fourier features of log(noise), for networks conditioned on sigma."""

    def forward(self, noise: Tensor) -> Tensor:
        return super().forward(noise.log())


def noise_features(embedding: str, channels: int, scale: float) -> Positional | Fourier:
    """Features of the noise level: ``positional``, or ``fourier`` with frequencies of standard deviation ``scale``."""
    if embedding == "fourier":
        return LogFourier(2 * channels, scale)
    return Positional(channels, cos_first=False, ends=True)


class Untouched(nn.Module):
    """No pyramid: the features stay as they are."""

    multiple = 1

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return h, pyramid


class InputSkip(nn.Module):
    """Adds the downsampled input, convolved, to the encoder's features, or concatenates it.

    ``multiple`` is the factor by which the number of channels grows.

    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix H.2. arXiv:2011.13456
    """

    def __init__(self, channels_in: int, channels: int, fir: FIR, concatenate: bool):
        super().__init__()
        self.fir, self.concatenate, self.multiple = fir, concatenate, 1 + concatenate
        self.conv = nn.Conv2d(channels_in, channels, 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.fir.downsample(pyramid)
        skip = self.conv(pyramid)
        return (torch.cat([skip, h], dim=1) if self.concatenate else skip + h), pyramid


class InputResidual(nn.Module):
    """Adds the input, downsampled by convolutions level after level, to the encoder's features."""

    multiple = 1

    def __init__(self, channels_in: int, channels: int, fir: FIR, gain: float):
        super().__init__()
        self.down, self.gain = Down(channels_in, channels, fir, learned=True), gain

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = (self.down(pyramid) + h) * self.gain
        return h, h


class OutputSkip(nn.Module):
    """Adds the image of one decoder level to the upsampled sum of the images of the coarser levels."""

    def __init__(self, channels: int, channels_out: int, fir: FIR, style: Style):
        super().__init__()
        self.fir, self.norm = fir, style.norm(channels)
        self.conv = zeroed(convolution(2, channels, channels_out))

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        image = self.conv(F.silu(self.norm(h)))
        return h, image if pyramid is None else self.fir.upsample(pyramid) + image


class OutputResidual(nn.Module):
    """Adds the output of the coarser decoder level, upsampled by a convolution, to the features of this one."""

    def __init__(self, channels_in: int, channels: int, fir: FIR, style: Style):
        super().__init__()
        self.up, self.gain = Up(channels_in, channels, fir, learned=True), style.gain

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = (self.up(pyramid) + h) * self.gain
        return h, h


class OutputStart(nn.Module):
    """Convolves the features of the coarsest decoder level for the first ``OutputResidual``."""

    def __init__(self, channels: int, style: Style):
        super().__init__()
        self.norm, self.conv = style.norm(channels), convolution(2, channels, channels)

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        return h, self.conv(F.silu(self.norm(h)))


def input_pyramids(
    kind: str, data_channels: int, counts: list[int], fir: FIR, concatenate: bool, gain: float
) -> list[Untouched | InputSkip | InputResidual]:
    """The pyramid of each downsampled encoder level, whose features have ``counts`` channels before it."""
    if kind == "input_skip":
        return [InputSkip(data_channels, count, fir, concatenate) for count in counts]
    if kind == "residual":
        return [InputResidual(*each, fir, gain) for each in zip([data_channels, *counts], counts)]
    return [Untouched() for _ in counts]


def output_pyramids(kind: str, counts: list[int], data_channels: int, fir: FIR, style: Style) -> list[nn.Module]:
    """The pyramid of each decoder level, whose features have ``counts`` channels, coarsest level first."""
    if kind == "output_skip":
        return [OutputSkip(count, data_channels, fir, style) for count in counts]
    if kind == "residual":
        others = [OutputResidual(*each, fir, style) for each in pairwise(counts)]
        return [OutputStart(counts[0], style), *others]
    return [Untouched() for _ in counts]


class Level(nn.Module):
    """One resolution of the encoder or the decoder.

    Args:
        stages: residual blocks, with or without attention; in the decoder each reads a skip connection.
        change: to the next resolution; None at the last level.
        pyramid: combines the features with an image-like pyramid, see ``Untouched``, ``InputSkip`` and the others.
    """

    stages: nn.ModuleList
    change: nn.Module | None
    pyramid: nn.Module


class EncoderLevel(Level):
    """Stages, the change to the next resolution, and there the input pyramid."""

    def __init__(self, stages: nn.ModuleList, change: nn.Module | None, pyramid: nn.Module):
        super().__init__()
        self.stages, self.change, self.pyramid = stages, change, pyramid

    def forward(self, h: Tensor, pyramid: Tensor, c: Tensor, skips: list[Tensor]) -> tuple[Tensor, Tensor]:
        h = descend(self.stages, h, c, skips)
        if self.change is not None:
            h, pyramid = self.pyramid(self.change(h, c), pyramid)
            skips.append(h)
        return h, pyramid


class DecoderLevel(Level):
    """Stages, the output pyramid, and the change to the next resolution."""

    def __init__(self, stages: nn.ModuleList, pyramid: nn.Module, change: nn.Module | None):
        super().__init__()
        self.stages, self.pyramid, self.change = stages, pyramid, change

    def forward(
        self, h: Tensor, pyramid: Tensor | None, c: Tensor, skips: list[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        h, pyramid = self.pyramid(ascend(self.stages, h, c, skips), pyramid)
        return (h if self.change is None else self.change(h, c)), pyramid


class NCSNpp(nn.Module):
    """U-Net of score_sde: residual blocks with a skip connection from each encoder block, and optional image pyramids.

    The output is zero at initialisation. The defaults are DDPM++ on CIFAR-10; NCSN++ has ``fir`` (1, 3, 3, 1),
    ``progressive_input`` residual, ``embedding`` fourier and ``by_sigma``.

    Args:
        shape: (C, H, W) of one example.
        channels: channels at the finest level, a multiple of 4.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: resolutions (longer side, in pixels) with attention, such as (16,); the middle always has attention.
        dropout: dropout probability, in [0, 1).
        num_classes: number of class labels; 0 for an unconditional network.
        noise_unconditional: whether the network ignores the noise level.
        blocks: ``biggan``, where residual blocks change the resolution, or ``ddpm``, where layers between blocks do.
        fir: taps of the filter for down- and upsampling, such as (1, 3, 3, 1); () averages and repeats pixels.
        resample_conv: whether the resampling layers of ``ddpm`` contain convolutions.
        progressive_input: how the encoder reads the downsampled input: ``none``, ``input_skip`` or ``residual``.
        progressive: how the decoder accumulates the output over levels: ``none``, ``output_skip`` or ``residual``.
        combine: how ``input_skip`` joins the features: ``sum`` or ``cat``.
        embedding: features of the noise level: ``positional``, or ``fourier`` of the logarithm of a positive level.
        fourier_scale: standard deviation of the frequencies of ``fourier``.
        rescale: whether sums of shortcut and branch are divided by sqrt(2).
        centred: whether the data lie in [-1, 1]; otherwise they lie in [0, 1], and the network maps them to [-1, 1].
        by_sigma: whether the output is divided by sigma.
        ladder: (sigma_min, sigma_max, number of levels) of a geometric sequence if ``by_sigma`` is set and the noise
            conditioning is an index into it, 0 for the largest sigma; () if the noise conditioning is sigma.
        norm_groups: largest number of groups of a group normalisation.
        norm_group: least channels per group.
        norm_eps: constant added to the variances of a group normalisation.
        head_channels: channels per attention head; 0 for a single head.
        attend_always: whether every decoder block at these resolutions is followed by attention, not only the last one.
    Shapes: x (B, *shape), noise (B,), keep bool (B,), label int64 (B,); returns (B, *shape).
    Raises: ValueError if shape is not (C, H, W), the levels do not divide H or W, or an option is unknown.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix H. arXiv:2011.13456
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 4,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        num_classes: int = 0,
        noise_unconditional: bool = False,
        blocks: str = "biggan",
        fir: tuple[float, ...] = (),
        resample_conv: bool = True,
        progressive_input: str = "none",
        progressive: str = "none",
        combine: str = "sum",
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        rescale: bool = True,
        centred: bool = True,
        by_sigma: bool = False,
        ladder: tuple[float, ...] = (),
        norm_groups: int = 32,
        norm_group: int = 4,
        norm_eps: float = 1e-6,
        head_channels: int = 0,
        attend_always: bool = False,
    ):
        super().__init__()
        check_image(shape, len(channel_mult), "ncsnpp")
        check_choices(
            CHOICES,
            blocks=blocks,
            progressive_input=progressive_input,
            progressive=progressive,
            combine=combine,
            embedding=embedding,
        )
        if len(ladder) not in (0, 3):
            raise ValueError(f"ladder {tuple(ladder)}: need sigma_min, sigma_max and the number of levels, or ()")
        data_channels, *sides = shape
        counts = [channels * multiple for multiple in channel_mult]
        attends = [side in attention for side in resolutions(sides, len(counts))]
        gain = math.sqrt(0.5) if rescale else 1.0
        style = Style(scale_shift=False, gain=gain, eps=norm_eps, group=norm_group, groups=norm_groups)
        make = StageFactory(4 * channels, dropout, style, head_channels=head_channels)
        self.centred, self.by_sigma, self.ladder = centred, by_sigma, tuple(ladder)
        self.fir, self.skips = FIR(fir), progressive == "output_skip"

        def change(channels: int, layer: type[Down] | type[Up]) -> nn.Module:
            if blocks == "ddpm":
                return layer(channels, channels, self.fir, resample_conv)
            resample = self.fir.downsample if layer is Down else self.fir.upsample
            return make.block(channels, channels, resample, project=True)

        features = None if noise_unconditional else noise_features(embedding, channels, fourier_scale)
        self.conditioning = Conditioning(features, make.width, num_classes)
        self.stem = convolution(2, data_channels, channels)
        joins = input_pyramids(progressive_input, data_channels, counts[:-1], self.fir, combine == "cat", gain)
        inputs = [channels, *(count * join.multiple for count, join in zip(counts, joins))]
        stages, skips = make.encoder(inputs, counts, num_blocks, attends)
        downs = [*(change(count, Down) for count in counts[:-1]), None]
        self.encoder = nn.ModuleList(map(EncoderLevel, stages, downs, [*joins, Untouched()]))
        self.middle = make.middle(counts[-1])
        stages = make.decoder(counts, skips, num_blocks, attends, attend_always)
        pyramids = output_pyramids(progressive, counts[::-1], data_channels, self.fir, style)
        ups = [*(change(count, Up) for count in counts[:0:-1]), None]
        self.decoder = nn.ModuleList(map(DecoderLevel, stages, pyramids, ups))
        if not self.skips:
            self.norm, self.output = style.norm(counts[0]), convolution(2, counts[0], data_channels)
        initialise(self)
        for module in self.modules():
            if isinstance(module, OutputSkip):
                zeroed(module.conv)
        if not self.skips:
            zeroed(self.output)

    def forward(self, x: Tensor, noise: Tensor, keep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        c = self.conditioning(noise, keep, label)
        pyramid = x if self.centred else 2 * x - 1
        h = self.stem(pyramid)
        skips = [h]
        for level in self.encoder:
            h, pyramid = level(h, pyramid, c, skips)
        for stage in self.middle:
            h = stage(h, c)
        image: Tensor | None = None
        for level in self.decoder:
            h, image = level(h, image, c, skips)
        out = self.output(F.silu(self.norm(h))) if image is None or not self.skips else image
        return out / per_example(self._sigma(noise), out) if self.by_sigma else out

    def _sigma(self, noise: Tensor) -> Tensor:
        """Sigma of the noise conditioning: sigma_max (sigma_min / sigma_max)^(noise / (N - 1)) of a level, or noise."""
        if self.ladder:
            sigma_min, sigma_max, num_levels = self.ladder
            noise = sigma_max * torch.exp(noise * (math.log(sigma_min / sigma_max) / (num_levels - 1)))
        return noise
