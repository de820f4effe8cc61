"""NCSN on CIFAR-10: its own network, ten levels of noise, annealed Langevin dynamics. Song, Ermon, 2019.

arXiv:1907.05600
"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ncsnpp_ve_discrete, default


def get_config() -> ConfigDict:
    config = cifar10_ncsnpp_ve_discrete.get_config()
    config.sde = default.choose("sde", "ncsn", sigma_max=1.0, num_levels=10)
    config.network = default.choose("network", "ncsn", centred=False)
    config.optim.learning_rate = 1e-3
    config.optim.warmup_images = 0
    config.optim.clip_norm = 0.0
    config.ema.rates = (0.0,)
    config.sample.sampler = "ald"
    config.sample.steps = 10
    config.sample.langevin_steps = 100
    return config
