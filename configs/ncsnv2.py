"""NCSNv2 on the handwritten digits: all about the noise follows from the data, and the network is not told of it.

Song, Ermon, 2020. arXiv:2006.09011
"""

from ml_collections import ConfigDict

from score_sde.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.sde = default.choose("sde", "ncsn", sigma_min=0.05, sigma_max=0.0, num_levels=0)
    config.network.noise_unconditional = True
    config.denoiser.parameterization = "eps"
    config.denoiser.sigma_data = 3.0  # more than the data have: the size of its input then tells the noise
    config.loss.weight = "sigma2"
    config.loss.timestep_sampler = "uniform"
    config.sample.sampler = "ald"
    config.sample.grid = "levels"
    config.sample.steps = 18
    config.sample.t_min = 0.0
    config.sample.langevin_steps = 10
    return config
