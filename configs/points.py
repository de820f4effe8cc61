"""VP SDE and an MLP on points in the plane: the fastest way to see everything work."""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "moons"
    config.codec.name = "identity"
    config.network = default.choose("network", "mlp")
    config.optim.learning_rate = 2e-3
    config.optim.beta2 = 0.999
    config.optim.warmup_images = 25_600
    config.train.total_images = 500_000
    config.train.batch_size = 256
    config.sample.num_samples = 2_000
    config.sample.batch_size = 2_000
    config.likelihood.dequantization = "none"
    return config
