"""Recipes on the handwritten digits of scikit-learn: each trains in minutes on two cores.

    python run.py --config vesde --mode train
    python run.py --config vesde --mode sample --sampler pc

A recipe holds its changes to ``base``, another recipe, or to configs/default.py, under the keys of the command line.
"""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # --- SDEs and noise schedules -------------------------------------------------------------------------------------
    # VP SDE, the recipe of default.py. Song et al., 2021. arXiv:2011.13456
    "vpsde": {"sde": "vpsde"},
    # Sub-VP SDE. Song et al., 2021, eq. 29
    "subvpsde": {"sde": "subvpsde"},
    # VE SDE. Song et al., 2021, eq. 30
    "vesde": {"sde": "vesde"},
    # EDM. Karras et al., 2022. arXiv:2206.00364
    "edm": {"sde": "edm", "sample.t_min": 0.0},
    # VP with the cosine schedule and v-prediction. Nichol, Dhariwal, 2021. arXiv:2102.09672
    "cosine": {
        "sde": "cosine",
        "denoiser.parameterization": "v",
        "loss.weight": "v",
        "loss.timestep_sampler": "uniform",
    },
    # VP with the sigmoid schedule and v-prediction. Jabri et al., 2022. arXiv:2212.11972
    "sigmoid": {"base": "cosine", "sde": "sigmoid"},
    # VP with a Laplace distribution of log-SNR and v-prediction. Hang et al., 2024. arXiv:2407.03297
    "laplace": {"base": "cosine", "sde": "laplace"},
    # VP with a logistic distribution of log-SNR and v-prediction. Kingma, Gao, 2023. arXiv:2303.00848
    "logistic": {"base": "cosine", "sde": "logistic"},
    # Rectified flow. Liu, Gong, Liu, 2022. arXiv:2209.03003
    "rectified": {
        "sde": "rectified",
        "denoiser.parameterization": "flow",
        "loss.weight": "flow",
        "loss.timestep_sampler": "logit_normal",
        "loss.timestep_sampler.mean": 0.0,
        "loss.timestep_sampler.std": 1.0,
        "sample.sampler": "heun",
        "sample.steps": 50,
        "sample.t_min": 0.0,
    },
    # Rectified flow trained on its own pairs of noise and digit: straighter paths, which a few steps follow. Train
    # rectified first, then draw the pairs with --mode sample --num_samples 8000 --config.sample.keep_latents=true.
    # Liu, Gong, Liu, 2022, algorithm 1
    "reflow": {
        "base": "rectified",
        "data.name": "pairs",
        "data.path": "runs/rectified/samples/heun-50/samples.npz",
        "optim.learning_rate": 4e-3,
        "train.init": "runs/rectified",
        "train.total_images": 80_000,
        "train.dequantize": False,
        "sample.sampler": "ddim",
        "sample.steps": 4,
    },
    # --- discrete-time processes --------------------------------------------------------------------------------------
    # DDPM: 1,000 levels and the simple loss of eps. Ho, Jain, Abbeel, 2020. arXiv:2006.11239
    "ddpm": {
        "sde": "ddpm",
        "denoiser.parameterization": "eps",
        "loss.weight": "simple",
        "loss.timestep_sampler": "uniform",
        "train.dequantize": False,
        "sample.sampler": "ancestral",
        "sample.grid": "levels",
        "sample.steps": 1_000,
        "sample.t_min": 0.0,
        "bound.v": 1.0,
    },
    # Improved DDPM: the cosine schedule, learned variances and the hybrid objective. The network predicts v instead of
    # the paper's eps: the last level holds no signal, and there eps determines no estimate of the data.
    # Nichol, Dhariwal, 2021. arXiv:2102.09672
    "iddpm": {
        "base": "ddpm",
        "sde": "iddpm",
        "network.learned_variance": True,
        "denoiser.parameterization": "v",
        "loss.objective": "hybrid",
        "sample.sampler": "ancestral_learned",
        "sample.steps": 100,
    },
    # Improved DDPM on the bound itself, with levels drawn by their loss. Nichol, Dhariwal, 2021, section 3.3
    "iddpm_vlb": {
        "base": "iddpm",
        "loss.objective": "bound",
        "loss.timestep_sampler": "loss_aware",
        "loss.timestep_sampler.bins": 1_000,
    },
    # NCSN: a noise-conditional network, ten noise levels, annealed Langevin dynamics. Song, Ermon, 2019.
    # arXiv:1907.05600
    "ncsn": {
        "sde": "ncsn",
        "sde.sigma_min": 0.05,
        "sde.sigma_max": 4.0,
        "sde.num_levels": 10,
        "denoiser.parameterization": "eps",
        "loss.weight": "sigma2",
        "loss.timestep_sampler": "uniform",
        "ema.rates": (0.0,),
        "sample.sampler": "ald",
        "sample.sampler.langevin_steps": 20,
        "sample.grid": "levels",
        "sample.steps": 10,
        "sample.t_min": 0.0,
    },
    # NCSNv2: noise levels computed from the data, and a noise-unconditional network. Song, Ermon, 2020.
    # arXiv:2006.09011
    "ncsnv2": {
        "sde": "ncsn",
        "sde.sigma_min": 0.05,
        "sde.sigma_max": 0.0,
        "sde.num_levels": 0,
        "network.noise_unconditional": True,
        "denoiser.parameterization": "eps",
        "denoiser.sigma_data": 3.0,
        "loss.weight": "sigma2",
        "loss.timestep_sampler": "uniform",
        "sample.sampler": "ald",
        "sample.sampler.langevin_steps": 10,
        "sample.grid": "levels",
        "sample.steps": 18,
        "sample.t_min": 0.0,
    },
    # --- objectives ---------------------------------------------------------------------------------------------------
    # Maximum likelihood with a learned distribution of log-SNR. Kingma et al., 2021. arXiv:2107.00630
    "learned": {"loss.weight": "likelihood", "loss.timestep_sampler": "learned"},
    # VE SDE trained by sliced score matching. At very low noise its gradient drowns the gradients of the other levels,
    # hence no tail. Song, Garg, Shi, Ermon, 2019. arXiv:1905.07088
    "sliced": {"base": "vesde", "loss.objective": "sliced_vr", "loss.timestep_sampler.tail": 0.0},
    # A consistency model without a teacher. Song, Dhariwal, 2023. arXiv:2310.14189
    "consistency_training": {
        "base": "edm",
        "loss.objective": "consistency_training",
        "loss.objective.last_steps": 160,
        "loss.timestep_sampler.mean": -1.1,
        "loss.timestep_sampler.std": 2.0,
        "loss.timestep_sampler.tail": 0.0,
        "optim.learning_rate": 4e-3,
        "train.total_images": 100_000,
        "sample.sampler": "consistency",
        "sample.grid": "edm",
        "sample.steps": 2,
        "sample.t_min": 0.8,
    },
    # A consistency model distilled from the run edm, which is trained first: digits in one to four evaluations.
    # Song, Dhariwal, Chen, Sutskever, 2023. arXiv:2303.01469
    "consistency": {
        "base": "consistency_training",
        "loss.objective": "consistency_distillation",
        "loss.objective.last_steps": 40,
        "loss.teacher": "runs/edm",
        "optim.learning_rate": 2e-3,
        "train.init": "runs/edm",
        "train.total_images": 80_000,
    },
    # --- conditions ---------------------------------------------------------------------------------------------------
    # VP SDE conditional on the class: --label 3 draws threes, --config.guidance.scale=3 clearer ones.
    "conditional": {"network.num_classes": 10},
    # A classifier of clean and noisy digits: features of --mode evaluate, and p(y | x_t) of classifier guidance.
    "classifier": {
        "network": "classifier",
        "network.channel_mult": (1, 2, 4),
        "loss.objective": "classification",
        "loss.timestep_sampler.mean": -2.0,
        "loss.timestep_sampler.std": 2.0,
        "loss.timestep_sampler.tail": 0.0,
        "optim.learning_rate": 4e-3,
        "train.total_images": 60_000,
        "train.dequantize": False,
        "train.sample_every": 0,
    },
    # Encoders of noisy digits and of captions such as "a three", for guidance.encoder.
    "clip": {
        "base": "classifier",
        "network": "captioned",
        "network.channel_mult": (1, 2, 4),
        "loss.objective": "contrastive",
    },
}
