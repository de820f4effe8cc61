"""A classifier of clean and noisy digits: the features of --mode evaluate, and p(y | x_t) of classifier guidance."""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.network = default.choose("network", "classifier", channels=16, channel_mult=(1, 2, 4))
    config.loss.name = "classification"
    config.loss.timestep_sampler = "lognormal"
    config.loss.time_mean = -2.0
    config.loss.time_std = 2.0
    config.loss.time_tail = 0.0
    config.optim.learning_rate = 4e-3
    config.train.total_images = 60_000
    config.train.dequantize = False
    config.train.sample_every = 0
    return config
