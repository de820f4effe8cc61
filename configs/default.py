"""Every key of a run once, with its unit. The other files of this folder say only what they change.

    python run.py --config vpsde --mode train --config.train.batch_size=128 --config.sde.beta_max=10

A name of ``CHOICES`` brings its own options: ``--config.sde.name=vesde`` replaces the whole section.
"""

from typing import Any

from ml_collections import ConfigDict

CHOICES: dict[str, dict[str, dict[str, Any]]] = {
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
        "rectified": {
            "t_min": 1e-5,  # earliest time, in (0, 1): the share of noise
            "t_max": 0.999,  # latest time, in (0, 1)
        },
        "sigmoid": {
            "start": -3.0,  # where on the sigmoid t = 0 lies, before tau
            "end": 3.0,  # where on the sigmoid t = 1 lies, before tau
            "tau": 1.0,  # temperature of the sigmoid, positive
            "t_min": 1e-5,  # earliest time, in (0, 1)
            "t_max": 0.9995,  # latest time, in (0, 1)
        },
        "laplace": {
            "mean": 0.0,  # of the log-SNR
            "scale": 1.0,  # of the log-SNR, positive
            "t_min": 1e-5,  # earliest time, in (0, 1)
            "t_max": 0.9995,  # latest time, in (0, 1)
        },
        "logistic": {
            "mean": 0.0,  # of the log-SNR
            "scale": 2.0,  # of the log-SNR, positive; 2: that of rectified
            "t_min": 1e-5,  # earliest time, in (0, 1)
            "t_max": 0.999,  # latest time, in (0, 1)
        },
        "ddpm": {
            "num_levels": 1000,  # noise levels, and the latest time
            "beta_min": 1e-4,  # variance of the noise that level 1 adds
            "beta_max": 0.02,  # variance of the noise that the last level adds
        },
        "iddpm": {
            "num_levels": 1000,  # noise levels, and the latest time
            "offset": 0.008,  # share of the quarter turn that is left out before level 1, at least 0
        },
        "ncsn": {
            "sigma_min": 0.01,  # noise of level 1, in units of the encoded data
            "sigma_max": 50.0,  # noise of the last level, as above; 0: largest distance between examples
            "num_levels": 232,  # noise levels, and the latest time; 0: as many as neighbours overlap enough
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
            "noise_unconditional": False,  # not told the noise level, which the parameterisation then divides by
            "learned_variance": False,  # twice the channels: variances of reverse moves, for bound and hybrid
            "pad": False,  # pad and crop data whose sides the levels do not divide
        },
        "ddpm": {
            "channels": 128,  # at the highest resolution, a multiple of 4
            "channel_mult": (1, 2, 2, 2),  # channels of each level, in multiples of ``channels``; each halves the sides
            "num_blocks": 2,  # residual blocks a level; the decoder has one more
            "attention": (16,),  # resolutions that attend beside the middle, in pixels
            "dropout": 0.1,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
            "noise_unconditional": False,  # not told the noise level
            "resample_conv": True,  # convolutions change the resolution; else neighbours are averaged and repeated
            "centred": True,  # data in [-1, 1]; the network maps those in [0, 1] to it
            "by_sigma": False,  # divide the output by sigma
            "ladder": (),  # sigma_min, sigma_max and number of levels, if by_sigma and told a level; (): told sigma
            "norm_groups": 32,  # groups of each normalisation
            "norm_eps": 1e-6,  # added to its variances
            "head_channels": 0,  # channels of a head of attention; 0 is one head
            "attend_always": True,  # every block of the decoder at these resolutions, not the last one alone
        },
        "ncsnpp": {
            "channels": 128,  # at the highest resolution, a multiple of 4
            "channel_mult": (1, 2, 2, 2),  # channels of each level, in multiples of ``channels``; each halves the sides
            "num_blocks": 4,  # residual blocks a level; the decoder has one more
            "attention": (16,),  # resolutions that attend beside the middle, in pixels
            "dropout": 0.1,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
            "noise_unconditional": False,  # not told the noise level
            "blocks": "biggan",  # biggan: blocks change the resolution | ddpm: layers between them do
            "fir": (),  # taps of the filter of changes of resolution, such as (1.0, 3.0, 3.0, 1.0); (): average, repeat
            "resample_conv": True,  # of ddpm: those layers hold convolutions
            "progressive_input": "none",  # what the encoder sees of coarser inputs: none | input_skip | residual
            "progressive": "none",  # what the decoder adds up level by level: none | output_skip | residual
            "combine": "sum",  # of input_skip: sum | cat
            "embedding": "positional",  # of the noise level: positional | fourier, of the logarithm
            "fourier_scale": 16.0,  # standard deviation of the frequencies of fourier
            "rescale": True,  # divide sums of shortcut and branch by sqrt(2)
            "centred": True,  # data in [-1, 1]; the network maps those in [0, 1] to it
            "by_sigma": False,  # divide the output by sigma
            "ladder": (),  # sigma_min, sigma_max and number of levels, if by_sigma and told a level; (): told sigma
            "norm_groups": 32,  # most groups of a normalisation
            "norm_group": 4,  # least number of channels in a group
            "norm_eps": 1e-6,  # added to the variances of normalisations
            "head_channels": 0,  # channels of a head of attention; 0 is one head
            "attend_always": False,  # every block of the decoder at these resolutions, not the last one alone
        },
        "ncsn": {
            "channels": 128,  # at the highest resolution
            "num_levels": 10,  # noise levels, as many as those of the sde
            "centred": True,  # data in [-1, 1]; the network maps those in [0, 1] to it
            "activation": "elu",  # elu | relu | lrelu | swish
            "depth": 4,  # levels of the encoder: 4 for images of up to 64 pixels, 5 up to 128, 6 up to 256
        },
        "ncsnv2": {
            "channels": 128,  # at the highest resolution
            "centred": True,  # data in [-1, 1]; the network maps those in [0, 1] to it
            "activation": "elu",  # as of ncsn
            "depth": 4,  # as of ncsn
        },
        "mlp": {
            "width": 128,  # hidden units
            "depth": 3,  # residual blocks
            "dropout": 0.0,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
            "noise_unconditional": False,  # not told the noise level, which the parameterisation then divides by
            "learned_variance": False,  # twice the channels: variances of reverse moves, for bound and hybrid
        },
        "classifier": {
            "channels": 16,  # at the highest resolution
            "channel_mult": (1, 2),  # channels of each level, in multiples of ``channels``; each level halves the sides
            "num_blocks": 1,  # residual blocks a level
            "attention": (),  # resolutions that attend, in pixels, such as (16,)
            "dropout": 0.1,  # probability in [0, 1)
            "num_classes": 10,  # as many as the data have
            "pad": False,  # pad data whose sides the levels do not divide
        },
        "captioned": {
            "channels": 16,  # at the highest resolution
            "channel_mult": (1, 2),  # channels of each level, in multiples of ``channels``; each level halves the sides
            "num_blocks": 1,  # residual blocks a level
            "attention": (),  # resolutions that attend, in pixels, such as (16,)
            "dropout": 0.1,  # probability in [0, 1)
            "num_classes": 10,  # as many as the data have
            "pad": False,  # pad data whose sides the levels do not divide
            # what each class is called in captions, alternatives between bars
            "names": (
                "zero|0",
                "one|1",
                "two|2",
                "three|3",
                "four|4",
                "five|5",
                "six|6",
                "seven|7",
                "eight|8",
                "nine|9",
            ),
            # captions, with {} for the name
            "templates": ("{}", "a {}", "the digit {}", "the number {}", "number {}", "a handwritten {}"),
            "dimensions": 32,  # of the space of embeddings
        },
        "adm": {
            "channels": 32,  # that channel_mult multiplies
            "channel_mult": (1.0, 2.0),  # channels of each level, in multiples of ``channels``; each halves the sides
            "num_blocks": 1,  # residual blocks a level; the decoder has one more
            "attention": (),  # resolutions that attend beside the middle, in pixels, such as (32, 16, 8)
            "heads": 0,  # of each attention; 0: as many as head_channels gives
            "head_channels": 64,  # of a head, where heads is 0; blocks of fewer channels do not attend
            "dropout": 0.0,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
            "learned_variance": False,  # twice the channels: variances of reverse moves, for bound and hybrid
            "scale_shift": True,  # the condition scales and shifts, or is added
            "resample_blocks": True,  # blocks change the resolution, or single convolutions
            "embedding_mult": 4,  # width of the conditioning vector, in multiples of ``channels``
            "norm_group": 4,  # least channels in a group of a normalisation; 1 in guided diffusion
            "norm_groups": 32,  # most groups of a normalisation
            "norm_eps": 1e-5,  # added to its variances
            "augment_dim": 0,  # numbers that tell how an example was augmented; 9 in EDM
        },
        "adm_classifier": {
            "channels": 32,  # that channel_mult multiplies
            "channel_mult": (1.0, 2.0),  # channels of each level, in multiples of ``channels``; each halves the sides
            "num_blocks": 1,  # residual blocks a level
            "attention": (),  # resolutions that attend beside the middle, in pixels, such as (32, 16, 8)
            "heads": 0,  # of each attention; 0: as many as head_channels gives
            "head_channels": 64,  # of a head, where heads is 0; blocks of fewer channels do not attend
            "dropout": 0.0,  # probability in [0, 1)
            "num_classes": 10,  # as many as the data have
            "pool": "attention",  # over positions: attention | adaptive (mean) | spatial | spatial_v2
            "scale_shift": True,  # the condition scales and shifts, or is added
            "resample_blocks": True,  # blocks change the resolution, or single convolutions
            "norm_group": 4,  # least channels in a group of a normalisation; 1 in guided diffusion
        },
        "song": {
            "channels": 16,  # that channel_mult multiplies
            "channel_mult": (1, 2),  # channels of each level, in multiples of ``channels``; each level halves the sides
            "num_blocks": 1,  # residual blocks a level; the decoder has one more
            "attention": (),  # resolutions that attend beside the middle, in pixels, such as (16,)
            "dropout": 0.0,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
            "embedding": "positional",  # of the noise level: positional | fourier
            "embedding_mult": 4,  # width of the conditioning vector, in multiples of ``channels``
            "noise_mult": 1,  # features of the noise level, in multiples of ``channels``
            "encoder": "standard",  # standard | skip | residual: how it reads the image again at each level
            "decoder": "standard",  # standard | skip: whether each level adds to the output
            "fir": (),  # filter of changes of resolution, such as (1, 3, 3, 1); () averages and repeats
            "learned_variance": False,  # twice the channels: variances of reverse moves, for bound and hybrid
            "augment_dim": 0,  # numbers that tell how an example was augmented; 9 in EDM
        },
        "dit": {
            "patch": 2,  # side of a patch, in pixels
            "width": 64,  # channels of a patch
            "depth": 4,  # blocks
            "heads": 4,  # of each attention
            "mlp_mult": 4,  # hidden units of the linear layers, in multiples of ``width``
            "dropout": 0.0,  # probability in [0, 1)
            "num_classes": 0,  # 0 is unconditional
            "learned_variance": False,  # twice the channels: variances of reverse moves, for bound and hybrid
        },
    },
}


