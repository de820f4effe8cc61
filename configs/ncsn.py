"""NCSN on the handwritten digits: ten levels of noise, of which the network is told, and annealed Langevin dynamics.

Song, Ermon, 2019. arXiv:1907.05600
"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "ncsn", sigma_min=0.05, sigma_max=4.0, num_levels=10)
    config.denoiser.parameterization = "eps"
    config.loss.weight = "sigma2"
    config.loss.timestep_sampler = "uniform"
    config.ema.rates = (0.0,)
    config.sample.sampler = "ald"
    config.sample.grid = "levels"
    config.sample.steps = 10
    config.sample.t_min = 0.0
    config.sample.langevin_steps = 20
    return config
