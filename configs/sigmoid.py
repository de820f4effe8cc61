"""VP with the sigmoid schedule and v-prediction on the handwritten digits. Jabri et al., 2022. arXiv:2212.11972"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "sigmoid")
    config.denoiser.parameterization = "v"
    config.loss.weight = "v"
    config.loss.time_law = "uniform"
    return config
