"""NCSN and NCSNv2: an encoder of dilated residual blocks and a RefineNet decoder."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.layers import all_of, check_image, convolution, per_example, zeroed

Norm = Callable[[int], nn.Module]
"""Builds a normalisation of a number of channels, called as ``norm(x, level)``."""

Activation = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Activation] = {
    "elu": F.elu,
    "relu": F.relu,
    "lrelu": partial(F.leaky_relu, negative_slope=0.2),
    "swish": F.silu,
}

LEVELS = {
    4: (((1, 1), (2, 1), (2, 2), (2, 4)), (2, 2, 1, 1)),
    5: (((1, 1), (2, 1), (2, 1), (4, 2), (4, 4)), (4, 2, 2, 1, 1)),
    6: (((1, 1), (2, 1), (2, 1), (2, 1), (4, 2), (4, 4)), (4, 2, 2, 2, 1, 1)),
}
"""Depth -> (width, dilation) of each encoder level, and the decoder widths, coarsest level first.

Widths are multiples of ``channels``. These are the published networks for images of up to 64, 128 and 256 pixels.
"""


class InstanceNormPlus(nn.Module):
    """Instance normalisation that adds back the channel means, normalised over the channels.

        gamma (x - m) / s + gamma alpha (m - mean(m)) / std(m) + beta,    m, s over the positions of each channel

    Args:
        channels: number of channels, 2 or more.
        num_levels: number of noise levels, each with its own alpha, beta and gamma; 0 shares them over all levels.
    Shapes: x (B, channels, H, W), level int64 (B,); returns the shape of x.
    Reference: Song, Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019, appendix A.1.
        arXiv:1907.05600
    """

    def __init__(self, channels: int, num_levels: int = 0):
        super().__init__()
        self.channels = channels
        self.levels = nn.Embedding(num_levels, 3 * channels) if num_levels else None
        if self.levels is None:
            self.gamma, self.alpha = (nn.Parameter(nn.init.normal_(torch.empty(channels), 1.0, 0.02)) for _ in range(2))
            self.beta = nn.Parameter(torch.zeros(channels))
        else:
            nn.init.normal_(self.levels.weight[:, : 2 * channels].data, 1.0, 0.02)
            nn.init.zeros_(self.levels.weight[:, 2 * channels :].data)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        gamma, alpha, beta = (
            (self.gamma, self.alpha, self.beta) if self.levels is None else self.levels(level).chunk(3, dim=1)
        )
        means = x.mean((2, 3))
        means = (means - means.mean(1, keepdim=True)) / torch.sqrt(means.var(1, keepdim=True) + 1e-5)
        shift = torch.addcmul(beta, gamma * alpha, means)
        return torch.addcmul(shift[..., None, None], gamma.expand_as(shift)[..., None, None], F.instance_norm(x))


class Plain(nn.Module):
    """No normalisation."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x


def dilated(channels_in: int, channels_out: int, dilation: int) -> nn.Conv2d:
    """A 3 x 3 convolution with this dilation that keeps the resolution."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation)


def bare(channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution without bias."""
    return nn.Conv2d(channels, channels, 3, padding=1, bias=False)


class DilatedBlock(nn.Module):
    """Residual block of two dilated convolutions.

        shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))))))

    Args:
        dilation: dilation of the convolutions, 1 for none.
        down: whether the block is the first of a level below the finest; with dilation 1, average pooling of its output
            then halves the resolution.
    Shapes: x (B, channels_in, H, W); returns (B, channels_out, H, W), or (B, channels_out, H / 2, W / 2).
    """

    def __init__(self, channels_in: int, channels_out: int, norm: Norm, act: Activation, dilation: int, down: bool):
        super().__init__()
        self.act, between = act, channels_in if down else channels_out
        self.halves = down and dilation == 1
        self.norm1, self.conv1 = norm(channels_in), dilated(channels_in, between, dilation)
        self.norm2, self.conv2 = norm(between), dilated(between, channels_out, dilation)
        self.shortcut: nn.Module = nn.Identity()
        if down or channels_in != channels_out:
            wide = dilation > 1
            self.shortcut = (
                dilated(channels_in, channels_out, dilation) if wide else nn.Conv2d(channels_in, channels_out, 1)
            )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, level)))
        h = self.shortcut(x) + self.conv2(self.act(self.norm2(h, level)))
        return F.avg_pool2d(h, 2) if self.halves else h


