"""DDPM on CIFAR-10: its network and its chain of 1,000 levels. Ho, Jain, Abbeel, 2020. arXiv:2006.11239"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ddpmpp_vp_discrete, default


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_vp_discrete.get_config()
    config.network = default.choose("network", "ddpm", attend_always=False)
    return config
