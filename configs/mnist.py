"""VP SDE on MNIST: any folder or zip of its images, given by --config.data.path."""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "images"
    config.data.path = "datasets/mnist.zip"
    config.network = default.choose(
        "network", "unet", channels=32, channel_mult=(1, 2, 2), num_blocks=2, attention=(7,)
    )
    config.optim.learning_rate = 1e-3
    config.optim.beta2 = 0.999
    config.optim.warmup_images = 128_000
    config.ema.rates = (0.9999,)
    config.train.total_images = 6_000_000
    config.train.batch_size = 128
    return config
