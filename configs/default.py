"""Every key of a run with its default and unit; the other files of this folder hold recipes, as changes to it.

    python run.py --config vpsde --mode train --config.train.batch_size=128 --config.sde.beta_max=10

A key with ``choice`` is a section that names an entry of a table (``configs.choices``) and holds the options of that
entry: ``--config.sde=vesde`` chooses another entry, and ``--config.sde.sigma_max=20`` sets one of its options.
"""

from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any

from ml_collections import ConfigDict

from score_sde.configs.choices import choose
from score_sde.configs.sections import Choice, Section

__all__ = ["choose", "get_config"]


def choice(name: str, **changes: Any) -> Any:
    """A section that names an entry of a table, by default this one with these changes to its options."""
    return field(metadata={"name": name, "changes": changes})


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    name: str = "digits"  # a key of DATASETS
    path: str = ""  # images: folder, zip, npy or npz; table, signals, fields: npy or npz; pairs: samples.npz
    test_path: str = ""  # file or folder of the test split; empty: a part of data.path, test/ or every tenth example
    size: int = 0  # image files: pixels a side after a centre crop to a square and resizing; 0: as stored
    mirror: bool = False  # flip half of the training images left to right
    max_pixels: int = 2**24  # images: largest width times height of a file; larger ones are refused unread
    skip_broken: bool = False  # images: leave out and count files that cannot be decoded, instead of stopping


@dataclass(frozen=True, kw_only=True)
class Denoiser(Section):
    parameterization: str = "edm"  # target of the network: eps | x0 | v | edm | score ...
    sigma_data: float = 0.0  # standard deviation of the encoded data; 0: measured on the training data
    c_noise: str = "log_snr"  # a key of C_NOISE: the noise conditioning of the network
    input: str = "unit"  # a key of INPUTS: unit | raw, the scaling of the network's input


@dataclass(frozen=True, kw_only=True)
class Loss(Section):
    objective: Choice = choice("denoising")
    weight: Choice = choice("edm")  # on the squared error of x0
    timestep_sampler: Choice = choice("lognormal", mean=-0.5, std=1.0, tail=0.05)
    teacher: str = ""  # consistency_distillation: folder of a trained run, such as runs/edm


@dataclass(frozen=True, kw_only=True)
class Optim(Section):
    name: str = "adam"  # adam | adamw
    learning_rate: float = 8e-3  # at its highest
    beta1: float = 0.9  # decay of the gradient's mean per step
    beta2: float = 0.99  # decay of the gradient's second moment per step
    weight_decay: float = 0.0  # per unit of learning rate
    warmup_images: int = 6_000  # images over which the learning rate rises from 0
    decay: str = "cosine"  # cosine (to 0 at train.total_images) | constant
    clip_norm: float = 1.0  # largest norm of the whole gradient; 0 is no limit


@dataclass(frozen=True, kw_only=True)
class EMA(Section):
    rates: tuple[float, ...] = (0.999,)  # fraction of the average kept per step; the first average is sampled
    warmup: bool = True  # rate at step n at most (1 + n) / (10 + n)
    profiles: tuple[float, ...] = ()  # widths of tracked profiles, such as (0.05,0.1), to rebuild others from
    snapshot_every: int = 100  # optimizer steps between snapshots of the profiles, as long as these are few
    max_snapshots: int = 32  # that stay on the disk; beyond it every second one is dropped


@dataclass(frozen=True, kw_only=True)
class Train(Section):
    init: str = ""  # folder of a run whose averaged weights training starts from; empty: random weights
    total_images: int = 160_000  # length of the run, in images
    batch_size: int = 64  # images per optimizer step, over all devices
    checkpoint_every: int = 1_000  # optimizer steps; 0 is only at the end
    keep_checkpoints: int = 2  # newest ones that stay on the disk; 0 keeps all
    keep_every: int = 0  # checkpoints at multiples of this step stay, too; 0 is none
    microbatch: int = 0  # images per forward pass of a device, gradients added up; 0: its whole part of the batch
    max_skipped: int = 10  # consecutive steps whose loss or gradient may be non-finite
    deterministic: bool = False  # GPUs: the same bits every time, at some cost of speed
    log_every: int = 100  # optimizer steps; 0 is never
    sample_every: int = 1_000  # optimizer steps; 0 is never
    evaluate_every: int = 1_000  # optimizer steps between validation losses; 0 is never
    precision: str = "float32"  # float32 | bfloat16, of the network only
    label_dropout: float = 0.1  # fraction of examples trained without their label, for networks with classes
    dequantize: bool = True  # uniform noise of one level's width on levels; likelihood then measures that density
    recompute: bool = False  # compute the blocks again for the gradient: less memory, a third more time
    sharding: bool = False  # spread weights, gradients, moments and averages over the processes of the command
    compile: str = "auto"  # true | false | auto: torch.compile the network, on CUDA alone; takes a minute


@dataclass(frozen=True, kw_only=True)
class Inference(Section):
    """The network in every mode but train."""

    precision: str = "float32"  # float32 | bfloat16, of the network only
    compile: bool = False  # torch.compile it: takes a minute, for thousands of evaluations on a GPU


@dataclass(frozen=True, kw_only=True)
class Sample(Section):
    sampler: Choice = choice("adams")
    steps: int = 0  # moves from noise to data; 0: the sampler's own number
    grid: str = ""  # a key of GRIDS, or a .txt of sigma / alpha, one a line; empty: the sampler's own
    noise: str = "independent"  # a key of NOISES: with brownian, grids of n and 2n steps share their paths
    num_samples: int = 64
    keep_latents: bool = False  # also write the noise and the end point of each sample, for the dataset pairs
    batch_size: int = 0  # samples drawn at a time, without effect on any of them; 0: as many as fill the device
    t_min: float = 1e-3  # time of the last denoising; 0: the earliest of the SDE
    label: str = ""  # number or name of the class to draw, or all: every one in turn; empty: unconditional


