"""NCSNv2 on CIFAR-10: a network that divides by the noise level, of 232 levels. Song, Ermon, 2020. arXiv:2006.09011"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ncsn, default


def get_config() -> ConfigDict:
    config = cifar10_ncsn.get_config()
    config.sde = default.choose("sde", "ncsn")
    config.network = default.choose("network", "ncsnv2", centred=False)
    config.denoiser.c_noise = "sigma"
    config.optim.learning_rate = 1e-4
    config.ema.rates = (0.999,)
    config.sample.steps = 232
    config.sample.langevin_steps = 5
    return config
