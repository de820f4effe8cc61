"""VP SDE and an MLP on a table of real numbers (N, D), in numpy files given by --config.data.path.

    python run.py --config table --mode train --config.data.path=table.npy --workdir runs/table

Without a path the table is synthetic.
"""

from ml_collections import ConfigDict

from score_sde.configs import points


def get_config() -> ConfigDict:
    config = points.get_config()
    config.data.name = "table"
    config.codec.name = "standardize"
    return config
