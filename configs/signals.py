"""VP SDE and a U-Net on real-valued signals (N, C, L), in numpy files given by --config.data.path.

    python run.py --config signals --mode train --config.data.path=signals.npy --workdir runs/signals

Without a path the data are synthetic waves.
"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "signals"
    config.codec.name = "standardize"
    config.network = default.choose("network", "unet", pad=True)
    config.optim.learning_rate = 4e-3
    config.likelihood.dequantization = "none"
    return config
