"""VP with the cosine schedule and v-prediction on the handwritten digits. Nichol, Dhariwal, 2021. arXiv:2102.09672"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "cosine")
    config.denoiser.parameterization = "v"
    config.loss.weight = "v"
    config.loss.timestep_sampler = "uniform"
    return config
