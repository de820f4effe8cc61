"""The VP SDE on digits whose class is known: ``--label 3`` draws threes, ``--config.guidance.scale=3`` clearer ones."""

from ml_collections import ConfigDict

from score_sde.configs.vpsde import get_config as vpsde


def get_config() -> ConfigDict:
    """As vpsde, with the ten classes of the digits."""
    config = vpsde()
    config.network.num_classes = 10
    return config
