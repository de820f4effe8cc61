"""VP SDE on CIFAR-10: a folder or zip of its images, given by --config.data.path.

The test split is the folder test/ beside train/, or all of --config.data.test_path, or else every tenth image.
"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "images"
    config.data.path = "datasets/cifar10.zip"
    config.data.mirror = True
    config.network = default.choose(
        "network", "unet", channels=128, channel_mult=(1, 2, 2, 2), num_blocks=4, attention=(16,), dropout=0.1
    )
    config.optim.learning_rate = 2e-4
    config.optim.beta2 = 0.999
    config.loss.time_mean = -1.2
    config.loss.time_std = 1.2
    config.optim.warmup_images = 640_000
    config.optim.decay = "constant"
    config.ema.rates = (0.9999,)
    config.train.total_images = 100_000_000
    config.train.batch_size = 128
    config.train.checkpoint_every = 10_000
    config.train.sample_every = 10_000
    config.train.precision = "bfloat16"
    return config