def choose(section: str, name: str, **changes: Any) -> ConfigDict:
    """The section ``sde`` or ``network`` for one of its names, with its own options and the changes to them."""
    return ConfigDict({"name": name, **CHOICES[section][name], **changes})


def get_config() -> ConfigDict:
    """The VP SDE and a small U-Net on the handwritten digits of scikit-learn."""
    config = ConfigDict()
    config.seed = 0  # of weights, data order, times and noise
    config.device = "auto"  # auto | cpu | cuda | cuda:1 | mps ...
    config.threads = 0  # of the CPU; 0: one for a small network, for others as many as torch takes

    config.data = ConfigDict()
    config.data.name = "digits"  # a key of DATASETS
    # of images: folder, zip, npy or npz; of table, signals, fields: npy or npz; of pairs: a samples.npz with latents
    config.data.path = ""
    config.data.test_path = ""  # a file or folder of the test split; empty: a part of data.path, every tenth or test/
    config.data.size = 0  # of image files: pixels a side after a centre crop to a square and resizing; 0: as stored
    config.data.mirror = False  # flip half of the training images left to right
    config.data.max_pixels = 2**24  # of images: most in a file, width times height; larger ones are refused unread
    config.data.skip_broken = False  # of images: leave out and count files that cannot be decoded, instead of stopping

    config.codec = ConfigDict()
    config.codec.name = "pixels"  # a key of CODECS
    config.codec.low = -1.0  # of pixels: where the encoded levels begin, -1 or 0; they end at 1

    config.sde = choose("sde", "vpsde")
    config.network = choose("network", "unet")

    config.denoiser = ConfigDict()
    config.denoiser.parameterization = "edm"  # what the network predicts: eps | x0 | v | edm | score ...
    config.denoiser.sigma_data = 0.0  # standard deviation of the encoded data; 0: measured on the training data
    config.denoiser.c_noise = "log_snr"  # a key of C_NOISE: the noise conditioning of the network
    config.denoiser.input = "unit"  # a key of INPUTS: unit | raw, by what the network's input is scaled

    config.loss = ConfigDict()
    config.loss.name = "denoising"  # a key of OBJECTIVES
    config.loss.weight = "edm"  # a key of WEIGHTS, on the squared error of x0
    config.loss.timestep_sampler = "lognormal"  # a key of TIMESTEP_SAMPLERS or LEARNING_TIMESTEP_SAMPLERS
    config.loss.time_mean = -0.5  # of log(sigma / alpha), for the law lognormal
    config.loss.time_std = 1.0  # of log(sigma / alpha), for the law lognormal
    config.loss.time_tail = 0.05  # share of the law lognormal that is uniform in log(sigma / alpha), over all levels
    config.loss.projections = 1  # of sliced and sliced_vr: random directions an example
    config.loss.probe = "rademacher"  # of sliced and sliced_vr: a key of PROBES
    config.loss.teacher = ""  # of consistency_distillation: folder of a trained run, such as runs/edm
    config.loss.first_steps = 10  # of consistency_*: steps from noise to data when training begins
    config.loss.last_steps = 1280  # of consistency_*: most steps from noise to data, after doublings
    config.loss.v = 0.0  # of bound, where the network tells none: 0 posterior (beta-tilde), 1 forward (beta)
    config.loss.bins = 100  # of the law loss_aware: equal shares of the time that each keep a history

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
    config.ema.profiles = ()  # widths of profiles to track, such as (0.05,0.1), that others are rebuilt from afterwards
    config.ema.snapshot_every = 100  # optimiser steps between two of their snapshots, as long as these are few
    config.ema.max_snapshots = 32  # that stay on the disk; where they would be more, every second one is dropped

    config.train = ConfigDict()
    config.train.init = ""  # folder of a run whose averaged weights training starts from; empty: from random ones
    config.train.total_images = 160_000  # length of the run, in images
    config.train.batch_size = 64  # images an optimiser step, over all devices
    config.train.checkpoint_every = 1_000  # optimiser steps; 0 is only at the end
    config.train.keep_checkpoints = 2  # newest ones that stay on the disk; 0 keeps all
    config.train.keep_every = 0  # optimiser steps: those that it divides stay too; 0 is none
    config.train.microbatch = 0  # images that a device takes at a time, gradients added up; 0: all of its share
    config.train.max_skipped = 10  # steps in a row that may have a loss or gradient that is not finite
    config.train.deterministic = False  # of GPUs: the same bits every time, at some cost of speed
    config.train.log_every = 100  # optimiser steps; 0 is never
    config.train.sample_every = 1_000  # optimiser steps; 0 is never
    config.train.evaluate_every = 1_000  # optimiser steps between losses on held-out data; 0 is never
    config.train.precision = "float32"  # float32 | bfloat16, of the network only
    config.train.label_dropout = 0.1  # share of the examples whose label does not count, of networks with classes
    config.train.dequantize = True  # uniform noise of one level's width on levels; what likelihood then measures
    config.train.recompute = False  # compute the blocks again for the gradient: less memory, a third more time
    config.train.sharding = False  # spread weights, gradients, moments and averages over the processes of the command
    config.train.compile = "auto"  # true | false | auto: torch.compile the network, on CUDA alone; takes a minute

    config.inference = ConfigDict()  # how a trained network is run, in every mode but train
    config.inference.precision = "float32"  # float32 | bfloat16, of the network only
    config.inference.compile = False  # torch.compile it: takes a minute, for thousands of evaluations on a GPU

    config.sample = ConfigDict()
    config.sample.sampler = "adams"  # a key of STEPS
    config.sample.steps = 0  # moves from noise to data; 0: as many as suit the sampler
    config.sample.grid = ""  # a key of GRIDS, or a .txt of sigma / alpha, one a line; empty: what suits the sampler
    config.sample.snr = 0.16  # signal-to-noise ratio of a Langevin move, for the samplers that correct
    config.sample.predictor = "reverse_diffusion"  # of pc: a key of PREDICTORS
    config.sample.corrector = "langevin"  # of pc: a key of STEP_SIZES
    config.sample.corrector_steps = 1  # of pc: Langevin moves at each time
    config.sample.eta = 0.0  # of ddim and the multistep samplers: share of the ancestral noise, 0 to 1
    config.sample.tau = 1.0  # of sa: share of the reverse SDE's noise
    config.sample.v = 0.0  # of ancestral: 0 posterior (beta-tilde), 1 forward (beta)
    config.sample.order = 0  # of the multistep samplers: values that a move goes through; 0: the sampler's own
    config.sample.integrand = "data"  # of multistep and unipc: a key of INTEGRANDS, what polynomials go through
    config.sample.integration_variable = "log_ratio"  # of multistep: of polynomials, a key of INTEGRATION_VARIABLES
    config.sample.correct = False  # of multistep: whether each evaluation mends the move before it
    config.sample.variant = "bh2"  # of unipc: bh1 | bh2
    config.sample.epsilon = 0.0  # of ald: step size at the last noise level, in units of the data squared; 0: fitted
    config.sample.langevin_steps = 5  # of ald: Langevin moves at each time
    config.sample.solver = "dopri5"  # of ode: a key of ADAPTIVE or TORCHDIFFEQ
    config.sample.rtol = 1e-4  # of ode: relative tolerance
    config.sample.atol = 1e-4  # of ode: absolute tolerance
    config.sample.control_rtol = 0.05  # of adaptive_sde and dpm_adaptive: relative tolerance of a move
    config.sample.control_atol = 0.0078  # of them: absolute tolerance of a move, a grey level
    config.sample.churn = 0.0  # of edm: noise put in before each move; 30 to 80 in the paper
    config.sample.churn_min = 0.0  # of edm: lowest sigma / alpha at which it is
    config.sample.churn_max = 1e9  # of edm: highest
    config.sample.churn_noise = 1.0  # of edm: standard deviation of what is put in
    config.sample.noise = "independent"  # a key of NOISES: brownian gives twice the steps the same path
    config.sample.num_samples = 64
    config.sample.keep_latents = False  # write the noise and the end point of each sample too, for the dataset pairs
    config.sample.batch_size = 0  # samples drawn at a time, which changes none; 0: as many as fill the device
    config.sample.t_min = 1e-3  # time of the last denoising; 0: the earliest of the SDE

    config.sample.label = ""  # number or name of the class to draw, or all: every one in turn; empty: without a label

    config.guidance = ConfigDict()  # of sample, evaluate, sweep and edit
    config.guidance.scale = 1.0  # of the label's score, without a classifier: 0 ignores it, more than 1 sharpens
    config.guidance.classifier = ""  # folder of a classifier's run on the same noise; empty: none
    config.guidance.classifier_scale = 1.0  # of the classifier's gradient
    config.guidance.autoguidance = ""  # folder of a weaker run, from which samples are guided away; empty: none
    config.guidance.autoguidance_scale = 2.0  # 1: the weaker run does not count
    config.guidance.encoder = ""  # folder of a run of --config clip on the same noise, or of a CLIPModel; empty: none
    config.guidance.text = ""  # of the encoder: what the samples lean towards, such as "a three"
    config.guidance.image = ""  # of the encoder, instead of text: an image, .npy or .npz of one example
    config.guidance.encoder_scale = 1.0  # of the gradient of the dot product
    config.guidance.low = 0.0  # lowest sigma / alpha at which any of this acts
    config.guidance.high = 1e9  # highest sigma / alpha at which any of this acts
    config.guidance.threshold = "none"  # none | static (clip x0 to the range of the data) | dynamic (shrink it)
    config.guidance.quantile = 0.995  # of dynamic: share of the entries that are within the range
    config.guidance.scales = (1.0, 1.5, 2.0, 4.0)  # of the mode sweep: scales to compare

    config.edit = ConfigDict()  # steps, t_min and the options of the steps are those of ``sample``
    config.edit.first = 0  # of interpolate: number of the example at one end, from 0; negative ones count from the last
    config.edit.second = -1  # of interpolate: number of the example at the other end
    config.edit.frames = 11  # of interpolate: pictures along a path, both ends included
    config.edit.depths = (0.3, 0.6, 0.9)  # of interpolate: share of noise in an encoding's variance, each in (0, 1)
    config.edit.input = ""  # of restorations, sdedit and translate: an image, .npy or .npz; empty: of the split
    config.edit.num_examples = 64  # of the input, or of the split, evenly spaced; of encode the first ones; 0 is all
    config.edit.method = "pigdm"  # of restorations: a key of METHODS: replacement | pigdm | dps
    config.edit.mask = ""  # of inpaint, sdedit: a picture, white where known, or a box to fill: top,left,height,width
    config.edit.factor = 2  # of superres: pixels a side that became one
    config.edit.blur = 1.0  # of deblur: standard deviation of the blur, in pixels
    config.edit.measure = ""  # of measured: FILE.py:FUNCTION, from a batch of encoded examples to what is known of it
    config.edit.noise = 0.0  # of restorations: standard deviation of the noise in what is known, encoded
    config.edit.zeta = 1.0  # of dps: length of its moves against the misfit
    config.edit.jump = 10  # of replacement: moves before going back up, if repeats is above 1
    config.edit.repeats = 1  # of replacement: how often each stretch is gone (RePaint)
    config.edit.noisy_mean = False  # of replacement: end at the last noisy state, as score_sde, not at its denoising
    config.edit.strength = 0.5  # of sdedit: share of noise in the variance, in (0, 1)
    config.edit.other = ""  # of translate: folder of the run to translate to
    config.edit.latents = ""  # of decode: the latents.npz of encode, or a samples.npz that kept its latents
    config.edit.batch_size = 256  # examples at a time

    config.bound = ConfigDict()
    config.bound.num_examples = 0  # of the split; 0 is all
    config.bound.batch_size = 256  # examples at a time
    config.bound.v = 0.0  # of a chain's reverse moves, if the network tells none: 0 posterior, 1 forward
    config.bound.evaluations = 32  # of the network for each example; a chain takes as many as it has levels
    config.bound.t_min = 0.0  # time of the decoder; 0: noise of 0.3 widths of a level, or the earliest. Not of a chain

    config.evaluate = ConfigDict()  # sampler, steps, grid and their options are those of ``sample``
    config.evaluate.features = "runs/classifier"  # folder of a classifier's run | identity | inception
    config.evaluate.inception_path = ""  # weights of Inception v3 in the form of torch-fidelity, for the name inception
    config.evaluate.samples = ""  # a samples.npz with its manifest.json beside it; empty: drawn anew
    config.evaluate.num_samples = 1_000  # that are drawn
    config.evaluate.reference = ""  # an .npz of an earlier evaluation with features of the real data; empty: made anew
    config.evaluate.num_examples = 0  # real ones of each split; 0 is all
    config.evaluate.batch_size = 0  # samples and examples at a time, which changes no number; 0: as for sample
    config.evaluate.subsets = 100  # of the kernel distance
    config.evaluate.subset_size = 300  # samples in each; at most as many as there are of samples and of either split

    config.likelihood = ConfigDict()
    config.likelihood.solver = "adams_pece"  # a key of SOLVERS
    config.likelihood.evaluations = 0  # of adams: of the network, at least 2; 0: as many as make its error small
    config.likelihood.traces = 0  # of adams: evaluations that the divergence is taken at, 2 or more; 0 is all
    config.likelihood.rtol = 1e-5  # of the adaptive solvers: relative tolerance
    config.likelihood.atol = 1e-5  # of the adaptive solvers: absolute tolerance
    config.likelihood.probes = 1  # random vectors an example, for the divergence
    config.likelihood.probe = "rademacher"  # a key of PROBES
    config.likelihood.exact_trace_below = 16  # dimensions; smaller data get the exact divergence
    config.likelihood.prior = "standard"  # a key of PRIORS: standard, or matched to the moments of the training data
    config.likelihood.dequantization = "uniform"  # a key of DEQUANTIZATIONS: of levels; none for continuous data
    config.likelihood.samples = 1  # dequantised copies of an example, weighted by importance: log-mean-exp of them
    config.likelihood.repeats = 1  # independent estimates of each example, of which the mean is taken
    config.likelihood.num_examples = 0  # of the split; 0 is all
    config.likelihood.check_examples = 8  # on which the solver's error is measured by finer ones; 0 is no check
    config.likelihood.batch_size = 0  # examples solved at a time; 0: as many as fill the device
    config.likelihood.t_min = 0.0  # time of the data; 0: the earliest of the SDE, or that of truncated_normal
    return config.lock()