class Residuals(nn.Module):
    """Residual units of two convolutions: x + conv(act(norm(conv(act(norm(x))))))."""

    def __init__(self, channels: int, norm: Norm, act: Activation, units: int):
        super().__init__()
        self.act = act
        self.norms = nn.ModuleList(norm(channels) for _ in range(2 * units))
        self.convs = nn.ModuleList(bare(channels) for _ in range(2 * units))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        layers = list(zip(self.norms, self.convs, strict=True))
        for (norm1, conv1), (norm2, conv2) in zip(layers[::2], layers[1::2], strict=True):
            x = x + conv2(self.act(norm2(conv1(self.act(norm1(x, level))), level)))
        return x


class Fusion(nn.Module):
    """Sum of several paths, each convolved and interpolated to the finest resolution."""

    def __init__(self, channels_in: tuple[int, ...], channels: int, norm: Norm):
        super().__init__()
        self.norms = nn.ModuleList(norm(c) for c in channels_in)
        self.convs = nn.ModuleList(nn.Conv2d(c, channels, 3, padding=1) for c in channels_in)

    def forward(self, paths: list[Tensor], level: Tensor, size: torch.Size) -> Tensor:
        convolved = [conv(norm(x, level)) for x, norm, conv in zip(paths, self.norms, self.convs, strict=True)]
        resized = [
            x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=True) for x in convolved
        ]
        return sum(resized[1:], resized[0])


