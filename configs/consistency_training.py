"""A consistency model without a teacher on the handwritten digits. Song, Dhariwal, 2023. arXiv:2310.14189"""

from ml_collections import ConfigDict

from score_sde.configs import edm


def get_config() -> ConfigDict:
    config = edm.get_config()
    config.loss.name = "consistency_training"
    config.loss.time_mean = -1.1
    config.loss.time_std = 2.0
    config.loss.time_tail = 0.0
    config.loss.last_steps = 160
    config.optim.learning_rate = 4e-3
    config.train.total_images = 100_000
    config.sample.sampler = "consistency"
    config.sample.grid = "edm"
    config.sample.steps = 2
    config.sample.t_min = 0.8
    return config
