"""VP with the sigmoid schedule and v-prediction on the handwritten digits. Jabri et al., 2022. arXiv:2212.11972"""

from ml_collections import ConfigDict

from score_sde.configs import cosine, default


def get_config() -> ConfigDict:
    config = cosine.get_config()
    config.sde = default.choose("sde", "sigmoid")
    return config
