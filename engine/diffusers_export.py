"""Export of a run to the files of a diffusers pipeline, for its own loader.

RUN/export/diffusers/  model_index.json  unet/config.json  unet/diffusion_pytorch_model.safetensors
                       scheduler/scheduler_config.json
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from score_sde.configs.choices import options_of
from score_sde.configs.default import Config
from score_sde.configs.sections import Choice
from score_sde.engine.build import Experiment
from score_sde.engine.files import write_json
from score_sde.models.adm import ADM
from score_sde.models.checkpoints.diffusers import (
    DEFAULTS,
    EMBEDDINGS,
    FIXED,
    NORMALISED_ALIKE,
    PREDICTIONS,
    SKIP,
    SKIP_OPTIONS,
    WEIGHTS,
    adm_modules,
    attention_names,
    ncsnpp_modules,
)
from score_sde.models.checkpoints.parts import names
from score_sde.models.ncsnpp import NCSNpp
from score_sde.storage.writing import replace

NETWORKS: dict[str, dict[str, Any]] = {
    "ddpm": {"noise_unconditional": False, "resample_conv": True, "by_sigma": False},
    "adm": {"scale_shift": False, "resample_blocks": False, "norm_group": 1, "embedding_mult": 4, "augment_dim": 0},
    "ncsnpp": SKIP_OPTIONS
    | {"noise_unconditional": False, "blocks": "biggan", "combine": "sum", "rescale": True, "ladder": ()}
    | {"norm_groups": 32, "norm_group": 4},
}
"""Network -> options with which it is equal to a UNet2DModel."""


CHAIN = 1_000
"""Levels of the discrete-time process on which diffusers samples ``vpsde``; its level k is t = k / 999."""


def write_diffusers(folder: Path, config: Config, experiment: Experiment) -> str:
    """Writes a pipeline of a UNet2DModel and its scheduler; returns a description.

    Raises: ValueError with everything that UNet2DModel, scheduler or pipeline do not support.
    """
    pipeline = PIPELINES.get(config.network.name, CHAINS)
    found = list(obstacles(pipeline, config, experiment))
    if found:
        raise ValueError(f"diffusers' {pipeline.name} has no such run: {'; '.join(found)}")
    unet, (scheduler, description) = unet_config(config, experiment.facts.shape), pipeline.schedule(config)
    tensors = save_tensors(renamed(experiment.network), {"format": "pt"})
    replace(folder / "unet" / WEIGHTS[0], lambda file: file.write(tensors))
    write_json(folder / "unet" / "config.json", unet)
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": pipeline.scheduler, **scheduler})
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", pipeline.scheduler]}
    write_json(folder / "model_index.json", {"_class_name": pipeline.name, **parts})
    return f"{config.network.name} as a UNet2DModel, {config.sde.name} as a {pipeline.scheduler} {description}"


def obstacles(pipeline: "Pipeline", config: Config, experiment: Experiment) -> Iterator[str]:
    """Yields the settings that the pipeline does not support, each with the supported value."""
    network, sde, denoiser = config.network, config.sde, config.denoiser
    if network.name in NETWORKS:
        for key, value in NETWORKS[network.name].items():
            if network[key] != value:
                yield f"network.{key} is {network[key]}, not {value}"
        yield from unlike(config, experiment)
    else:
        yield f"network.name is {network.name}, not {' or '.join(n for n, p in PIPELINES.items() if p is pipeline)}"
    if sde.name not in pipeline.c_noise:
        yield f"sde.name is {sde.name}, not {', '.join(pipeline.c_noise)}"
    elif denoiser.c_noise != pipeline.c_noise[sde.name]:
        yield f"denoiser.c_noise is {denoiser.c_noise}, not {pipeline.c_noise[sde.name]}"
    if sde.name == "iddpm" and sde.offset != 0.008:
        yield f"sde.offset is {sde.offset:g}, not 0.008"
    if denoiser.input != "raw":
        yield f"denoiser.input is {denoiser.input}, not raw"
    if denoiser.parameterization not in pipeline.estimates:
        yield f"denoiser.parameterization is {denoiser.parameterization}, not {', '.join(pipeline.estimates)}"
    if (config.codec.name, experiment.low) != ("pixels", pipeline.low):
        yield f"its data are no pixels from {pipeline.low:g} to 1"


def unlike(config: Config, experiment: Experiment) -> Iterator[str]:
    """Yields the options of a network of ``NETWORKS`` that UNet2DModel does not support."""
    network, counts, skip = config.network, widths(config.network), config.network.name == "ncsnpp"
    attending = [count for count, attends in zip(counts, attention(network, experiment.facts.shape)) if attends]
    if network.num_classes:
        yield "its network takes class labels, and the pipeline does not pass any"
    if counts[0] != network.channels:
        yield f"network.channel_mult begins with {network.channel_mult[0]:g}, not 1"
    if attending and network.get("attend_always", True) is skip:
        yield f"network.attend_always is {skip}, and there are levels that attend"
    if network.get("heads", 0) > 1:
        yield f"network.heads is {network.heads}, not 0 or 1"
    head = head_channels(network)
    if head and any(count % head for count in (*attending, counts[-1])):
        yield f"network.head_channels {head} does not divide the channels of every level that attends"
    if skip:
        yield from unlike_ncsnpp(attending, experiment)
    elif any(count % network.norm_groups for count in counts):
        yield f"network.norm_groups {network.norm_groups} does not divide the channels of every level"


def unlike_ncsnpp(attending: list[int], experiment: Experiment) -> Iterator[str]:
    """Yields the properties of NCSN++ that UNet2DModel with SkipDownBlock2D does not support.

    Args:
        attending: channels of the levels with attention.
    """
    channels, height, width = experiment.facts.shape
    if channels != 3 or height != width:
        yield f"its images are {height}x{width} with channels {channels}, not squares with channels 3"
    if any(count < NORMALISED_ALIKE for count in attending):
        yield f"a level of {min(attending)} channels attends, not of {NORMALISED_ALIKE} or more"
    norms = [module for module in experiment.network.modules() if isinstance(module, nn.GroupNorm)]
    groups = {(norm.num_channels, norm.num_groups, min(norm.num_channels // 4, 32)) for norm in norms}
    for count, ours, theirs in sorted(groups):
        if ours != theirs:
            yield f"{count} channels are normalised in {ours} groups, not {theirs}"


def widths(network: Choice) -> list[int]:
    """Channels of each level."""
    return [int(network.channels * multiple) for multiple in network.channel_mult]


def attention(network: Choice, shape: tuple[int, ...]) -> list[bool]:
    """Whether each level has attention."""
    return [max(shape[1:]) // 2**level in network.attention for level in range(len(network.channel_mult))]


def head_channels(network: Choice) -> int:
    """Channels of an attention head; 0 for a single head."""
    return 0 if network.get("heads", 0) == 1 else network.head_channels


def unet_config(config: Config, shape: tuple[int, ...]) -> dict[str, Any]:
    """Config of the UNet2DModel."""
    network, attends = config.network, attention(config.network, shape)
    learned, skip = network.get("learned_variance", False), "Skip" if network.name == "ncsnpp" else ""
    usual = tuple(DEFAULTS[key] for key in ("flip_sin_to_cos", "freq_shift", "downsample_padding"))
    flip, shift, padding = next((key for key, name in EMBEDDINGS.items() if name == network.name), usual)
    return {
        "_class_name": "UNet2DModel",
        **(FIXED | SKIP if skip else FIXED),
        "sample_size": shape[1] if shape[1] == shape[2] else list(shape[1:]),
        "in_channels": shape[0],
        "out_channels": shape[0] * (1 + learned),
        "center_input_sample": not network.get("centred", True),
        "flip_sin_to_cos": flip,
        "freq_shift": shift,
        "downsample_padding": padding,
        "down_block_types": [f"{'Attn' * attend}{skip}DownBlock2D" for attend in attends],
        "up_block_types": [f"{'Attn' * attend}{skip}UpBlock2D" for attend in reversed(attends)],
        "block_out_channels": widths(network),
        "layers_per_block": network.num_blocks,
        "dropout": network.dropout,
        "attention_head_dim": head_channels(network) or None,
        "norm_num_groups": None if skip else network.norm_groups,
        "norm_eps": network.norm_eps,
        "num_class_embeds": None,
    }


def chain(config: Config) -> tuple[dict[str, Any], str]:
    """Config of the DDPMScheduler, with the clipping and variance of the sampler ``ancestral``, and its description."""
    sde = config.sde
    if sde.name == "iddpm":
        levels, schedule = sde.num_levels, {"beta_schedule": "squaredcos_cap_v2"}
    else:
        levels, per_unit = (CHAIN, CHAIN) if sde.name == "vpsde" else (sde.num_levels, 1)
        betas = {"beta_start": sde.beta_min / per_unit, "beta_end": sde.beta_max / per_unit}
        schedule = {"beta_schedule": "linear", **betas}
    ancestral = options_of("sample.sampler", "ancestral", config.sample.sampler)
    variance = "fixed_large" if ancestral["v"] == 1 else "fixed_small"
    predicted = {ours: theirs for theirs, ours in PREDICTIONS.items()}[config.denoiser.parameterization]
    scheduler = {
        "num_train_timesteps": levels,
        **schedule,
        "prediction_type": predicted,
        "variance_type": "learned_range" if config.network.get("learned_variance", False) else variance,
        "clip_sample": config.guidance.threshold == "static",
    }
    return scheduler, f"of {levels} levels, {schedule['beta_schedule']}, {predicted}"


def noise_levels(config: Config) -> tuple[dict[str, Any], str]:
    """Config of the ScoreSdeVeScheduler, whose corrector steps are those of the sampler ``pc``, and its description."""
    sde, options = config.sde, options_of("sample.sampler", "pc", config.sample.sampler)
    ends = {"sigma_min": sde.sigma_min, "sigma_max": sde.sigma_max, "sampling_eps": sde.t_min}
    moves = {"snr": options["snr"], "correct_steps": options["corrector_steps"]}
    return ends | moves, f"from sigma {sde.sigma_min:g} to {sde.sigma_max:g}"


class Pipeline(NamedTuple):
    """A pipeline of diffusers, and the runs that it supports.

    name, scheduler: its classes.
    c_noise: SDE -> noise conditioning that the scheduler computes.
    estimates: parameterizations.
    low: lower end of its data.
    schedule: config -> config of the scheduler, and its description.
    """

    name: str
    scheduler: str
    c_noise: dict[str, str]
    estimates: tuple[str, ...]
    low: float
    schedule: Callable[[Config], tuple[dict[str, Any], str]]


CHAINS = Pipeline(
    "DDPMPipeline",
    "DDPMScheduler",
    {"ddpm": "level", "iddpm": "level", "vpsde": "time"},
    tuple(PREDICTIONS.values()),
    -1.0,
    chain,
)


EXPLODING = Pipeline("ScoreSdeVePipeline", "ScoreSdeVeScheduler", {"vesde": "sigma"}, ("score",), 0.0, noise_levels)


PIPELINES = {"ddpm": CHAINS, "adm": CHAINS, "ncsnpp": EXPLODING}
"""Network -> pipeline."""


def renamed(network: nn.Module) -> dict[str, Tensor]:
    """Weights under the names of a UNet2DModel, which has separate tensors for queries, keys and values."""
    assert isinstance(network, (ADM, NCSNpp))  # the networks of ``PIPELINES``
    modules = adm_modules(network) if isinstance(network, ADM) else ncsnpp_modules(network)
    theirs = names(network, modules) | attention_names(network, modules, {})
    found: dict[str, Tensor] = {}
    for ours, tensor in network.state_dict().items():
        several = theirs[ours]
        parts = (several,) if isinstance(several, str) else several
        for part, chunk in zip(parts, tensor.cpu().chunk(len(parts)), strict=True):
            found[part] = chunk.clone()
    return found
