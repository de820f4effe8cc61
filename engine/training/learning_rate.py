"""Learning rate: linear warm-up, then constant or half a cosine."""

import math

from score_sde.configs.default import Config
from score_sde.storage.naming import pick

DECAYS = {"constant": lambda fraction: 1.0, "cosine": lambda fraction: 0.5 * (1 + math.cos(math.pi * fraction))}
"""Factor of the learning rate after a fraction of the training."""


def learning_rate(config: Config, images_seen: int) -> float:
    """Returns the learning rate of a step: optim.learning_rate times warm-up and decay.

    The warm-up rises linearly over the first optim.warmup_images examples; the decay is optim.decay of ``DECAYS``.
    """
    rise = min(1.0, (images_seen + config.train.batch_size) / max(config.optim.warmup_images, 1))
    fraction = min(1.0, images_seen / config.train.total_images)
    return config.optim.learning_rate * rise * pick(DECAYS, "decay", config.optim.decay)(fraction)
