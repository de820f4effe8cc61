"""VE SDE on the handwritten digits. Song et al., 2021, eq. 30. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "vesde")
    return config
