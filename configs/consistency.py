"""A consistency model that learns from the run ``edm``: digits in one to four evaluations.

    python run.py --config edm --mode train
    python run.py --config consistency --mode train
    python run.py --config consistency --mode sample --steps 1

Song, Dhariwal, Chen, Sutskever, 2023. arXiv:2303.01469
"""

from ml_collections import ConfigDict

from score_sde.configs import consistency_training


def get_config() -> ConfigDict:
    config = consistency_training.get_config()
    config.loss.name = "consistency_distillation"
    config.loss.teacher = "runs/edm"
    config.loss.last_steps = 40
    config.optim.learning_rate = 2e-3
    config.train.init = "runs/edm"
    config.train.total_images = 80_000
    return config
