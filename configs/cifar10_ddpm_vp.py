"""DDPM's network with the VP SDE on CIFAR-10. Song et al., 2021, table 1. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ddpmpp_vp, default


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_vp.get_config()
    config.network = default.choose("network", "ddpm", attend_always=False)
    return config
