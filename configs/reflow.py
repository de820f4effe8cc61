"""Rectified flow once more, on its own pairs of noise and digit: straighter, so that a few steps are enough.

    python run.py --config rectified --mode train
    python run.py --config rectified --mode sample --num_samples 8000 --config.sample.keep_latents=true
    python run.py --config reflow --mode train
    python run.py --config reflow --mode sample --steps 2

Liu, Gong, Liu, 2022, algorithm 1. arXiv:2209.03003
"""

from ml_collections import ConfigDict

from score_sde.configs import rectified


def get_config() -> ConfigDict:
    config = rectified.get_config()
    config.data.name = "pairs"
    config.data.path = "runs/rectified/samples/heun-50/samples.npz"
    config.optim.learning_rate = 4e-3
    config.train.init = "runs/rectified"
    config.train.total_images = 80_000
    config.train.dequantize = False
    config.sample.sampler = "ddim"
    config.sample.steps = 4
    return config
