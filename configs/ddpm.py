"""DDPM: a chain of 1,000 levels and the simple loss of eps, on the handwritten digits. Ho, Jain, Abbeel, 2020.

arXiv:2006.11239
"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "ddpm")
    config.denoiser.parameterization = "eps"
    config.loss.weight = "simple"
    config.loss.timestep_sampler = "uniform"
    config.train.dequantize = False
    config.sample.sampler = "ancestral"
    config.sample.grid = "levels"
    config.sample.steps = 1_000
    config.sample.t_min = 0.0
    config.bound.v = 1.0
    return config
