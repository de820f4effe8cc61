"""VP with a Laplace law of log-SNR and v-prediction on the handwritten digits. Hang et al., 2024. arXiv:2407.03297"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "laplace")
    config.denoiser.parameterization = "v"
    config.loss.weight = "v"
    config.loss.time_law = "uniform"
    return config
