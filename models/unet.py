"""The U-Net of the DDPM++ family, for signals and images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.embeddings import Conditioning
from models.layers import Attention, ResidualBlock, convolution, double, group_norm, halve, zeroed


class UNet(nn.Module):
    """Residual blocks down to a coarse grid and up again; the decoder reads what the encoder wrote at each level.

    Zero at initialisation. One code for (C, L) and (C, H, W); H and W may differ.

    Args:
        shape: (C, L) or (C, H, W), of one example.
        channels: number of channels at the finest level, an even number.
        channel_mult: number of channels of each level as a multiple of ``channels``, from the finest to the
            coarsest; each level has half the resolution of the one before.
        num_blocks: number of residual blocks a level, on each side.
        attention: resolutions (lengths of the longer side, in positions) whose blocks are followed by attention; the
            first of the two blocks in the middle, on the coarsest grid, always is.
        dropout: share of the activations that training sets to zero, 0 to 1.
        num_classes: number of labels, 0 for an unconditional network.
        pad: whether a shape that the levels do not divide is padded with zeros, and the result cropped.
    Shapes: x (B, *shape), log_snr (B,), keep bool (B,), label int64 (B,); returns (B, *shape).
    Raises: ValueError if shape has another rank, or does not divide and pad is False.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix H. arXiv:2011.13456
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 16,
        channel_mult: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        attention: tuple[int, ...] = (),
        dropout: float = 0.1,
        num_classes: int = 0,
        pad: bool = False,
    ):
        super().__init__()
        if len(shape) not in (2, 3):
            raise ValueError(f"the unet network takes shapes (C, L) and (C, H, W), not {tuple(shape)}")
        data_channels, *sides = shape
        rank, levels, width = len(sides), len(channel_mult), 4 * channels
        self.missing = [-side % 2 ** (levels - 1) for side in sides]
        if any(self.missing) and not pad:
            raise ValueError(indivisible(shape, levels))
        longest = max(side + missing for side, missing in zip(sides, self.missing, strict=True))

        def stage(channels_in: int, channels_out: int, attends: bool) -> Stage:
            return Stage(ResidualBlock(rank, channels_in, channels_out, width, dropout), attends)

        self.conditioning = Conditioning(width, num_classes)
        self.stem = convolution(rank, data_channels, channels)
        self.encoder, self.decoder, written, current = nn.ModuleList(), nn.ModuleList(), [], channels
        attending = [longest // 2**level in attention for level in range(levels)]
        for level, multiple in enumerate(channel_mult):
            self.encoder.append(nn.ModuleList())
            for _ in range(num_blocks):
                self.encoder[-1].append(stage(current, channels * multiple, attending[level]))
                current = channels * multiple
                written.append(current)
        self.middle = nn.ModuleList([stage(current, current, True), stage(current, current, False)])
        for level, multiple in reversed(list(enumerate(channel_mult))):
            self.decoder.append(nn.ModuleList())
            for _ in range(num_blocks):
                self.decoder[-1].append(stage(current + written.pop(), channels * multiple, attending[level]))
                current = channels * multiple
        self.output = nn.Sequential(group_norm(current), nn.SiLU(), zeroed(convolution(rank, current, data_channels)))

    def forward(self, x: Tensor, log_snr: Tensor, keep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        c = self.conditioning(log_snr, keep, label)
        padded = F.pad(x, [n for missing in reversed(self.missing) for n in (0, missing)])
        h, written = self.stem(padded), []
        for level, stages in enumerate(self.encoder):
            h = halve(h) if level else h
            for stage in stages:
                h = stage(h, c)
                written.append(h)
        for stage in self.middle:
            h = stage(h, c)
        for level, stages in enumerate(self.decoder):
            h = double(h) if level else h
            for stage in stages:
                h = stage(torch.cat([h, written.pop()], dim=1), c)
        return self.output(h)[(..., *(slice(side) for side in x.shape[2:]))]


class Stage(nn.Module):
    """A residual block, followed by attention at the resolutions that ask for it."""

    def __init__(self, block: ResidualBlock, attends: bool):
        super().__init__()
        self.block = block
        self.attention = Attention(block.norm2.num_channels) if attends else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.attention(self.block(x, c))


def indivisible(shape: tuple[int, ...], levels: int) -> str:
    """Say which sides the levels do not divide, and the nearest shapes that they would."""
    channels, *sides = shape
    multiple = 2 ** (levels - 1)
    smaller = (channels, *(max(multiple, side - side % multiple) for side in sides))
    larger = (channels, *(side + -side % multiple for side in sides))
    return (
        f"shape {tuple(shape)} does not divide by {multiple}, as {levels} levels need; "
        f"the nearest shapes that do are {smaller} and {larger}, or set network.pad=True"
    )
