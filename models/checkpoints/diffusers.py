"""Reader of diffusers' folders: a single UNet2DModel, or a pipeline with one and a scheduler.

Three variants of UNet2DModel are supported. DDPM's settings (sine first, no padding) give ``ddpm``, the defaults of the
class (cosine first, padding) give ``adm`` as in improved diffusion, and SkipDownBlock2D gives ``ncsnpp`` with
``input_skip`` and ``output_skip``.
"""

import json
import math
from collections.abc import Container
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from score_sde.models.adm import ADM
from score_sde.models.blocks import Block, SelfAttention
from score_sde.models.checkpoints.foreign import Foreign
from score_sde.models.checkpoints.parts import Dialect, Tensors, names, with_null
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.ddpm import DDPM
from score_sde.models.layers import all_of
from score_sde.models.ncsnpp import InputSkip, Level, NCSNpp, OutputSkip
from score_sde.storage.reading import read_text

DIALECT = Dialect(
    block={part: part for part in ("norm1", "conv1", "norm2", "conv2")}
    | {"affine": "time_emb_proj", "shortcut": "conv_shortcut"},
    attention={"norm": "group_norm"},
)
QKV, OUTPUT = ("to_q", "to_k", "to_v"), "to_out.0"
OLD_QKV, OLD_OUTPUT = ("query", "key", "value"), "proj_attn"

WEIGHTS = tuple(
    f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin", "fp16.safetensors", "fp16.bin")
)

FIXED = {
    "act_fn": "silu",
    "add_attention": True,
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "upsample_type": "conv",
}
"""Settings with a single supported value, which is diffusers' default."""

SKIP = {"time_embedding_type": "fourier", "mid_block_scale_factor": math.sqrt(2)}
"""The values of ``FIXED`` that differ for networks of SkipDownBlock2D."""

SKIP_OPTIONS = {
    "fir": (1.0, 3.0, 3.0, 1.0),
    "progressive_input": "input_skip",
    "progressive": "output_skip",
    "embedding": "fourier",
    "by_sigma": True,
}
"""Options of ``ncsnpp`` for networks of SkipDownBlock2D."""

NORMALISED_ALIKE = 128
"""Least number of channels for which ``ncsnpp`` has 32 normalisation groups, as AttnSkipDownBlock2D always has."""

EMBEDDINGS = {(False, 1, 0): "ddpm", (True, 0, 1): "adm"}
"""(flip_sin_to_cos, freq_shift, downsample_padding) -> name of the network."""

DEFAULTS = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "downsample_padding": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "attention_head_dim": 8,
    "dropout": 0.0,
    "center_input_sample": False,
    "num_class_embeds": None,
    "layers_per_block": 2,
    "in_channels": 3,
    "out_channels": 3,
    "sample_size": None,
}

NETWORKS = {ADM: "adm", DDPM: "ddpm", NCSNpp: "ncsnpp"}

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def read(path: str | PathLike[str], weights: str = "ema") -> Foreign:
    """Reads a diffusers folder, or a weight file next to the config.json of its network.

    Without a scheduler, the process is DDPM's: 1,000 levels, a linear schedule, and noise prediction. NCSN++ requires a
    ScoreSdeVeScheduler, which contains the noise levels.

    Args:
        path: folder of a pipeline (model_index.json, unet, scheduler) or of a network (config.json and weights), or a
            weight file in the latter.
        weights: ``ema`` reads the folder unet_ema if it exists, ``raw`` reads unet.
    Raises: ForeignError if a file is missing, cannot be read safely, or has settings that the toolkit's networks and
        processes do not support, and for missing or unexpected tensors.
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020. arXiv:2006.11239
    """
    path = Path(path)
    if not path.exists():
        raise ForeignError(f"{path} does not exist; give the folder of a pipeline or of a UNet2DModel")
    folder, choice = path if path.is_dir() else path.parent, False
    if path.is_dir() and (folder / "model_index.json").is_file():
        choice = (folder / "unet_ema").is_dir()
        averaged = weights == "ema" and choice
        unet, scheduler = folder / ("unet_ema" if averaged else "unet"), folder / "scheduler"
    else:
        unet = scheduler = folder
    settings = load(unet / "config.json")
    if settings.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ForeignError(f"{unet} is a {settings['_class_name']}; only UNet2DModel is supported")
    found = path if path.is_file() else next((unet / name for name in WEIGHTS if (unet / name).is_file()), None)
    if found is None:
        raise ForeignError(f"{unet} contains no weights; add {WEIGHTS[0]} or {WEIGHTS[1]}")
    tensors = Tensors(found, "conv_in.weight", "diffusers' UNet2DModel", weights)
    kind, options = architecture({**DEFAULTS, **settings}, unet)

    def arrange(network: ADM | NCSNpp) -> dict[str, str | tuple[str, ...]]:
        if "class_embedding.weight" in tensors:
            tensors["class_embedding.weight"] = with_null(tensors["class_embedding.weight"])
        twin = tensors.get("time_proj.W")  # a second copy of the frequencies, in old files
        if twin is not None and torch.equal(twin, tensors.get("time_proj.weight", twin)):
            tensors["time_proj.weight"] = tensors.pop("time_proj.W")
        for name in [name for name in tensors if ".attentions." in name and tensors[name].ndim > 2]:
            tensors[name] = tensors[name].flatten(1)
        modules = adm_modules(network) if isinstance(network, ADM) else ncsnpp_modules(network)
        return names(network, modules) | attention_names(network, modules, tensors)

    sections = process(scheduler)
    if kind is NCSNpp and sections["sde"]["name"] != "vesde":
        needs = "a network of SkipDownBlock2D needs a ScoreSdeVeScheduler, which gives its sigmas"
        raise ForeignError(f"{scheduler}: {needs}; give the folder of a pipeline that has one")
    placed = tensors.placed(kind, options, arrange)
    shape = options.pop("shape")
    config = {"network": {"name": NETWORKS[kind], **options}, **sections}
    return Foreign("diffusers", config, placed, shape, wrapper=tensors.wrapper, choice=choice or tensors.choice)


