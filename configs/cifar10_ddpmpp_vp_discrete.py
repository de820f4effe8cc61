"""DDPM++ with DDPM's chain of 1,000 levels on CIFAR-10. Song et al., 2021, appendix H. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ddpmpp_vp, default


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_vp.get_config()
    config.sde = default.choose("sde", "ddpm")
    config.denoiser.c_noise = "level"
    config.sample.sampler = "ancestral"
    config.sample.grid = "levels"
    config.sample.t_min = 0.0
    return config
