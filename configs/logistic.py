"""VP with a logistic law of log-SNR and v-prediction on the digits. Kingma, Gao, 2023. arXiv:2303.00848"""

from ml_collections import ConfigDict

from score_sde.configs import cosine, default


def get_config() -> ConfigDict:
    config = cosine.get_config()
    config.sde = default.choose("sde", "logistic")
    return config
