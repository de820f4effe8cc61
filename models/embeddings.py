"""What a network is told beside x: the noise level, and the condition or its absence."""

import math

import torch
from torch import Tensor, nn


class LogSNREmbedding(nn.Module):
    """Sines and cosines of the log signal-to-noise ratio, then two linear layers.

        features = [cos(w_k l), sin(w_k l)],     w_k geometric from 1/32 to 1 radian per unit of l

    Smooth and injective for l in [-40, 40]: the slowest wave does not close its period there, the fastest is slow
    enough to interpolate between the noise levels seen in training. Computed outside autocast.

    Args:
        width: number of channels of the result, an even number.
    Shapes: log_snr (B,); returns (B, width).
    Reference: Vaswani et al., "Attention Is All You Need", 2017, section 3.5. arXiv:1706.03762
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(-5, 0, width // 2, base=2.0), persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Tensor) -> Tensor:
        with torch.autocast(log_snr.device.type, enabled=False):
            angles = log_snr.to(self.frequencies.dtype)[:, None] * self.frequencies
            return self.layers(math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], dim=1))


class LabelEmbedding(nn.Module):
    """A vector a class, and one more, the null entry, for examples whose condition does not count.

    An unconditional network (num_classes = 0) has the null entry only.

    Args:
        num_classes: number of classes, 0 or more.
        width: number of channels of the result.
    Shapes: keep bool (B,) or None; label int64 (B,) or None; returns (B, width), or (1, width) without a label.
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
    """The vector that steers every block of a network: noise level, unless it is blind to it, plus label.

    Shapes: log_snr (B,), keep and label (B,) or None; returns (B, width), or (1, width) if blind and without a label.
    Reference: Song, Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020, technique 3, for
        the blind one. arXiv:2006.09011
    """

    def __init__(self, width: int, num_classes: int, blind: bool = False):
        super().__init__()
        self.log_snr = None if blind else LogSNREmbedding(width)
        self.label = LabelEmbedding(num_classes, width)

    def forward(self, log_snr: Tensor, keep: Tensor | None, label: Tensor | None) -> Tensor:
        c = self.label(keep, label)
        return nn.functional.silu(c if self.log_snr is None else self.log_snr(log_snr) + c)
