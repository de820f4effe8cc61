"""DDPM++ and NCSN++: the U-Nets that score_sde trained, and by their options what lies between."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.blocks import Block, Stage, Style, initialise
from score_sde.models.embeddings import Fourier, LabelEmbedding, Positional
from score_sde.models.layers import all_of, ascend, beside, check_image, convolution, descend, resolutions, zeroed
from score_sde.models.resampling import FIR, Down, Up


class Told(nn.Module):
    """The vector that steers the blocks: features of the noise level, two linear layers, the label; outside autocast.

        silu(linear(silu(linear(features(noise)))) + label)

    A network that is noise_unconditional hears the label alone. Shapes: noise (B,), keep and label (B,) or None;
    returns (B, width).
    """

    def __init__(self, features: nn.Module | None, channels: int, width: int, num_classes: int):
        super().__init__()
        self.features = features
        if features is not None:
            self.linear1, self.linear2 = nn.Linear(channels, width), nn.Linear(width, width)
        self.label = LabelEmbedding(num_classes, width) if num_classes or features is None else None

    def forward(self, noise: Tensor, keep: Tensor | None, label: Tensor | None) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            told = [] if self.features is None else [self.linear2(F.silu(self.linear1(self.features(noise))))]
            if self.label is not None:
                told.append(self.label(keep, label))
            return F.silu(sum(told[1:], told[0]))


class LogFourier(Fourier):
    """Random waves of log(noise), for networks that are told sigma itself."""

    def forward(self, noise: Tensor) -> Tensor:
        return super().forward(noise.log())


class Untouched(nn.Module):
    """No pyramid beside the network."""

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return h, pyramid


class InputSkip(nn.Module):
    """The input at a lower resolution joins what the encoder has: added, or beside it. NCSN++, appendix H.2."""

    def __init__(self, channels_in: int, channels: int, fir: FIR, beside: bool):
        super().__init__()
        self.fir, self.beside = fir, beside
        self.conv = nn.Conv2d(channels_in, channels, 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        pyramid = self.fir.downsample(pyramid)
        seen = self.conv(pyramid)
        return (torch.cat([seen, h], dim=1) if self.beside else seen + h), pyramid


class InputResidual(nn.Module):
    """The input, convolved to a lower resolution and level after level, is added to what the encoder has."""

    def __init__(self, channels_in: int, channels: int, fir: FIR, gain: float):
        super().__init__()
        self.down, self.gain = Down(channels_in, channels, fir, learned=True), gain

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = (self.down(pyramid) + h) * self.gain
        return h, h


class OutputSkip(nn.Module):
    """Each level of the decoder adds its own image to the sum of those of the coarser levels."""

    def __init__(self, channels: int, channels_out: int, fir: FIR, style: Style):
        super().__init__()
        self.fir, self.norm = fir, style.norm(channels)
        self.conv = zeroed(convolution(2, channels, channels_out))

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        image = self.conv(F.silu(self.norm(h)))
        return h, image if pyramid is None else self.fir.upsample(pyramid) + image


class OutputResidual(nn.Module):
    """What the coarser levels of the decoder wrote is added to this one, convolved to its resolution."""

    def __init__(self, channels_in: int, channels: int, fir: FIR, style: Style):
        super().__init__()
        self.up, self.gain = Up(channels_in, channels, fir, learned=True), style.gain

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        h = (self.up(pyramid) + h) * self.gain
        return h, h


class OutputStart(nn.Module):
    """What the coarsest level of the decoder hands to ``OutputResidual``."""

    def __init__(self, channels: int, style: Style):
        super().__init__()
        self.norm, self.conv = style.norm(channels), convolution(2, channels, channels)

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        return h, self.conv(F.silu(self.norm(h)))


class Level(nn.Module):
    """One resolution of the encoder or the decoder.

    stages: residual blocks, with attention or without; in the decoder each reads what the encoder wrote.
    pyramid: how image-like features beside the network meet it.
    change: to the next resolution, None at the last; in the encoder before the pyramid, in the decoder after it.
    """

    pyramid: nn.Module
    change: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()


class NCSNpp(nn.Module):
    """Residual blocks down to a coarse grid and up again, the decoder reading what every block of the encoder wrote.

    Zero at initialisation. The defaults are DDPM++ on CIFAR-10; NCSN++ has ``fir`` (1, 3, 3, 1), ``progressive_input``
    residual, ``embedding`` fourier and ``by_sigma``.

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
    Raises: ValueError if shape has another rank or does not divide, or an option is unknown.
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
        for what, value, known in (
            ("blocks", blocks, ("biggan", "ddpm")),
            ("progressive_input", progressive_input, ("none", "input_skip", "residual")),
            ("progressive", progressive, ("none", "output_skip", "residual")),
            ("combine", combine, ("sum", "cat")),
            ("embedding", embedding, ("positional", "fourier")),
        ):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")
        if len(ladder) not in (0, 3):
            raise ValueError(f"ladder {tuple(ladder)}: need sigma_min, sigma_max and the number of levels, or ()")
        data_channels, *sides = shape
        gain = math.sqrt(0.5) if rescale else 1.0
        style = Style(scale_shift=False, gain=gain, eps=norm_eps, group=norm_group, groups=norm_groups)
        self.centred, self.by_sigma, self.ladder = centred, by_sigma, tuple(ladder)
        self.fir, width = FIR(fir), 4 * channels
        attends = [side in attention for side in resolutions(sides, len(channel_mult))]
        block = partial(Block, width=width, dropout=dropout, style=style)

        def stage(channels_in: int, channels_out: int, attends: bool) -> Stage:
            heads = channels_out // (head_channels or channels_out)
            return Stage(block(channels_in, channels_out), heads if attends else 0)

        def change(channels: int, layer: type[Down] | type[Up]) -> nn.Module:
            if blocks == "ddpm":
                return layer(channels, channels, self.fir, resample_conv)
            resample = self.fir.downsample if layer is Down else self.fir.upsample
            return block(channels, channels, resample=resample, project=True)

        features: nn.Module | None = None
        count = channels
        if not noise_unconditional and embedding == "fourier":
            features, count = LogFourier(2 * channels, fourier_scale), 2 * channels
        elif not noise_unconditional:
            features = Positional(channels, cos_first=False, ends=True)
        self.conditioning = Told(features, count, width, num_classes)
        self.stem = convolution(2, data_channels, channels)

        self.encoder, written, current, seen = nn.ModuleList(), [channels], channels, data_channels
        for number, multiple in enumerate(channel_mult):
            level, last = Level(), number == len(channel_mult) - 1
            for _ in range(num_blocks):
                level.stages.append(stage(current, channels * multiple, attends[number]))
                current = channels * multiple
                written.append(current)
            level.change = None if last else change(current, Down)
            level.pyramid = Untouched()
            if not last and progressive_input == "input_skip":
                skip = InputSkip(seen, current, self.fir, combine == "cat")
                level.pyramid = skip
                current *= 1 + skip.beside
            elif not last and progressive_input == "residual":
                level.pyramid = InputResidual(seen, current, self.fir, gain)
                seen = current
            written += [] if last else [current]
            self.encoder.append(level)

        self.middle = nn.ModuleList([stage(current, current, True), stage(current, current, False)])

        self.decoder, seen = nn.ModuleList(), 0
        for number, multiple in reversed(list(enumerate(channel_mult))):
            level = Level()
            for left in reversed(range(num_blocks + 1)):
                attending = attends[number] and (attend_always or left == 0)
                level.stages.append(stage(current + written.pop(), channels * multiple, attending))
                current = channels * multiple
            level.pyramid = Untouched()
            if progressive == "output_skip":
                level.pyramid = OutputSkip(current, data_channels, self.fir, style)
            elif progressive == "residual":
                level.pyramid = OutputResidual(seen, current, self.fir, style) if seen else OutputStart(current, style)
                seen = current
            level.change = change(current, Up) if number else None
            self.decoder.append(level)

        self.skips = progressive == "output_skip"
        if not self.skips:
            self.norm, self.output = style.norm(current), convolution(2, current, data_channels)
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
        written = [h]
        for level in all_of(self.encoder, Level):
            h = descend(level.stages, h, c, written)
            if level.change is not None:
                h, pyramid = level.pyramid(level.change(h, c), pyramid)
                written.append(h)
        for stage in self.middle:
            h = stage(h, c)
        image: Tensor | None = None
        for level in all_of(self.decoder, Level):
            h = ascend(level.stages, h, c, written)
            h, image = level.pyramid(h, image)
            h = h if level.change is None else level.change(h, c)
        out = self.output(F.silu(self.norm(h))) if image is None or not self.skips else image
        return out / beside(self._sigma(noise), out) if self.by_sigma else out

    def _sigma(self, noise: Tensor) -> Tensor:
        """sigma_max (sigma_min / sigma_max)^(level / (N - 1)) of a level, or what the network was told."""
        if self.ladder:
            sigma_min, sigma_max, num_levels = self.ladder
            noise = sigma_max * torch.exp(noise * (math.log(sigma_min / sigma_max) / (num_levels - 1)))
        return noise