class ChainedPooling(nn.Module):
    """Two chained poolings with convolutions, each added to its input, to gather context around every position."""

    def __init__(self, channels: int, norm: Norm, act: Activation, pool: Callable[..., Tensor]):
        super().__init__()
        self.act = act
        self.norms = nn.ModuleList(norm(channels) for _ in range(2))
        self.convs = nn.ModuleList(bare(channels) for _ in range(2))
        self.pool = pool

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = path = self.act(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            path = conv(self.pool(norm(path, level), kernel_size=5, stride=1, padding=2))
            x = x + path
        return x


class Refine(nn.Module):
    """One block of a RefineNet: residual units on each path, fusion, chained pooling, residual units.

    Args:
        channels_in: channels of each path, finest resolution first.
        units: number of residual units at the end.
    Shapes: paths (B, channels_in, h, w) each; returns (B, channels, H, W) at the resolution of the first path.
    Reference: Lin et al., "RefineNet: Multi-Path Refinement Networks", 2017, section 3.2. arXiv:1611.06612
    """

    def __init__(
        self,
        channels_in: tuple[int, ...],
        channels: int,
        norm: Norm,
        act: Activation,
        pool: Callable[..., Tensor],
        units: int,
    ):
        super().__init__()
        self.adapt = nn.ModuleList(Residuals(c, norm, act, 2) for c in channels_in)
        self.fuse = Fusion(channels_in, channels, norm) if len(channels_in) > 1 else None
        self.pool = ChainedPooling(channels, norm, act, pool)
        self.output = Residuals(channels, norm, act, units)

    def forward(self, paths: list[Tensor], level: Tensor) -> Tensor:
        adapted = [adapt(x, level) for x, adapt in zip(paths, self.adapt, strict=True)]
        h = adapted[0] if self.fuse is None else self.fuse(adapted, level, paths[0].shape[2:])
        return self.output(self.pool(h, level), level)


class NCSN(nn.Module):
    """The network of NCSN, which estimates the score; every normalisation is conditioned on the noise level.

    The output is zero at initialisation.

    Args:
        shape: (C, H, W) of one example; 2^(depth - 3) divides H and W.
        channels: channels at the finest level; ``LEVELS`` gives the widths of the others.
        num_levels: number of noise levels, as many as the SDE has.
        centred: whether the data lie in [-1, 1]; otherwise they lie in [0, 1], and the network maps them to [-1, 1].
        activation: a key of ``ACTIVATIONS``: elu, relu, lrelu or swish.
        depth: number of encoder levels, a key of ``LEVELS``: 4 for images of up to 64 pixels, 5 up to 128, 6 up to 256.
    Shapes: x (B, *shape), noise (B,): the index of the noise level, 0 for the largest noise; returns (B, *shape). keep
        and label are ignored.
    Raises: ValueError if shape is not (C, H, W) or its sides are not divisible, for an unknown activation or depth.
    Reference: Song, Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019, appendix A.
        arXiv:1907.05600
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        num_levels: int = 10,
        centred: bool = True,
        activation: str = "elu",
        depth: int = 4,
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}: need one of {', '.join(ACTIVATIONS)}")
        if depth not in LEVELS:
            raise ValueError(f"depth {depth}: need one of {', '.join(map(str, LEVELS))} levels")
        check_image(shape, depth - 2, type(self).__name__.lower())
        self.centred, self.num_levels, self.act = centred, num_levels, ACTIVATIONS[activation]
        levels, decoder = LEVELS[depth]
        widths, dilations = zip(*((multiple * channels, dilation) for multiple, dilation in levels))

        def norm(channels: int) -> nn.Module:
            return InstanceNormPlus(channels, num_levels)

        within, pool = (norm, F.avg_pool2d) if num_levels else (lambda channels: Plain(), F.max_pool2d)
        self.stem = convolution(2, shape[0], channels)
        self.encoder = nn.ModuleList(
            nn.ModuleList(
                [
                    DilatedBlock(before, width, norm, self.act, dilation, number > 0),
                    DilatedBlock(width, width, norm, self.act, dilation, False),
                ]
            )
            for number, (before, width, dilation) in enumerate(zip((channels, *widths), widths, dilations))
        )
        outputs = [multiple * channels for multiple in decoder]
        paths = [(widths[-1],), *zip(widths[-2::-1], outputs)]
        units = [1] * (depth - 1) + [3]
        self.decoder = nn.ModuleList(
            Refine(path, output, within, self.act, pool, unit) for path, output, unit in zip(paths, outputs, units)
        )
        self.norm, self.output = norm(channels), zeroed(convolution(2, channels, shape[0]))

    def forward(self, x: Tensor, noise: Tensor, keep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        level = noise.round().long().clamp(0, max(self.num_levels - 1, 0))
        h, written = self.stem(x if self.centred else 2 * x - 1), []
        for blocks in all_of(self.encoder, nn.ModuleList):
            for block in blocks:
                h = block(h, level)
            written.append(h)
        h = self.decoder[0]([written.pop()], level)
        for refine in self.decoder[1:]:
            h = refine([written.pop(), h], level)
        return self.output(self.act(self.norm(h, level)))


class NCSNv2(NCSN):
    """The network of NCSNv2: noise-unconditional, with the output divided by sigma.

    The output is zero at initialisation.

    Args:
        shape: (C, H, W) of one example; 2^(depth - 3) divides H and W.
        channels: channels at the finest level; ``LEVELS`` gives the widths of the others.
        centred: whether the data lie in [-1, 1]; otherwise they lie in [0, 1], and the network maps them to [-1, 1].
        activation: a key of ``ACTIVATIONS``: elu, relu, lrelu or swish.
        depth: number of encoder levels, a key of ``LEVELS``: 4 for images of up to 64 pixels, 5 up to 128, 6 up to 256.
    Shapes: as in ``NCSN``, with noise = sigma.
    Raises: as ``NCSN``.
    Reference: Song, Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020, technique 3 and
        appendix B. arXiv:2006.09011
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        centred: bool = True,
        activation: str = "elu",
        depth: int = 4,
    ):
        super().__init__(shape, channels, 0, centred, activation, depth)

    def forward(self, x: Tensor, noise: Tensor, keep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        return super().forward(x, noise) / per_example(noise, x)
