"""NCSN++ with the VE SDE on CIFAR-10, on data from 0 to 1. Song et al., 2021, appendix H. arXiv:2011.13456"""

from ml_collections import ConfigDict

from score_sde.configs import cifar10_ncsnpp_vp, default


def get_config() -> ConfigDict:
    config = cifar10_ncsnpp_vp.get_config()
    config.codec.low = 0.0
    config.sde = default.choose("sde", "vesde")
    config.network.embedding = "fourier"
    config.network.centred = False
    config.network.by_sigma = True
    config.denoiser.parameterization = "score"
    config.denoiser.c_noise = "sigma"
    config.ema.rates = (0.999,)
    config.sample.sampler = "pc"
    config.sample.t_min = 1e-5
    return config
