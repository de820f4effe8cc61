"""The U-Net of DDPM, from which the others come."""

from score_sde.models.ncsnpp import NCSNpp


class DDPM(NCSNpp):
    """The network of DDPM: learned layers between resolutions, 32 groups a normalisation, plain sums.

    Zero at initialisation.

    Args:
        shape, channels, channel_mult, num_blocks, attention, dropout, num_classes, noise_unconditional, centred,
        by_sigma, ladder,
            head_channels, attend_always, norm_eps: as of ``NCSNpp``.
        resample_conv: whether convolutions change the resolution; else neighbours are averaged and repeated.
        norm_groups: groups of each normalisation, a divisor of every number of channels.
    Shapes: x (B, *shape), noise (B,), keep bool (B,), label int64 (B,); returns (B, *shape).
    Raises: ValueError if shape has another rank or does not divide.
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
