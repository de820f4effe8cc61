"""NCSN++ with DDPM's chain of 1,000 levels on CIFAR-10. Song et al., 2021, appendix H. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ddpmpp_vp_discrete


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_vp_discrete.get_config()
    config.network.fir = (1.0, 3.0, 3.0, 1.0)
    config.network.progressive_input = "residual"
    config.sample.sampler = "reverse_diffusion"
    return config
