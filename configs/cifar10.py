"""Recipes on CIFAR-10: a folder or zip of its images.

    python run.py --config cifar10_ddpmpp_vp --mode train --config.data.path=cifar10.zip

The test split is the folder test/ next to train/, or all of --config.data.test_path, or else every tenth image. The
recipes cifar10_* follow Song et al., 2021, appendix H (arXiv:2011.13456), as score_sde trained them.
"""

from typing import Any

DEEP = {"network.num_blocks": 8, "train.total_images": 121_600_000}
NCSNPP = {"network.fir": (1.0, 3.0, 3.0, 1.0), "network.progressive_input": "residual"}
DDPM = {"network": "ddpm", "network.attend_always": False}
LADDER = (0.01, 50.0, 1_000.0)

RECIPES: dict[str, dict[str, Any]] = {
    "cifar10": {
        "data.name": "images",
        "data.path": "datasets/cifar10.zip",
        "data.mirror": True,
        "network.channels": 128,
        "network.channel_mult": (1, 2, 2, 2),
        "network.num_blocks": 4,
        "network.attention": (16,),
        "network.dropout": 0.1,
        "loss.timestep_sampler.mean": -1.2,
        "loss.timestep_sampler.std": 1.2,
        "optim.learning_rate": 2e-4,
        "optim.beta2": 0.999,
        "optim.warmup_images": 640_000,
        "optim.decay": "constant",
        "ema.rates": (0.9999,),
        "train.total_images": 100_000_000,
        "train.batch_size": 128,
        "train.checkpoint_every": 10_000,
        "train.sample_every": 10_000,
        "train.precision": "bfloat16",
    },
    # --- DDPM++ -------------------------------------------------------------------------------------------------------
    "cifar10_ddpmpp_vp": {
        "base": "cifar10",
        "network": "ncsnpp",
        "denoiser.parameterization": "eps",
        "denoiser.c_noise": "time",
        "denoiser.input": "raw",
        "loss.weight": "simple",
        "loss.timestep_sampler": "uniform",
        "train.total_images": 166_400_000,
        "train.dequantize": False,
        "train.precision": "float32",
        "sample.sampler": "euler_maruyama",
        "sample.grid": "uniform",
        "sample.steps": 1_000,
    },
    "cifar10_ddpmpp_vp_deep": {"base": "cifar10_ddpmpp_vp", **DEEP},
    "cifar10_ddpmpp_subvp": {"base": "cifar10_ddpmpp_vp", "sde": "subvpsde"},
    "cifar10_ddpmpp_subvp_deep": {"base": "cifar10_ddpmpp_vp_deep", "sde": "subvpsde"},
    "cifar10_ddpmpp_vp_discrete": {
        "base": "cifar10_ddpmpp_vp",
        "sde": "ddpm",
        "denoiser.c_noise": "level",
        "sample.sampler": "ancestral",
        "sample.grid": "levels",
        "sample.t_min": 0.0,
    },
    # --- NCSN++ -------------------------------------------------------------------------------------------------------
    "cifar10_ncsnpp_vp": {"base": "cifar10_ddpmpp_vp", **NCSNPP},
    "cifar10_ncsnpp_vp_deep": {"base": "cifar10_ncsnpp_vp", **DEEP},
    "cifar10_ncsnpp_vp_discrete": {
        "base": "cifar10_ddpmpp_vp_discrete",
        **NCSNPP,
        "sample.sampler": "reverse_diffusion",
    },
    "cifar10_ncsnpp_subvp": {"base": "cifar10_ncsnpp_vp", "sde": "subvpsde"},
    "cifar10_ncsnpp_subvp_deep": {"base": "cifar10_ncsnpp_vp_deep", "sde": "subvpsde"},
    # On data in [0, 1], as all VE recipes of the paper.
    "cifar10_ncsnpp_ve": {
        "base": "cifar10_ncsnpp_vp",
        "codec.low": 0.0,
        "sde": "vesde",
        "network.embedding": "fourier",
        "network.centred": False,
        "network.by_sigma": True,
        "denoiser.parameterization": "score",
        "denoiser.c_noise": "sigma",
        "ema.rates": (0.999,),
        "sample.sampler": "pc",
        "sample.t_min": 1e-5,
    },
    "cifar10_ncsnpp_ve_deep": {"base": "cifar10_ncsnpp_ve", **DEEP},
    "cifar10_ncsnpp_ve_discrete": {
        "base": "cifar10_ncsnpp_ve",
        "sde": "ncsn",
        "sde.num_levels": 1_000,
        "network.embedding": "positional",
        "network.ladder": LADDER,
        "denoiser.c_noise": "level_from_noise",
        "sample.grid": "levels",
        "sample.t_min": 0.0,
    },
    # --- DDPM's network -----------------------------------------------------------------------------------------------
    "cifar10_ddpm_vp": {"base": "cifar10_ddpmpp_vp", **DDPM},
    "cifar10_ddpm_subvp": {"base": "cifar10_ddpm_vp", "sde": "subvpsde"},
    # DDPM itself. Ho, Jain, Abbeel, 2020. arXiv:2006.11239
    "cifar10_ddpm_vp_discrete": {"base": "cifar10_ddpmpp_vp_discrete", **DDPM},
    "cifar10_ddpm_ve_discrete": {
        "base": "cifar10_ncsnpp_ve_discrete",
        **DDPM,
        "network.centred": False,
        "network.by_sigma": True,
        "network.ladder": LADDER,
    },
    # --- NCSN ---------------------------------------------------------------------------------------------------------
    # Ten noise levels and annealed Langevin dynamics. Song, Ermon, 2019. arXiv:1907.05600
    "cifar10_ncsn": {
        "base": "cifar10_ncsnpp_ve_discrete",
        "sde.sigma_max": 1.0,
        "sde.num_levels": 10,
        "network": "ncsn",
        "network.centred": False,
        "optim.learning_rate": 1e-3,
        "optim.warmup_images": 0,
        "optim.clip_norm": 0.0,
        "ema.rates": (0.0,),
        "sample.sampler": "ald",
        "sample.sampler.langevin_steps": 100,
        "sample.steps": 10,
    },
    # NCSNv2: a network divided by the noise level, of 232 levels. Song, Ermon, 2020. arXiv:2006.09011
    "cifar10_ncsnv2": {
        "base": "cifar10_ncsn",
        "sde": "ncsn",
        "sde.sigma_max": 50.0,
        "sde.num_levels": 232,
        "network": "ncsnv2",
        "network.centred": False,
        "denoiser.c_noise": "sigma",
        "optim.learning_rate": 1e-4,
        "ema.rates": (0.999,),
        "sample.sampler.langevin_steps": 5,
        "sample.steps": 232,
    },
}