@dataclass(frozen=True, kw_only=True)
class Guidance(Section):
    """Guidance in the modes sample, evaluate, sweep and edit."""

    scale: float = 1.0  # of the label's score, without a classifier: 0 ignores it, more than 1 sharpens
    classifier: str = ""  # folder of a classifier's run on the same noise; empty: none
    classifier_scale: float = 1.0  # of the classifier's gradient
    autoguidance: str = ""  # folder of a weaker run to guide away from; empty: none
    autoguidance_scale: float = 2.0  # 1: without effect
    encoder: str = ""  # folder of a run of --config clip on the same noise, or of a CLIPModel; empty: none
    text: str = ""  # encoder: the text to guide towards, such as "a three"
    image: str = ""  # encoder, instead of text: an image, .npy or .npz of one example
    encoder_scale: float = 1.0  # of the gradient of the dot product
    low: float = 0.0  # lowest sigma / alpha at which guidance acts
    high: float = 1e9  # highest sigma / alpha at which guidance acts
    threshold: str = "none"  # none | static (clip x0 to the range of the data) | dynamic (shrink it)
    quantile: float = 0.995  # dynamic: fraction of the entries that are within the range
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 4.0)  # sweep: scales to compare


@dataclass(frozen=True, kw_only=True)
class Edit(Section):
    """Edits, which also take the sampler, its steps and t_min from ``sample``."""

    task: Choice = choice("inpaint")
    method: Choice = choice("pigdm")  # of inverse problems
    input: str = ""  # inverse problems, sdedit, translate: an image, .npy or .npz; empty: of the split
    num_examples: int = 64  # of the input, or of the split, evenly spaced; encode: the first ones; 0 is all
    noise: float = 0.0  # inverse problems: standard deviation of the measurement noise, in encoded units
    batch_size: int = 256  # examples at a time


@dataclass(frozen=True, kw_only=True)
class Bound(Section):
    num_examples: int = 0  # of the split; 0 is all
    batch_size: int = 256  # examples at a time
    v: float = 0.0  # reverse moves of a chain without learned variance: 0 posterior, 1 forward
    evaluations: int = 32  # of the network for each example; a chain takes one for each of its levels
    t_min: float = 0.0  # time of the decoder; 0: noise of 0.3 widths of a level, or the earliest. Not of a chain


@dataclass(frozen=True, kw_only=True)
class Evaluate(Section):
    """Evaluation of samples, which also takes sampler, steps and grid from ``sample``."""

    features: str = "runs/classifier"  # folder of a classifier's run | identity | inception
    inception_path: str = ""  # inception: weights of Inception v3 in the form of torch-fidelity
    samples: str = ""  # a samples.npz with its manifest.json in the same folder; empty: new samples
    num_samples: int = 1_000  # that are drawn
    reference: str = ""  # an .npz of an earlier evaluation with features of the real data; empty: computed
    num_examples: int = 0  # real ones of each split; 0 is all
    batch_size: int = 0  # samples and examples at a time, without effect on any number; 0: as for sample
    subsets: int = 100  # of the kernel distance
    subset_size: int = 300  # samples in each; at most as many as there are of samples and of either split


@dataclass(frozen=True, kw_only=True)
class Likelihood(Section):
    solver: Choice = choice("adams_pece")
    evaluations: int = 0  # adams_pece: of the network, at least 2; 0: as many as make its error small
    probes: int = 1  # random vectors per example, for the divergence
    probe: str = "rademacher"  # a key of PROBES
    exact_trace_below: int = 16  # dimensions; smaller data get the exact divergence
    prior: str = "standard"  # a key of PRIORS: standard, or matched to the moments of the training data
    dequantization: str = "uniform"  # a key of DEQUANTIZATIONS: of levels; none for continuous data
    samples: int = 1  # dequantized copies of an example, weighted by importance: log-mean-exp of them
    repeats: int = 1  # independent estimates of each example, averaged
    num_examples: int = 0  # of the split; 0 is all
    check_examples: int = 8  # on which the solver's error is measured by finer ones; 0 is no check
    batch_size: int = 0  # examples solved at a time; 0: as many as fill the device
    t_min: float = 0.0  # time of the data; 0: the earliest of the SDE, or the time of truncated_normal


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    seed: int = 0  # of weights, data order, times and noise
    device: str = "auto"  # auto | cpu | cuda | cuda:1 | mps ...
    threads: int = 0  # of the CPU; 0: one for a small network, for others torch's default
    data: Data
    codec: Choice = choice("pixels")
    sde: Choice = choice("vpsde")
    network: Choice = choice("unet")
    denoiser: Denoiser
    loss: Loss
    optim: Optim
    ema: EMA
    train: Train
    inference: Inference
    sample: Sample
    guidance: Guidance
    edit: Edit
    bound: Bound
    evaluate: Evaluate
    likelihood: Likelihood


def get_config() -> ConfigDict:
    """The VP SDE and a small U-Net on the handwritten digits of scikit-learn, as a locked dictionary to change."""
    return ConfigDict(_defaults(Config, "")).lock()


def _defaults(of: Any, prefix: str) -> dict[str, Any]:
    return {each.name: _default(each, prefix + each.name) for each in fields(of)}


def _default(of: Field[Any], key: str) -> Any:
    if of.type is Choice:
        return choose(key, of.metadata["name"], **of.metadata["changes"])
    return _defaults(of.type, f"{key}.") if is_dataclass(of.type) else of.default