def load(path: Path) -> dict[str, Any]:
    """The dict in a JSON file.

    Raises: ForeignError for a file that is missing or does not contain a dict.
    """
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ForeignError(f"{path} {reason}; give the folder of a pipeline or of a UNet2DModel") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ForeignError(f"{path} is not a diffusers config; download it again")
    return content


def architecture(settings: dict[str, Any], path: Path) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of the network, and its options.

    Raises: ForeignError naming a setting that is not supported.
    """
    try:
        downs, ups, counts = settings["down_block_types"], settings["up_block_types"], settings["block_out_channels"]
    except KeyError as error:
        raise ForeignError(f"{path}: its config lacks {error.args[0]}; download it again") from None
    skip = "Skip" if all("Skip" in name for name in downs) else ""
    unknown = {*downs, *ups} - {f"{attn}{skip}{side}Block2D" for attn in ("", "Attn") for side in ("Down", "Up")}
    if unknown:
        blocks = f"blocks {', '.join(sorted(unknown))} are not supported"
        raise ForeignError(
            f"{path}: {blocks}; use the blocks of DownBlock2D's kind, or of SkipDownBlock2D's kind alone"
        )
    for key, value in (FIXED | SKIP if skip else FIXED).items():
        given = settings.get(key, value)
        if given != value and not (isinstance(value, float) and math.isclose(given, value, rel_tol=1e-6)):
            blocks = f"{skip}DownBlock2D"
            raise ForeignError(f"{path}: {key} {given!r} is not supported with {blocks}; only {value!r} is")
    attends = [name.startswith("Attn") for name in downs]
    if attends != [name.startswith("Attn") for name in ups][::-1] or len(downs) != len(counts):
        raise ForeignError(f"{path}: its up_block_types do not mirror its down_block_types")
    size = settings["sample_size"]
    if size is None:
        raise ForeignError(f"{path}: its config lacks sample_size; add the side of its images, in pixels")
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)

    multiples = [count / counts[0] for count in counts]
    options = {
        "shape": (settings["in_channels"], *sides),
        "channels": counts[0],
        "channel_mult": tuple(int(m) if m == int(m) else m for m in multiples),
        "num_blocks": settings["layers_per_block"],
        "attention": tuple(max(sides) // 2**level for level, attending in enumerate(attends) if attending),
        "dropout": float(settings["dropout"]),
        "num_classes": settings["num_class_embeds"] or 0,
        "norm_eps": settings["norm_eps"],
        "head_channels": settings["attention_head_dim"] or 0,
    }
    return skip_architecture(settings, options, path) if skip else plain_architecture(settings, options, path)


def skip_architecture(
    settings: dict[str, Any], options: dict[str, Any], path: Path
) -> tuple[type[nn.Module], dict[str, Any]]:
    """As ``architecture``, for networks of SkipDownBlock2D; ``options`` are those common to all networks."""
    counts, groups = settings["block_out_channels"], settings["norm_num_groups"]
    if groups is not None and any(groups != min(count // 4, 32) for count in (counts[0], counts[-1])):
        raise ForeignError(f"{path}: norm_num_groups {groups} is not supported with these blocks; only null is")
    narrow = [
        count
        for count, name in zip(counts, settings["down_block_types"])
        if name.startswith("Attn") and count < NORMALISED_ALIKE
    ]
    if narrow:
        theirs = f"{settings['down_block_types'][counts.index(narrow[0])]} of {narrow[0]} channels"
        raise ForeignError(f"{path}: {theirs} is not supported; it needs at least {NORMALISED_ALIKE}")
    if any(count % counts[0] for count in counts):
        raise ForeignError(f"{path}: ncsnpp needs whole multiples of {counts[0]} channels")
    return NCSNpp, options | SKIP_OPTIONS | {"centred": not settings["center_input_sample"]}


def plain_architecture(
    settings: dict[str, Any], options: dict[str, Any], path: Path
) -> tuple[type[nn.Module], dict[str, Any]]:
    """As ``architecture``, for networks of DownBlock2D; ``options`` are those common to all networks."""
    counts, learned = settings["block_out_channels"], settings["out_channels"] == 2 * settings["in_channels"]
    embedding = (settings["flip_sin_to_cos"], settings["freq_shift"], settings["downsample_padding"])
    if embedding not in EMBEDDINGS:
        keys = "flip_sin_to_cos, freq_shift, downsample_padding"
        raise ForeignError(f"{path}: {keys} {embedding} are not supported; only {list(EMBEDDINGS)} are")
    options |= {"norm_groups": settings["norm_num_groups"]}
    if EMBEDDINGS[embedding] == "ddpm":
        if learned or any(count % counts[0] for count in counts):
            raise ForeignError(
                f"{path}: ddpm needs as many outputs as inputs, and whole multiples of {counts[0]} channels"
            )
        return DDPM, options | {"centred": not settings["center_input_sample"]}
    if settings["center_input_sample"]:
        raise ForeignError(f"{path}: adm does not support center_input_sample")
    if not options["head_channels"]:
        options |= {"heads": 1, "head_channels": 64}
    options |= {"scale_shift": False, "resample_blocks": False, "norm_group": 1, "learned_variance": learned}
    return ADM, options


def process(folder: Path) -> dict[str, dict[str, Any]]:
    """The config sections sde, denoiser and codec of a scheduler; ScoreSdeVeScheduler adds the section sample.

    ScoreSdeVePipeline has data in [0, 1] and the sampler ``pc``; DDPMPipeline has data in [-1, 1].

    Raises: ForeignError for a schedule that is not supported.
    """
    path = folder / "scheduler_config.json"
    settings = load(path) if path.is_file() else {}
    name = settings.get("_class_name", "DDPMScheduler")
    if name == "ScoreSdeVeScheduler":
        sde = {
            "name": "vesde",
            "sigma_min": settings.get("sigma_min", 0.01),
            "sigma_max": settings.get("sigma_max", 1348.0),
        }
        sde["t_min"] = settings.get("sampling_eps", 1e-5)
        denoiser = {"parameterization": "score", "sigma_data": 0.25, "c_noise": "sigma", "input": "raw"}
        moves = {"name": "pc", "snr": settings.get("snr", 0.15), "corrector_steps": settings.get("correct_steps", 1)}
        return {"sde": sde, "denoiser": denoiser, "codec": {"name": "pixels", "low": 0.0}, "sample": {"sampler": moves}}
    schedule, prediction = settings.get("beta_schedule", "linear"), settings.get("prediction_type", "epsilon")
    if "beta_schedule" not in settings and name not in ("DDPMScheduler", "DDIMScheduler"):
        raise ForeignError(
            f"{path}: {name} has no beta_schedule; give a DDPMScheduler or a DDIMScheduler, or add the key"
        )
    if settings.get("trained_betas") is not None or settings.get("rescale_betas_zero_snr"):
        raise ForeignError(f"{path}: trained_betas and rescale_betas_zero_snr are not supported; linear betas are")
    if prediction not in PREDICTIONS:
        raise ForeignError(f"{path}: unknown prediction_type {prediction!r}; known: {', '.join(PREDICTIONS)}")
    num_levels = settings.get("num_train_timesteps", 1000)
    if schedule == "linear":
        betas = {"beta_min": settings.get("beta_start", 1e-4), "beta_max": settings.get("beta_end", 0.02)}
        sde = {"name": "ddpm", "num_levels": num_levels, **betas}
    elif schedule == "squaredcos_cap_v2":
        sde = {"name": "iddpm", "num_levels": num_levels, "offset": 0.008}
    else:
        raise ForeignError(f"{path}: beta_schedule {schedule!r} is not supported; linear and squaredcos_cap_v2 are")
    denoiser = {"parameterization": PREDICTIONS[prediction], "sigma_data": 0.5, "c_noise": "level", "input": "raw"}
    return {"sde": sde, "denoiser": denoiser, "codec": {"name": "pixels"}}


def ends(first: str, second: str) -> dict[str, str]:
    """Module -> foreign module: stem, label table, and the linear layers ``first`` and ``second`` of the noise."""
    modules = {first: "time_embedding.linear_1", second: "time_embedding.linear_2", "stem": "conv_in"}
    return modules | {"conditioning.label.table": "class_embedding"}


def stages(ours: str, entries: nn.ModuleList, theirs: str) -> dict[str, str]:
    """Module -> foreign module, for blocks and their attention; the foreign network numbers attention separately."""
    modules, attending = dict[str, str](), 0
    for i, stage in enumerate(entries):
        modules |= DIALECT.stage(f"{ours}.{i}", stage, f"{theirs}.resnets.{i}", f"{theirs}.attentions.{attending}")
        attending += isinstance(stage.attention, SelfAttention)
    return modules


def ncsnpp_modules(network: NCSNpp) -> dict[str, str]:
    """Module -> foreign module, for ``ncsnpp`` and ``ddpm``."""
    modules = ends("conditioning.linear1", "conditioning.linear2") | stages("middle", network.middle, "mid_block")
    modules["conditioning.features.frequencies"] = "time_proj.weight"
    for side, levels, change in (("encoder", network.encoder, "down"), ("decoder", network.decoder, "up")):
        for i, level in enumerate(all_of(levels, Level)):
            at, ours = f"{change}_blocks.{i}", f"{side}.{i}"
            modules |= stages(f"{ours}.stages", level.stages, at)
            if isinstance(level.change, Block):
                modules |= DIALECT.stage(f"{ours}.change", level.change, f"{at}.resnet_{change}", "")
            elif level.change is not None:
                modules[f"{ours}.change.conv"] = f"{at}.{change}samplers.0.conv"
            if isinstance(level.pyramid, (InputSkip, OutputSkip)):
                modules |= {f"{ours}.pyramid.{part}": f"{at}.skip_{part}" for part in ("norm", "conv")}
    last = f"decoder.{len(network.decoder) - 1}.pyramid." if network.skips else ""
    return modules | {f"{last}norm": "conv_norm_out", f"{last}{'conv' if last else 'output'}": "conv_out"}


def adm_modules(network: ADM) -> dict[str, str]:
    """Module -> foreign module."""
    modules = ends("conditioning.layers.0", "conditioning.layers.2") | stages("middle", network.middle, "mid_block")
    modules |= {"output.0": "conv_norm_out", "output.2": "conv_out"}
    per_level = len(network.encoder) // len(network.decoder) + 1
    for i, module in enumerate(network.encoder):
        level, block = divmod(i, per_level)
        at = f"down_blocks.{level}"
        if block < per_level - 1:
            modules |= DIALECT.stage(f"encoder.{i}", module, f"{at}.resnets.{block}", f"{at}.attentions.{block}")
        else:
            modules[f"encoder.{i}.conv"] = f"{at}.downsamplers.0.conv"
    for level, entries in enumerate(all_of(network.decoder, nn.ModuleList)):
        modules |= stages(f"decoder.{level}", entries, f"up_blocks.{level}")
    return modules | {f"ups.{i}.conv": f"up_blocks.{i}.upsamplers.0.conv" for i in range(len(network.ups))}


def attention_names(
    network: nn.Module, modules: dict[str, str], tensors: Container[str]
) -> dict[str, str | tuple[str, ...]]:
    """Foreign names of each attention's tensors: separate queries, keys and values, with two generations of names."""
    found: dict[str, str | tuple[str, ...]] = {}
    for name, module in network.named_modules():
        if isinstance(module, SelfAttention):
            theirs = modules[f"{name}.norm"].removesuffix(".group_norm")
            old = f"{theirs}.query.weight" in tensors
            for leaf in ("weight", "bias"):
                found[f"{name}.qkv.{leaf}"] = tuple(f"{theirs}.{part}.{leaf}" for part in (OLD_QKV if old else QKV))
                found[f"{name}.output.{leaf}"] = f"{theirs}.{OLD_OUTPUT if old else OUTPUT}.{leaf}"
    return found
