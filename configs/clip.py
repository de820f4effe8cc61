"""Encoders of noisy digits and of captions such as "a three", which guidance.encoder leans towards a text by."""

from ml_collections import ConfigDict

from score_sde.configs import default
from score_sde.configs.classifier import get_config as classifier


def get_config() -> ConfigDict:
    """As the classifier, with texts for labels."""
    config = classifier()
    config.network = default.choose("network", "captioned", channels=16, channel_mult=(1, 2, 4))
    config.loss.name = "contrastive"
    return config
