"""DDPM's network with the sub-VP SDE on CIFAR-10. Song et al., 2021, table 2. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ddpm_vp, default


def get_config() -> ConfigDict:
    config = cifar10_ddpm_vp.get_config()
    config.sde = default.choose("sde", "subvpsde")
    return config
