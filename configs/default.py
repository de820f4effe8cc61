"""Every key of a run once, with its unit. The other files of this folder say only what they change.

    python run.py --config vpsde --mode train --config.train.batch_size=128 --config.sde.beta_max=10

A name of ``CHOICES`` brings its own options: ``--config.sde.name=vesde`` replaces the whole section.
"""

from ml_collections import ConfigDict

CHOICES = {
    "sde": {
        "vpsde": {
            "beta_min": 0.1,  # rate of noise at t = 0, per unit of time
            "beta_max": 20.0,  # rate of noise at t = 1, per unit of time
            "t_min": 1e-5,  # earliest time, in (0, 1)
        },
        "subvpsde": {
            "beta_min": 0.1,  # rate of noise at t = 0, per unit of time
            "beta_max": 20.0,  # rate of noise at t = 1, per unit of time
            "t_min": 1e-5,  # earliest time, in (0, 1)
        },
        "vesde": {
            "sigma_min": 0.01,  # noise at t = 0, in units of the encoded data
            "sigma_max": 50.0,  # noise at t = 1, in units of the encoded data; 0: largest distance between examples
            "t_min": 1e-5,  # earliest time, in [0, 1)
        },
        "edm": {
            "sigma_min": 0.002,  # least noise and earliest time, in units of the encoded data
            "sigma_max": 80.0,  # most noise and latest time, as above; 0: largest distance between examples
        },
        "cosine": {
            "offset": 0.008,  # share of the quarter turn that is left out at t = 0, at least 0
            "t_min": 1e-5,  # earliest time, in (0, 1)
            "t_max": 0.995,  # latest time, in (0, 1)
        },
    },
    "network": {
        "unet": {
            "channels": 16,  # at the highest resolution
            "channel_mult": (1, 2),  # channels of each level, in multiples of ``channels``; each level halves the sides
            "num_blocks": 1,  # residual blocks a level
            "attention": (),  # resolutions that attend beside the middle, in pixels, such as (16,)
            "dropout": 0.0,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
            "pad": False,  # pad and crop data whose sides the levels do not divide
        },
        "mlp": {
            "width": 128,  # hidden units
            "depth": 3,  # residual blocks
            "dropout": 0.0,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
        },
    },
}


def choose(section: str, name: str, **changes) -> ConfigDict:
    """The section ``sde`` or ``network`` for one of its names, with its own options and the changes to them."""
    return ConfigDict({"name": name, **CHOICES[section][name], **changes})


def get_config() -> ConfigDict:
    """The VP SDE and a small U-Net on the handwritten digits of scikit-learn."""
    config = ConfigDict()
    config.seed = 0  # of weights, data order, times and noise
    config.device = "auto"  # auto | cpu | cuda | cuda:1 | mps ...
    config.threads = 1  # of the CPU; 0: as many as torch takes. Small networks gain nothing from more

    config.data = ConfigDict()
    config.data.name = "digits"  # a key of DATASETS
    config.data.path = ""  # folder, zip, npy or npz of your own data, for the name images
    config.data.test_path = ""  # the held-out examples where they lie apart; empty: see data.path
    config.data.mirror = False  # flip half of the training images left to right

    config.codec = ConfigDict()
    config.codec.name = "pixels"  # a key of CODECS

    config.sde = choose("sde", "vpsde")
    config.network = choose("network", "unet")

    config.denoiser = ConfigDict()
    config.denoiser.parameterization = "edm"  # what the network predicts: eps | x0 | v | edm | score
    config.denoiser.sigma_data = 0.0  # standard deviation of the encoded data; 0: measured on the training data

    config.loss = ConfigDict()
    config.loss.weight = "edm"  # a key of WEIGHTS, on the squared error of x0
    config.loss.time_law = "lognormal"  # a key of TIME_LAWS
    config.loss.time_mean = -0.5  # of log(sigma / alpha), for the law lognormal
    config.loss.time_std = 1.0  # of log(sigma / alpha), for the law lognormal

    config.optim = ConfigDict()
    config.optim.name = "adam"  # adam | adamw
    config.optim.learning_rate = 8e-3  # at its highest
    config.optim.beta1 = 0.9  # decay of the gradient's mean, a step
    config.optim.beta2 = 0.99  # decay of the gradient's second moment, a step
    config.optim.weight_decay = 0.0  # a unit of learning rate
    config.optim.warmup_images = 6_000  # images over which the learning rate rises from 0
    config.optim.decay = "cosine"  # cosine (to 0 at train.total_images) | constant
    config.optim.clip_norm = 1.0  # largest norm of the whole gradient; 0 is no limit

    config.ema = ConfigDict()
    config.ema.rates = (0.999,)  # share of the average that is kept a step; the first one is sampled
    config.ema.warmup = True  # rate at step n at most (1 + n) / (10 + n)

    config.train = ConfigDict()
    config.train.total_images = 160_000  # length of the run, in images
    config.train.batch_size = 64  # images an optimiser step, over all devices
    config.train.checkpoint_every = 1_000  # optimiser steps; 0 is only at the end
    config.train.keep_checkpoints = 2  # newest ones that stay on the disk
    config.train.log_every = 100  # optimiser steps; 0 is never
    config.train.sample_every = 1_000  # optimiser steps; 0 is never
    config.train.evaluate_every = 1_000  # optimiser steps between losses on held-out data; 0 is never
    config.train.precision = "float32"  # float32 | bfloat16, of the network only
    config.train.dequantize = True  # uniform noise of one level's width on levels; what likelihood then measures
    config.train.compile = False  # torch.compile the network

    config.sample = ConfigDict()
    config.sample.sampler = "pc"  # a key of STEPS
    config.sample.steps = 250  # moves from noise to data
    config.sample.grid = "uniform"  # a key of GRIDS
    config.sample.snr = 0.16  # signal-to-noise ratio of a Langevin move, for the samplers that correct
    config.sample.predictor = "reverse_diffusion"  # of pc: a key of PREDICTORS
    config.sample.corrector = "langevin"  # of pc: a key of STEP_SIZES
    config.sample.corrector_steps = 1  # of pc: Langevin moves at each time
    config.sample.eta = 0.0  # of ddim: share of the ancestral noise, 0 to 1
    config.sample.variance = 0.0  # of ancestral: 0 posterior (beta-tilde), 1 forward (beta)
    config.sample.solver = "dopri5"  # of ode: a key of SOLVERS
    config.sample.rtol = 1e-4  # of ode: relative tolerance
    config.sample.atol = 1e-4  # of ode: absolute tolerance
    config.sample.num_samples = 64
    config.sample.batch_size = 256  # samples drawn at a time; changes no sample
    config.sample.t_min = 1e-3  # time of the last denoising; 0: the earliest of the SDE

    config.likelihood = ConfigDict()
    config.likelihood.solver = "dopri5"  # a key of SOLVERS
    config.likelihood.probes = 1  # random vectors an example, for the divergence
    config.likelihood.probe = "rademacher"  # a key of PROBES
    config.likelihood.exact_trace_below = 16  # dimensions; smaller data get the exact divergence
    config.likelihood.dequantization = "uniform"  # noise that turns levels into densities; none for continuous data
    config.likelihood.num_examples = 0  # of the split; 0 is all
    config.likelihood.batch_size = 256  # examples solved at a time
    config.likelihood.rtol = 1e-5  # relative tolerance of the solver
    config.likelihood.atol = 1e-5  # absolute tolerance of the solver
    config.likelihood.t_min = 0.0  # time of the data; 0: the earliest of the SDE
    return config.lock()
