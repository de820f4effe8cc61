"""EDM on the handwritten digits. Karras et al., 2022. arXiv:2206.00364"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "edm")
    config.sample.t_min = 0.0
    return config
