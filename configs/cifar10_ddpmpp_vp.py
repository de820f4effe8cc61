"""DDPM++ with the VP SDE on CIFAR-10, as score_sde trained it; the other recipes of that paper say what they change.

    python run.py --config cifar10_ddpmpp_vp --mode train --config.data.path=cifar10.zip

Song et al., 2021, appendix H. arXiv:2011.13456
"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10, default


def get_config() -> ConfigDict:
    config = cifar10.get_config()
    config.network = default.choose("network", "ncsnpp")
    config.denoiser.parameterization = "eps"
    config.denoiser.c_noise = "time"
    config.denoiser.input = "raw"
    config.loss.weight = "simple"
    config.loss.timestep_sampler = "uniform"
    config.train.total_images = 166_400_000
    config.train.dequantize = False
    config.train.precision = "float32"
    config.sample.sampler = "euler_maruyama"
    config.sample.grid = "uniform"
    config.sample.steps = 1_000
    return config
