"""A residual network for points, and for small examples of any shape."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.embeddings import Conditioning
from score_sde.models.layers import Dropout, FiLM, zeroed


class MLP(nn.Module):
    """Residual MLP conditioned on log-SNR and label; the output is zero at initialisation.

    Examples of any rank are flattened to vectors, so the network does not use their spatial structure.

    Args:
        shape: shape of one example.
        width: number of hidden units, an even number.
        depth: number of residual blocks.
        dropout: dropout probability, in [0, 1).
        num_classes: number of class labels; 0 for an unconditional network.
        noise_unconditional: whether the network ignores the noise level; the parameterization divides by it instead.
        learned_variance: whether the output has twice the channels, the second half for the variance of reverse steps
            (objectives ``bound`` and ``hybrid``); see ``Prediction``.
    Shapes: x (B, C, *), log_snr (B,), keep bool (B,), label int64 (B,); returns (B, C, *) or (B, 2 C, *).
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
        num_classes: int = 0,
        noise_unconditional: bool = False,
        learned_variance: bool = False,
    ):
        super().__init__()
        self.answer = (shape[0] * (1 + learned_variance), *shape[1:])
        self.conditioning = Conditioning(width, num_classes, noise_unconditional)
        self.stem = nn.Linear(math.prod(shape), width)
        self.blocks = nn.ModuleList(LinearBlock(width, dropout) for _ in range(depth))
        outputs = zeroed(nn.Linear(width, math.prod(self.answer)))
        self.output = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), outputs)

    def forward(self, x: Tensor, log_snr: Tensor, keep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        c = self.conditioning(log_snr, keep, label)
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, c)
        return self.output(h).unflatten(1, self.answer)


class LinearBlock(nn.Module):
    """The residual block of the U-Net with linear layers instead of convolutions."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm1, self.linear1 = nn.LayerNorm(width), nn.Linear(width, width)
        self.norm2, self.linear2 = nn.LayerNorm(width), zeroed(nn.Linear(width, width))
        self.film = FiLM(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.linear1(F.silu(self.norm1(x)))
        h = self.linear2(self.dropout(F.silu(self.film(self.norm2(h), c))))
        return (x + h) * math.sqrt(0.5)
