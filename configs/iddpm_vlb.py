"""Improved DDPM on the bound itself, with levels drawn by their loss. Nichol, Dhariwal, 2021, section 3.3."""

from ml_collections import ConfigDict

from score_sde.configs import iddpm


def get_config() -> ConfigDict:
    config = iddpm.get_config()
    config.loss.name = "bound"
    config.loss.timestep_sampler = "loss_aware"
    config.loss.bins = config.sde.num_levels
    return config
