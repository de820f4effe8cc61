"""Rectified flow on the handwritten digits. Liu, Gong, Liu, 2022. arXiv:2209.03003"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "rectified")
    config.denoiser.parameterization = "flow"
    config.loss.weight = "flow"
    config.loss.timestep_sampler = "logit_normal"
    config.loss.time_mean = 0.0
    config.loss.time_std = 1.0
    config.loss.time_tail = 0.0
    config.sample.sampler = "heun"
    config.sample.steps = 50
    config.sample.t_min = 0.0
    return config
