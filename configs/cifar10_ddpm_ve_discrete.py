"""DDPM's network with NCSN's ladder of 1,000 levels on CIFAR-10. Song et al., 2021, table 1. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ncsnpp_ve_discrete, default


def get_config() -> ConfigDict:
    config = cifar10_ncsnpp_ve_discrete.get_config()
    ladder = config.network.ladder
    config.network = default.choose("network", "ddpm", attend_always=False, centred=False, by_sigma=True, ladder=ladder)
    return config
