"""NCSN++ with NCSN's ladder of 1,000 levels on CIFAR-10. Song et al., 2021, appendix H. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ncsnpp_ve, default


def get_config() -> ConfigDict:
    config = cifar10_ncsnpp_ve.get_config()
    config.sde = default.choose("sde", "ncsn", num_levels=1_000)
    config.network.embedding = "positional"
    config.network.ladder = (0.01, 50.0, 1_000.0)
    config.denoiser.c_noise = "level_from_noise"
    config.sample.grid = "levels"
    config.sample.t_min = 0.0
    return config
