"""Embeddings of the noise level and of class labels, with a null label."""

import math

import torch
from torch import Tensor, nn


class LogSNREmbedding(nn.Module):
    """Fourier features of log-SNR, then two linear layers.

        features = [cos(w_k l), sin(w_k l)],     w_k geometric from 1/32 to 1 radian per unit of l

    The features are smooth and injective for l in [-40, 40]: this range is shorter than the period of the slowest wave,
    and the fastest wave is slow enough to interpolate between the noise levels of training. Computed outside autocast.

    Args:
        width: number of output channels, even.
    Shapes: log_snr (B,); returns (B, width).
    Reference: Vaswani et al., "Attention Is All You Need", 2017, section 3.5. arXiv:1706.03762
    """

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-5, 0, width // 2, base=2.0), persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Tensor) -> Tensor:
        with torch.autocast(log_snr.device.type, enabled=False):
            angles = log_snr.to(self.frequencies.dtype)[:, None] * self.frequencies
            return self.layers(math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], dim=1))


class Positional(nn.Module):
    """Sines and cosines of a noise level with geometric frequencies from 1 to 1 / ``period`` radians per unit.

        w_k = period^(-k / (width / 2 - 1)) with ``ends``, else period^(-k / (width / 2)),    k = 0, ..., width / 2 - 1

    Args:
        width: number of features; an odd width appends a zero.
        cos_first: whether the cosines precede the sines.
        ends: whether the lowest frequency is exactly 1 / period.
    Shapes: level (B,); returns (B, width).
    Reference: Vaswani et al., "Attention Is All You Need", 2017, section 3.5. arXiv:1706.03762
    """

    frequencies: Tensor

    def __init__(self, width: int, cos_first: bool, ends: bool, period: float = 10_000.0):
        super().__init__()
        half = width // 2
        step = -math.log(period) / max(1, half - ends)
        self.register_buffer("frequencies", torch.exp(torch.arange(half) * step), persistent=False)
        self.width, self.cos_first = width, cos_first

    def forward(self, level: Tensor) -> Tensor:
        with torch.autocast(level.device.type, enabled=False):
            angles = level.to(self.frequencies.dtype)[:, None] * self.frequencies
            waves = (angles.cos(), angles.sin()) if self.cos_first else (angles.sin(), angles.cos())
            return nn.functional.pad(torch.cat(waves, dim=1), (0, self.width % 2))


class Fourier(nn.Module):
    """Sines, then cosines, of a noise level times random frequencies, which belong to the state dict.

        [sin(2 pi w_k l), cos(2 pi w_k l)],    w_k drawn from N(0, scale^2)

    Args:
        width: number of features, even.
        scale: standard deviation of the frequencies, in waves per unit of the level.
    Shapes: level (B,); returns (B, width).
    Reference: Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains",
        2020, section 6. arXiv:2006.10739
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float = 16.0):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(width // 2) * scale)
        self.width = width

    def forward(self, level: Tensor) -> Tensor:
        with torch.autocast(level.device.type, enabled=False):
            angles = 2 * math.pi * (level.to(self.frequencies.dtype)[:, None] * self.frequencies)
            return torch.cat([angles.sin(), angles.cos()], dim=1)


class LabelEmbedding(nn.Module):
    """A learned vector per class, and a null vector for examples whose label is dropped.

    An unconditional network (num_classes = 0) has the null vector only.

    Args:
        num_classes: number of classes, 0 or more.
        width: number of output channels.
    Shapes: keep bool (B,) or None, False where the label is dropped; label int64 (B,) or None; returns (B, width), or
        (1, width) without a label.
    """

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        self.table = nn.Embedding(num_classes + 1, width)

    def forward(self, keep: Tensor | None, label: Tensor | None) -> Tensor:
        if label is None or self.num_classes == 0:
            return self.table.weight[-1:]
        return self.table(label if keep is None else label.where(keep, self.num_classes))


class Conditioning(nn.Module):
    """The conditioning vector of all blocks: silu(log-SNR embedding + label embedding).

    A noise-unconditional network has the label embedding only.

    Shapes: log_snr (B,), keep and label (B,) or None; returns (B, width), or (1, width) if noise_unconditional and
        without a label.
    Reference: Song, Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020, technique 3, for
        noise-unconditional networks. arXiv:2006.09011
    """

    def __init__(self, width: int, num_classes: int, noise_unconditional: bool = False):
        super().__init__()
        self.log_snr = None if noise_unconditional else LogSNREmbedding(width)
        self.label = LabelEmbedding(num_classes, width)

    def forward(self, log_snr: Tensor, keep: Tensor | None, label: Tensor | None) -> Tensor:
        c = self.label(keep, label)
        return nn.functional.silu(c if self.log_snr is None else self.log_snr(log_snr) + c)
