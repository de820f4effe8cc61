"""DiT: a transformer over image patches with adaptive layer normalisation, initialised as the identity."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.blocks import attend
from score_sde.models.embeddings import LabelEmbedding, Positional
from score_sde.models.layers import Dropout, zeroed

WAVES = 256


class DiT(nn.Module):
    """Transformer blocks over patches; the conditioning scales, shifts and gates the attention and the MLP of each.

        h = h + gate(c) attention(norm(h) (1 + scale(c)) + shift(c)),    likewise with the MLP

    The gates and the output are zero at initialisation. DiT-S, B, L and XL have width 384, 768, 1024 and 1152, depth
    12, 12, 24 and 28, and 6, 12, 16 and 16 heads.

    Args:
        shape: (C, H, W) of one example.
        patch: side of a patch, in pixels; the sequence has H W / patch^2 tokens.
        width: channels of a token, a multiple of 4 and of ``heads``.
        depth: number of transformer blocks.
        heads: number of attention heads.
        mlp_mult: hidden units of each block's MLP as a multiple of ``width``.
        dropout: dropout probability of each branch's output, in [0, 1).
        num_classes: number of class labels; 0 for an unconditional network.
        learned_variance: whether the output has twice the channels, the second half for the variance of reverse steps
            (objectives ``bound`` and ``hybrid``); see ``Prediction``.
    Shapes: x (B, C, H, W), noise (B,), keep bool (B,), label int64 (B,); returns (B, C, H, W), or twice its channels.
    Raises: ValueError if shape is not (C, H, W), patch does not divide H and W, or 4 or heads do not divide width.
    Reference: Peebles, Xie, "Scalable Diffusion Models with Transformers", 2023, section 3.2. arXiv:2212.09748
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int = 2,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp_mult: int = 4,
        dropout: float = 0.0,
        num_classes: int = 0,
        learned_variance: bool = False,
    ):
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"the dit network takes images of shape (C, H, W), not {tuple(shape)}; use unet or mlp")
        data_channels, *sides = shape
        if any(side % patch for side in sides):
            raise ValueError(f"patch {patch} does not divide the sides of shape {tuple(shape)}; choose one that does")
        if width % heads or width % 4:
            raise ValueError(f"width {width}: need a multiple of 4 and of the {heads} heads")
        self.patch, self.grid = patch, [side // patch for side in sides]
        self.outputs = data_channels * (1 + learned_variance)
        self.stem = nn.Conv2d(data_channels, width, patch, stride=patch)
        self.conditioning = Conditioning(width, num_classes)
        self.register_buffer("positions", positions(self.grid, width), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_mult, dropout) for _ in range(depth))
        self.steer = zeroed(nn.Linear(width, 2 * width))
        self.output = zeroed(nn.Linear(width, patch**2 * self.outputs))
        self.initialise()

    def initialise(self) -> None:
        """Draws uniform weights of variance 2 / (inputs + outputs); the stem's inputs are all numbers of a patch.

        The two linear layers of the conditioning and the label table are N(0, 0.02^2); gates and output are zero.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        linear = [layer.weight for layer in self.conditioning.layers if isinstance(layer, nn.Linear)]
        for weight in (*linear, *(table.weight for table in self.conditioning.tables())):
            nn.init.normal_(weight, std=0.02)
        for module in (self, *self.blocks):
            zeroed(module.steer)
        zeroed(self.output)

    def forward(self, x: Tensor, noise: Tensor, keep: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        c = self.conditioning(noise, keep, label)
        h = self.stem(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            h = block(h, c)
        patches = self.output(modulated(h, *self.steer(c).chunk(2, dim=1)))
        patches = patches.unflatten(2, (self.patch, self.patch, self.outputs)).unflatten(1, self.grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class Conditioning(nn.Module):
    """The conditioning vector: Fourier features of the noise level, two linear layers, plus label; outside autocast.

    Shapes: noise (B,), keep and label (B,) or None; returns (B, width).
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.waves = Positional(WAVES, cos_first=True, ends=False)
        self.layers = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = LabelEmbedding(num_classes, width) if num_classes else None

    def tables(self) -> list[nn.Embedding]:
        """The table of the label embedding; empty for an unconditional network."""
        return [] if self.label is None else [self.label.table]

    def forward(self, noise: Tensor, keep: Tensor | None, label: Tensor | None) -> Tensor:
        with torch.autocast(noise.device.type, enabled=False):
            c = self.layers(self.waves(noise))
            return F.silu(c if self.label is None else c + self.label(keep, label))


class TransformerBlock(nn.Module):
    """Attention and an MLP, each with an adaptive normalisation and a gate; the identity at initialisation.

    Shapes: h (B, N, width), c (B, width); returns (B, N, width).
    """

    def __init__(self, width: int, heads: int, mlp_mult: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.steer = zeroed(nn.Linear(width, 6 * width))
        self.qkv, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = mlp_mult * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.steer(c).chunk(6, dim=1)
        branch = self.mixed(attend(self.qkv(modulated(h, shift, scale)), self.heads))
        h = h + gate[:, None] * self.dropout(branch)
        return h + gate_mlp[:, None] * self.dropout(self.mlp(modulated(h, shift_mlp, scale_mlp)))


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift, where norm is a layer normalisation of each token without parameters."""
    return torch.addcmul(shift[:, None], F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale[:, None])


def positions(grid: list[int], width: int) -> Tensor:
    """Fixed position embeddings: sines and cosines of each patch's column, then of its row.

        w_k = 10000^(-4 k / width),    k = 0, ..., width / 4 - 1

    Shapes: returns (H' W', width).
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64)[:, None] * frequencies for side in grid)
    rows, columns = (torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (rows, columns))
    shape = (*grid, width // 2)
    return torch.cat([columns.expand(shape), rows[:, None].expand(shape)], dim=2).flatten(0, 1).float()
