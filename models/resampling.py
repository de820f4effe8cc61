"""Downsampling and upsampling by a factor of 2 with a filter, as ordinary convolutions."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.layers import double, halve


class FIR(nn.Module):
    """Resampling of each channel by a fixed separable filter f of K taps, with zero padding.

        downsample:  y_i = sum_j f_j x_{2 i + j - K/2 + 1}
        upsample:    y_i = 2 sum_j f_{i - 2 j + K/2 - 1} x_j        (on each axis; f sums to one)

    Away from the border, constants are preserved. Without taps, pixels are averaged and repeated.

    Args:
        taps: the filter, two or more numbers, normalised to sum to one, such as (1, 3, 3, 1); () for none.
    Shapes: x (B, C, H, W); ``downsample`` and ``upsample`` return half and twice the sides, ``blur`` H + 1 and W + 1.
    Raises: ValueError for a single tap, or taps that sum to 0.
    Reference: Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019. arXiv:1904.11486; Karras et al.,
        "Analyzing and Improving the Image Quality of StyleGAN", 2020, appendix B. arXiv:1912.04958
    """

    kernel: Tensor

    def __init__(self, taps: tuple[float, ...]):
        super().__init__()
        self.size = len(taps)
        if len(taps) == 1 or (taps and sum(taps) == 0):
            raise ValueError(f"fir {tuple(taps)}: need two taps or more whose sum is not 0, or () for none")
        if taps:
            f = torch.tensor(taps, dtype=torch.float32)
            self.register_buffer("kernel", torch.outer(f, f) / f.sum() ** 2, persistent=False)

    def downsample(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.size - 2, stride=2) if self.size else halve(x)

    def upsample(self, x: Tensor) -> Tensor:
        if not self.size:
            return double(x)
        cut = self.size - 2 - (self.size - 1) // 2
        y = F.conv_transpose2d(x, self._kernel(4 * self.kernel, x), stride=2, padding=cut, groups=x.shape[1])
        return y[..., : 2 * x.shape[2], : 2 * x.shape[3]]

    def blur(self, x: Tensor) -> Tensor:
        """Filters x and pads it for a 3 x 3 convolution with stride 2 and no padding, which halves the resolution."""
        return self._convolve(x, self.size, stride=1)

    def _convolve(self, x: Tensor, padding: int, stride: int) -> Tensor:
        """Filters with ``padding`` zeros per axis; an odd one is placed before the data."""
        kernel, before, after = self._kernel(self.kernel.flip(0, 1), x), (padding + 1) // 2, padding // 2
        if before != after:
            x, after = F.pad(x, (before, after, before, after)), 0
        return F.conv2d(x, kernel, stride=stride, padding=after, groups=x.shape[1])

    def _kernel(self, kernel: Tensor, x: Tensor) -> Tensor:
        return kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)


class Down(nn.Module):
    """Halves the resolution: a convolution with stride 2 after the filter, or the filter alone if not ``learned``.

    Shapes: x (B, channels_in, H, W); returns (B, channels_out, H / 2, W / 2).
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, appendix B. arXiv:2006.11239
    """

    def __init__(self, channels_in: int, channels_out: int, fir: FIR, learned: bool):
        super().__init__()
        self.fir = fir
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2) if learned else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        if self.conv is None:
            return self.fir.downsample(x)
        return self.conv(self.fir.blur(x) if self.fir.size else F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Doubles the resolution by the filter or by repetition, then applies a convolution if ``learned``.

    Shapes: x (B, channels_in, H, W); returns (B, channels_out, 2 H, 2 W).
    Reference: as ``Down``.
    """

    def __init__(self, channels_in: int, channels_out: int, fir: FIR, learned: bool):
        super().__init__()
        self.fir = fir
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1) if learned else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        x = self.fir.upsample(x)
        return x if self.conv is None else self.conv(x)
