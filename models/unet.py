"""The U-Net of the DDPM++ family, for signals and images."""

from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.embeddings import Conditioning
from score_sde.models.layers import (
    Attention,
    ResidualBlock,
    all_of,
    ascend,
    convolution,
    descend,
    double,
    group_norm,
    halve,
    indivisible,
    resolutions,
    zeroed,
)


class Encoder(nn.Module):
    """The encoder of the U-Net.

    Args: as in ``UNet``.
    Raises: ValueError for a shape of another rank, or one that the levels do not divide unless pad is set.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int,
        channel_mult: tuple[int, ...],
        num_blocks: int,
        attention: tuple[int, ...],
        dropout: float,
        num_classes: int,
        noise_unconditional: bool,
        pad: bool,
    ):
        super().__init__()
        if len(shape) not in (2, 3):
            name = type(self).__name__.lower()
            raise ValueError(f"the {name} network takes shapes (C, L) and (C, H, W), not {tuple(shape)}")
        data_channels, *sides = shape
        self.rank, levels, self.width, self.dropout = len(sides), len(channel_mult), 4 * channels, dropout
        self.missing = [-side % 2 ** (levels - 1) for side in sides]
        if any(self.missing) and not pad:
            raise ValueError(f"{indivisible(shape, levels)}, or set network.pad=True")
        self.attending = [side in attention for side in resolutions(sides, levels)]

        self.conditioning = Conditioning(self.width, num_classes, noise_unconditional)
        self.stem = convolution(self.rank, data_channels, channels)
        self.encoder, current = nn.ModuleList(), channels
        for level, multiple in enumerate(channel_mult):
            stages = nn.ModuleList()
            for _ in range(num_blocks):
                stages.append(self.stage(current, channels * multiple, self.attending[level]))
                current = channels * multiple
            self.encoder.append(stages)

    def stage(self, channels_in: int, channels_out: int, attends: bool) -> "Stage":
        """A residual block of this network, followed by attention if ``attends``."""
        return Stage(ResidualBlock(self.rank, channels_in, channels_out, self.width, self.dropout), attends)

    def encode(self, x: Tensor, c: Tensor) -> list[Tensor]:
        """The output of each block, from the finest resolution to the coarsest.

        Shapes: x (B, *shape), c (B, width); each (B, channels, *).
        """
        h = self.stem(F.pad(x, [n for missing in reversed(self.missing) for n in (0, missing)]))
        written: list[Tensor] = []
        for level, stages in enumerate(all_of(self.encoder, nn.ModuleList)):
            h = halve(h) if level else h
            h = descend(stages, h, c, written)
        return written


class UNet(Encoder):
    """U-Net with residual blocks and attention for signals and images; H and W may differ.

    Each decoder block reads a skip connection from an encoder block. The output is zero at initialisation.

    Args:
        shape: (C, L) or (C, H, W) of one example.
        channels: channels at the finest level, an even number.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level, in the encoder and in the decoder.
        attention: resolutions (longer side, in positions) whose blocks are followed by attention, such as (16,); the
            first of the two middle blocks always is.
        dropout: dropout probability, in [0, 1).
        num_classes: number of class labels; 0 for an unconditional network.
        noise_unconditional: whether the network ignores the noise level; the parameterization divides by it instead.
        learned_variance: whether the output has twice the channels, the second half for the variance of reverse steps
            (objectives ``bound`` and ``hybrid``); see ``Prediction``.
        pad: whether inputs whose sides the levels do not divide are padded with zeros, and the output cropped.
    Shapes: x (B, *shape), log_snr (B,), keep bool (B,), label int64 (B,); returns (B, *shape), or twice its channels.
    Raises: ValueError for a shape of another rank, or one that the levels do not divide unless pad is set.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix H. arXiv:2011.13456
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
        noise_unconditional: bool = False,
        learned_variance: bool = False,
        pad: bool = False,
    ):
        super().__init__(
            shape, channels, channel_mult, num_blocks, attention, dropout, num_classes, noise_unconditional, pad
        )
        written = [channels * multiple for multiple in channel_mult for _ in range(num_blocks)]
        self.decoder, current = nn.ModuleList(), written[-1]
        self.middle = nn.ModuleList([self.stage(current, current, True), self.stage(current, current, False)])
        for level, multiple in reversed(list(enumerate(channel_mult))):
            stages = nn.ModuleList()
            for _ in range(num_blocks):
                stages.append(self.stage(current + written.pop(), channels * multiple, self.attending[level]))
                current = channels * multiple
            self.decoder.append(stages)
        outputs = shape[0] * (1 + learned_variance)
        self.output = nn.Sequential(group_norm(current), nn.SiLU(), zeroed(convolution(self.rank, current, outputs)))

    def forward(self, x: Tensor, log_snr: Tensor, keep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        c = self.conditioning(log_snr, keep, label)
        written = self.encode(x, c)
        h = written[-1]
        for stage in self.middle:
            h = stage(h, c)
        for level, stages in enumerate(all_of(self.decoder, nn.ModuleList)):
            h = double(h) if level else h
            h = ascend(stages, h, c, written)
        return self.output(h)[(..., *(slice(side) for side in x.shape[2:]))]


class Stage(nn.Module):
    """A residual block, followed by attention if ``attends``."""

    def __init__(self, block: ResidualBlock, attends: bool):
        super().__init__()
        self.block = block
        self.attention = Attention(block.norm2.num_channels) if attends else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.attention(self.block(x, c))
