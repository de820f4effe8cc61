"""DDPM++ with twice the blocks and the VP SDE on CIFAR-10. Song et al., 2021, appendix H.3. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ddpmpp_vp


def get_config() -> ConfigDict:
    config = cifar10_ddpmpp_vp.get_config()
    config.network.num_blocks = 8
    config.train.total_images = 121_600_000
    return config
