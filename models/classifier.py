"""A classifier of noisy signals and images: the encoder of the U-Net and a linear layer on its mean."""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.layers import check_num_classes, group_norm, zeroed
from score_sde.models.unet import Encoder


class Classifier(Encoder):
    """The encoder of ``UNet``, the mean over all positions, and a linear layer; zero at initialisation.

    It is conditioned on log-SNR, so one network classifies clean and noisy examples.

    Args:
        shape: (C, L) or (C, H, W) of one example.
        channels: channels at the finest level, an even number.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level.
        attention: resolutions (longer side, in positions) whose blocks are followed by attention, such as (16,).
        dropout: dropout probability, in [0, 1).
        num_classes: number of logits, at least 2: the number of classes of the data.
        pad: whether inputs whose sides the levels do not divide are padded with zeros.
    Shapes: x (B, *shape), log_snr (B,); returns (B, num_classes).
    Raises: ValueError for fewer than two classes, for a shape of another rank, or for one that the levels do not divide
        unless pad is set.
    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, section 4.3. arXiv:2105.05233
    """

    output_kinds: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 16,
        channel_mult: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        attention: tuple[int, ...] = (),
        dropout: float = 0.1,
        num_classes: int = 10,
        pad: bool = False,
    ):
        check_num_classes(num_classes)
        super().__init__(
            shape,
            channels,
            channel_mult,
            num_blocks,
            attention,
            dropout,
            num_classes=0,
            noise_unconditional=False,
            pad=pad,
        )
        self.num_classes, self.num_features = num_classes, channels * channel_mult[-1]
        self.norm = group_norm(self.num_features)
        self.output = zeroed(nn.Linear(self.num_features, num_classes))

    def features(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Input of the last layer, (B, num_features)."""
        coarsest = self.encode(x, self.conditioning(log_snr, None, None))[-1]
        return F.silu(self.norm(coarsest)).flatten(2).mean(2)

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        return self.output(self.features(x, log_snr))
