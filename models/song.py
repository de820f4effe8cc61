"""EDM's versions of the U-Nets of Song et al.: DDPM++ and NCSN++."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.blocks import StageFactory, Style, initialise
from score_sde.models.embeddings import Fourier, LabelEmbedding, Positional
from score_sde.models.layers import (
    all_of,
    ascend,
    check_choices,
    check_image,
    convolution,
    descend,
    resolutions,
    zeroed,
)
from score_sde.models.resampling import FIR, Down

CHOICES = {
    "embedding": ("positional", "fourier"),
    "encoder": ("standard", "skip", "residual"),
    "decoder": ("standard", "skip"),
}

STYLE = Style(scale_shift=False, gain=math.sqrt(0.5), eps=1e-6, group=4)


class Waves(Fourier):
    """Fourier features with EDM's rounding, (2 pi w) l: phases reach a thousand radians, where the order matters."""

    def forward(self, noise: Tensor) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            angles = noise.to(self.frequencies.dtype)[:, None] * (2 * math.pi * self.frequencies)
            return torch.cat([angles.sin(), angles.cos()], dim=1)


class Conditioning(nn.Module):
    """The conditioning vector: two linear layers on the noise features plus label; outside autocast.

        silu(layers(features(noise) + label + augment))

    Shapes: noise (B,), keep and label (B,) or None, augment (B, augment_dim) or None; returns (B, width).
    """

    def __init__(self, features: nn.Module, features_width: int, width: int, num_classes: int, augment_dim: int):
        super().__init__()
        self.features = features
        self.layers = nn.Sequential(nn.Linear(features_width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = LabelEmbedding(num_classes, features_width) if num_classes else None
        self.augment = nn.Linear(augment_dim, features_width, bias=False) if augment_dim else None

    def forward(self, noise: Tensor, keep: Tensor | None, label: Tensor | None, augment: Tensor | None) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            c = self.features(noise)
            if self.label is not None:
                c = c + self.label(keep, label)
            if self.augment is not None and augment is not None:
                c = c + self.augment(augment.to(c.dtype))
            return F.silu(self.layers(c))


class Song(nn.Module):
    """U-Net of EDM in the architectures DDPM++ and NCSN++, with single-head attention.

    In the decoder, only the last block of a level has attention. The output is zero at initialisation.

    Args:
        shape: (C, H, W) of one example.
        channels: base number of channels, which ``channel_mult`` multiplies; an even number.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: resolutions (longer side, in pixels) with attention, such as (16,); the middle always has attention.
        dropout: dropout probability, in [0, 1).
        num_classes: number of class labels; 0 for an unconditional network.
        embedding: features of the noise level: ``positional``, or ``fourier`` for random frequencies.
        embedding_mult: width of the conditioning vector as a multiple of ``channels``.
        noise_mult: number of features of the noise level as a multiple of ``channels``.
        encoder: ``standard``; ``skip`` and ``residual`` add features of the downsampled image at each level.
        decoder: ``standard``; ``skip`` adds an image of each level to the output.
        fir: taps of the filter for down- and upsampling, such as (1, 3, 3, 1); () averages and repeats pixels.
        learned_variance: whether the output has twice the channels, the second half for the variance of reverse steps
            (objectives ``bound`` and ``hybrid``); see ``Prediction``.
        augment_dim: number of features that describe the augmentation of an example; 0 for none, 9 in EDM.
    Shapes: x (B, C, H, W), noise (B,), keep bool (B,), label int64 (B,), augment (B, augment_dim), zeros by default;
        returns (B, C, H, W), or twice its channels.
    Raises: ValueError if shape is not (C, H, W), the levels do not divide H or W, or an option is unknown.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix H. arXiv:2011.13456
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 8.
        arXiv:2206.00364
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 16,
        channel_mult: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        attention: tuple[int, ...] = (),
        dropout: float = 0.0,
        num_classes: int = 0,
        embedding: str = "positional",
        embedding_mult: int = 4,
        noise_mult: int = 1,
        encoder: str = "standard",
        decoder: str = "standard",
        fir: tuple[float, ...] = (),
        learned_variance: bool = False,
        augment_dim: int = 0,
    ):
        super().__init__()
        check_image(shape, len(channel_mult), "song")
        check_choices(CHOICES, embedding=embedding, encoder=encoder, decoder=decoder)
        data_channels, *sides = shape
        counts = [channels * multiple for multiple in channel_mult]
        attends = [side in attention for side in resolutions(sides, len(counts))]
        make = StageFactory(channels * embedding_mult, dropout, STYLE)
        self.fir, self.residual = FIR(fir), encoder == "residual"

        features = channels * noise_mult
        waves = Waves(features) if embedding == "fourier" else Positional(features, cos_first=False, ends=True)
        self.conditioning = Conditioning(waves, features, make.width, num_classes, augment_dim)
        self.stem = convolution(2, data_channels, channels)
        self.downs = nn.ModuleList(make.block(count, count, self.fir.downsample, project=True) for count in counts[:-1])
        self.readers = self._readers(encoder, data_channels, counts[:-1])
        levels, skips = make.encoder([channels, *counts[:-1]], counts, num_blocks, attends)
        self.encoder = nn.ModuleList(levels)
        self.middle = make.middle(counts[-1])
        self.decoder = nn.ModuleList(make.decoder(counts, skips, num_blocks, attends, always=False))
        self.ups = nn.ModuleList(make.block(count, count, self.fir.upsample, project=True) for count in counts[:0:-1])
        outputs = data_channels * (1 + learned_variance)
        self.writers = nn.ModuleList(
            nn.Sequential(STYLE.norm(count), nn.SiLU(), convolution(2, count, outputs))
            for count in (counts[::-1] if decoder == "skip" else counts[:1])
        )
        initialise(self)
        for writer in all_of(self.writers, nn.Sequential):
            zeroed(writer[2])

    def _readers(self, encoder: str, data_channels: int, counts: list[int]) -> nn.ModuleList:
        """One layer per downsampled level, which computes ``counts`` features of the image; none if standard."""
        if encoder == "skip":
            return nn.ModuleList(convolution(2, data_channels, count, kernel=1) for count in counts)
        if encoder == "residual":
            inputs = [data_channels, *counts]
            return nn.ModuleList(Down(read, count, self.fir, learned=True) for read, count in zip(inputs, counts))
        return nn.ModuleList()

    def read_again(self, image: Tensor, h: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The image at the resolution of h (``residual``: the new h), and h plus features of the image."""
        reader = self.readers[level - 1]
        if self.residual:
            h = (h + reader(image)) * STYLE.gain
            return h, h
        image = self.fir.downsample(image)
        return image, h + reader(image)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        keep: Tensor | None = None,
        label: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        c, image = self.conditioning(noise, keep, label, augment), x
        h = self.stem(x)
        written = [h]
        for level, stages in enumerate(all_of(self.encoder, nn.ModuleList)):
            if level:
                h = self.downs[level - 1](h, c)
                if self.readers:
                    image, h = self.read_again(image, h, level)
                written.append(h)
            h = descend(stages, h, c, written)
        for stage in self.middle:
            h = stage(h, c)
        output = None
        for level, stages in enumerate(all_of(self.decoder, nn.ModuleList)):
            h = self.ups[level - 1](h, c) if level else h
            h = ascend(stages, h, c, written)
            if len(self.writers) > 1:
                output = self.writers[level](h) + (0 if output is None else self.fir.upsample(output))
        return self.writers[0](h) if output is None else output
