"""EDM on the handwritten digits, sampled by Heun's method. Karras et al., 2022. arXiv:2206.00364"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "edm")
    config.sample.sampler = "heun"
    config.sample.grid = "karras"
    config.sample.steps = 18
    return config
