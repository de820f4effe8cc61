"""VP SDE and a U-Net on real-valued images (N, C, H, W) or (N, H, W, C), in numpy files given by --config.data.path.

    python run.py --config fields --mode train --config.data.path=fields.npy --workdir runs/fields

Without a path the data are synthetic Gaussian random fields.
"""

from ml_collections import ConfigDict

from score_sde.configs import signals


def get_config() -> ConfigDict:
    config = signals.get_config()
    config.data.name = "fields"
    return config
