"""Maximum likelihood on the digits, with a law of log-SNR that is learned. Kingma et al., 2021. arXiv:2107.00630"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.loss.weight = "likelihood"
    config.loss.timestep_sampler = "learned"
    return config
