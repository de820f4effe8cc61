"""The U-Net of DDPM."""

from score_sde.models.ncsnpp import NCSNpp


class DDPM(NCSNpp):
    """The U-Net of DDPM: convolutions change the resolution, shortcuts are not rescaled, 32 normalisation groups.

    The output is zero at initialisation.

    Args:
        shape: (C, H, W) of one example.
        channels: channels at the finest level, a multiple of 4.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention: resolutions (longer side, in pixels) with attention, such as (16,); the middle always has attention.
        dropout: dropout probability, in [0, 1).
        num_classes: number of class labels; 0 for an unconditional network.
        noise_unconditional: whether the network ignores the noise level.
        resample_conv: whether convolutions change the resolution; otherwise pixels are averaged and repeated.
        centred: whether the data lie in [-1, 1]; otherwise they lie in [0, 1], and the network maps them to [-1, 1].
        by_sigma: whether the output is divided by sigma.
        ladder: (sigma_min, sigma_max, number of levels) of a geometric sequence if ``by_sigma`` is set and the noise
            conditioning is an index into it, 0 for the largest sigma; () if the noise conditioning is sigma.
        norm_groups: number of groups of each group normalisation, a divisor of every number of channels.
        norm_eps: constant added to the variances of a group normalisation.
        head_channels: channels per attention head; 0 for a single head.
        attend_always: whether every decoder block at these resolutions is followed by attention, not only the last one.
    Shapes: x (B, *shape), noise (B,), keep bool (B,), label int64 (B,); returns (B, *shape).
    Raises: ValueError if shape is not (C, H, W), or the levels do not divide H or W.
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, appendix B. arXiv:2006.11239
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention: tuple[int, ...] = (16,),
        dropout: float = 0.1,
        num_classes: int = 0,
        noise_unconditional: bool = False,
        resample_conv: bool = True,
        centred: bool = True,
        by_sigma: bool = False,
        ladder: tuple[float, ...] = (),
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        head_channels: int = 0,
        attend_always: bool = True,
    ):
        super().__init__(
            shape,
            channels,
            channel_mult,
            num_blocks,
            attention,
            dropout,
            num_classes,
            noise_unconditional,
            blocks="ddpm",
            resample_conv=resample_conv,
            rescale=False,
            centred=centred,
            by_sigma=by_sigma,
            ladder=ladder,
            norm_groups=norm_groups,
            norm_group=1,
            norm_eps=norm_eps,
            head_channels=head_channels,
            attend_always=attend_always,
        )
