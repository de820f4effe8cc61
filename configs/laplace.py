"""VP with a Laplace law of log-SNR and v-prediction on the handwritten digits. Hang et al., 2024. arXiv:2407.03297"""

from ml_collections import ConfigDict

from score_sde.configs import cosine, default


def get_config() -> ConfigDict:
    config = cosine.get_config()
    config.sde = default.choose("sde", "laplace")
    return config
