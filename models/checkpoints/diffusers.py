"""Reader of diffusers' folders: a UNet2DModel by itself, or a pipeline of one and a scheduler.

Three of its settings are networks of ours: that of DDPM (sine first, no padding) is ``ddpm``, the default of the class
(cosine first, padding) is ``adm`` as in improved diffusion, and blocks of the kind SkipDownBlock2D are NCSN++ with
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
"""Settings of which ours know one value, that of diffusers where a config says nothing."""

SKIP = {"time_embedding_type": "fourier", "mid_block_scale_factor": math.sqrt(2)}
"""As ``FIXED``, where blocks of the kind SkipDownBlock2D have other values."""

SKIP_OPTIONS = {
    "fir": (1.0, 3.0, 3.0, 1.0),
    "progressive_input": "input_skip",
    "progressive": "output_skip",
    "embedding": "fourier",
    "by_sigma": True,
}
"""Options of our ``ncsnpp`` that is made of these blocks."""

NORMALISED_ALIKE = 128
"""Channels from which on the 32 groups of AttnSkipDownBlock2D and AttnSkipUpBlock2D are as many as ours."""

EMBEDDINGS = {(False, 1, 0): "ddpm", (True, 0, 1): "adm"}
"""(flip_sin_to_cos, freq_shift, downsample_padding) -> network of ours."""

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


def read(path: str | PathLike, weights: str = "ema") -> Foreign:
    """A folder of diffusers, or a file of weights next to the config.json of its network, in our words.

    A folder without a scheduler is taken for DDPM's: 1,000 levels, a linear schedule, and the noise as estimate. NCSN++
    needs its ScoreSdeVeScheduler, which has the noise levels.

    Args:
        path: folder of a pipeline (model_index.json, unet, scheduler) or of a network (config.json and weights), or a
            file of weights in the latter.
        weights: ema for the folder unet_ema where there is one; raw for unet.
    Raises: ForeignError if a file is not there, cannot be read safely, or says what our networks and processes do not
        know; if a tensor has no place or a place no tensor.
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020. arXiv:2006.11239
    """
    path = Path(path)
    if not path.exists():
        raise ForeignError(f"{path} is not there; give the folder of a pipeline or of a UNet2DModel")
    folder, choice = path if path.is_dir() else path.parent, False
    if path.is_dir() and (folder / "model_index.json").is_file():
        choice = (folder / "unet_ema").is_dir()
        averaged = weights == "ema" and choice
        unet, scheduler = folder / ("unet_ema" if averaged else "unet"), folder / "scheduler"
    else:
        unet = scheduler = folder
    told = load(unet / "config.json")
    if told.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ForeignError(f"{unet} is a {told['_class_name']}; UNet2DModel is the class that can be read")
    found = path if path.is_file() else next((unet / name for name in WEIGHTS if (unet / name).is_file()), None)
    if found is None:
        raise ForeignError(f"{unet} holds no weights; there should be {WEIGHTS[0]} or {WEIGHTS[1]}")
    tensors = Tensors(found, "conv_in.weight", "diffusers' UNet2DModel", weights)
    kind, options = architecture({**DEFAULTS, **told}, unet)

    def arrange(network: ADM | NCSNpp) -> dict[str, str | tuple[str, ...]]:
        if "class_embedding.weight" in tensors:
            tensors["class_embedding.weight"] = with_null(tensors["class_embedding.weight"])
        twin = tensors.get("time_proj.W")  # the same frequencies once more, in old files
        if twin is not None and torch.equal(twin, tensors.get("time_proj.weight", twin)):
            tensors["time_proj.weight"] = tensors.pop("time_proj.W")
        for name in [name for name in tensors if ".attentions." in name and tensors[name].ndim > 2]:
            tensors[name] = tensors[name].flatten(1)
        modules = adm_modules(network) if isinstance(network, ADM) else ncsnpp_modules(network)
        return names(network, modules) | attention_names(network, modules, tensors)

    sections = process(scheduler)
    if kind is NCSNpp and sections["sde"]["name"] != "vesde":
        needs = "a network of SkipDownBlock2D hears sigma, of a ScoreSdeVeScheduler"
        raise ForeignError(f"{scheduler}: {needs}; give the folder of a pipeline that has one")
    placed = tensors.placed(kind, options, arrange)
    shape = options.pop("shape")
    config = {"network": {"name": NETWORKS[kind], **options}, **sections}
    return Foreign("diffusers", config, placed, shape, wrapper=tensors.wrapper, choice=choice or tensors.choice)


def load(path: Path) -> dict[str, Any]:
    """The dict in a JSON file.

    Raises: ForeignError if it is not there, or none.
    """
    try:
        content = json.loads(read_text(path))
    except OSError as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ForeignError(f"{path} {reason}; give the folder of a pipeline or of a UNet2DModel") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ForeignError(f"{path} is no config of diffusers; get it again")
    return content


def architecture(told: dict[str, Any], path: Path) -> tuple[type[nn.Module], dict[str, Any]]:
    """Our network and its options.

    Raises: ForeignError naming the setting that ours do not know.
    """
    try:
        downs, ups, counts = told["down_block_types"], told["up_block_types"], told["block_out_channels"]
    except KeyError as error:
        raise ForeignError(f"{path}: its config lacks {error.args[0]}; get it again") from None
    skip = "Skip" if all("Skip" in name for name in downs) else ""
    unknown = {*downs, *ups} - {f"{attn}{skip}{side}Block2D" for attn in ("", "Attn") for side in ("Down", "Up")}
    if unknown:
        blocks = f"blocks {', '.join(sorted(unknown))} are in no network of ours"
        raise ForeignError(f"{path}: {blocks}; DownBlock2D and its like, or SkipDownBlock2D and its like alone, are")
    for key, value in (FIXED | SKIP if skip else FIXED).items():
        given = told.get(key, value)
        if given != value and not (isinstance(value, float) and math.isclose(given, value, rel_tol=1e-6)):
            blocks = f"{skip}DownBlock2D"
            raise ForeignError(f"{path}: {key} {given!r} is in no network of ours with {blocks}; {value!r} is")
    attends = [name.startswith("Attn") for name in downs]
    if attends != [name.startswith("Attn") for name in ups][::-1] or len(downs) != len(counts):
        raise ForeignError(f"{path}: its up_block_types do not mirror its down_block_types, as ours do")
    size = told["sample_size"]
    if size is None:
        raise ForeignError(f"{path}: its config lacks sample_size; add the side of its images, in pixels")
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)

    multiples = [count / counts[0] for count in counts]
    options = {
        "shape": (told["in_channels"], *sides),
        "channels": counts[0],
        "channel_mult": tuple(int(m) if m == int(m) else m for m in multiples),
        "num_blocks": told["layers_per_block"],
        "attention": tuple(max(sides) // 2**level for level, attending in enumerate(attends) if attending),
        "dropout": float(told["dropout"]),
        "num_classes": told["num_class_embeds"] or 0,
        "norm_eps": told["norm_eps"],
        "head_channels": told["attention_head_dim"] or 0,
    }
    return skip_architecture(told, options, path) if skip else plain_architecture(told, options, path)


def skip_architecture(
    told: dict[str, Any], options: dict[str, Any], path: Path
) -> tuple[type[nn.Module], dict[str, Any]]:
    """As ``architecture``, for blocks of the kind SkipDownBlock2D and what these have in common with others."""
    counts, groups = told["block_out_channels"], told["norm_num_groups"]
    if groups is not None and any(groups != min(count // 4, 32) for count in (counts[0], counts[-1])):
        raise ForeignError(f"{path}: norm_num_groups {groups} is in no network of ours with these blocks; null is")
    narrow = [
        count
        for count, name in zip(counts, told["down_block_types"])
        if name.startswith("Attn") and count < NORMALISED_ALIKE
    ]
    if narrow:
        theirs = f"{told['down_block_types'][counts.index(narrow[0])]} of {narrow[0]} channels"
        raise ForeignError(f"{path}: {theirs} is in no network of ours; {NORMALISED_ALIKE} channels or more are")
    if any(count % counts[0] for count in counts):
        raise ForeignError(f"{path}: broken multiples of {counts[0]} channels are not in our ncsnpp")
    return NCSNpp, options | SKIP_OPTIONS | {"centred": not told["center_input_sample"]}


def plain_architecture(
    told: dict[str, Any], options: dict[str, Any], path: Path
) -> tuple[type[nn.Module], dict[str, Any]]:
    """As ``architecture``, for blocks of the kind DownBlock2D and what these have in common with others."""
    counts, learned = told["block_out_channels"], told["out_channels"] == 2 * told["in_channels"]
    embedding = (told["flip_sin_to_cos"], told["freq_shift"], told["downsample_padding"])
    if embedding not in EMBEDDINGS:
        keys = "flip_sin_to_cos, freq_shift, downsample_padding"
        raise ForeignError(f"{path}: {keys} {embedding} are in no network of ours; {list(EMBEDDINGS)} are")
    options |= {"norm_groups": told["norm_num_groups"]}
    if EMBEDDINGS[embedding] == "ddpm":
        if learned or any(count % counts[0] for count in counts):
            raise ForeignError(f"{path}: twice the channels, or broken multiples of {counts[0]}, are not in our ddpm")
        return DDPM, options | {"centred": not told["center_input_sample"]}
    if told["center_input_sample"]:
        raise ForeignError(f"{path}: center_input_sample is not in our adm")
    if not options["head_channels"]:
        options |= {"heads": 1, "head_channels": 64}
    options |= {"scale_shift": False, "resample_blocks": False, "norm_group": 1, "learned_variance": learned}
    return ADM, options


def process(folder: Path) -> dict[str, dict[str, Any]]:
    """The sections sde, denoiser and codec, from the config of a scheduler; of ScoreSdeVeScheduler sample, too.

    ScoreSdeVePipeline makes images of numbers from 0 to 1, by the sampler pc; DDPMPipeline of those from -1 to 1.

    Raises: ForeignError for a schedule that is no process of ours.
    """
    path = folder / "scheduler_config.json"
    told = load(path) if path.is_file() else {}
    name = told.get("_class_name", "DDPMScheduler")
    if name == "ScoreSdeVeScheduler":
        sde = {"name": "vesde", "sigma_min": told.get("sigma_min", 0.01), "sigma_max": told.get("sigma_max", 1348.0)}
        sde["t_min"] = told.get("sampling_eps", 1e-5)
        denoiser = {"parameterization": "score", "sigma_data": 0.25, "c_noise": "sigma", "input": "raw"}
        moves = {"snr": told.get("snr", 0.15), "corrector_steps": told.get("correct_steps", 1)}
        return {"sde": sde, "denoiser": denoiser, "codec": {"name": "pixels", "low": 0.0}, "sample": moves}
    schedule, prediction = told.get("beta_schedule", "linear"), told.get("prediction_type", "epsilon")
    if "beta_schedule" not in told and name not in ("DDPMScheduler", "DDIMScheduler"):
        raise ForeignError(f"{path}: {name} names no beta_schedule; those of DDPMScheduler and its like can be read")
    if told.get("trained_betas") is not None or told.get("rescale_betas_zero_snr"):
        raise ForeignError(f"{path}: trained_betas and rescale_betas_zero_snr are no process of ours; linear betas are")
    if prediction not in PREDICTIONS:
        raise ForeignError(f"{path}: unknown prediction_type {prediction!r}; known: {', '.join(PREDICTIONS)}")
    num_levels = told.get("num_train_timesteps", 1000)
    if schedule == "linear":
        betas = {"beta_min": told.get("beta_start", 1e-4), "beta_max": told.get("beta_end", 0.02)}
        sde = {"name": "ddpm", "num_levels": num_levels, **betas}
    elif schedule == "squaredcos_cap_v2":
        sde = {"name": "iddpm", "num_levels": num_levels, "offset": 0.008}
    else:
        raise ForeignError(
            f"{path}: beta_schedule {schedule!r} is no process of ours; linear and squaredcos_cap_v2 are"
        )
    denoiser = {"parameterization": PREDICTIONS[prediction], "sigma_data": 0.5, "c_noise": "level", "input": "raw"}
    return {"sde": sde, "denoiser": denoiser, "codec": {"name": "pixels"}}


def ends(first: str, second: str) -> dict[str, str]:
    """Module of ours -> module of theirs: stem, embeddings, middle; the linear layers are called so in ours."""
    modules = {first: "time_embedding.linear_1", second: "time_embedding.linear_2", "stem": "conv_in"}
    return modules | {"conditioning.label.table": "class_embedding"}


def stages(ours: str, entries: nn.ModuleList, theirs: str) -> dict[str, str]:
    """Module of ours -> module of theirs, of blocks and the attention behind them, which they count by itself."""
    modules, attending = dict[str, str](), 0
    for i, stage in enumerate(entries):
        modules |= DIALECT.stage(f"{ours}.{i}", stage, f"{theirs}.resnets.{i}", f"{theirs}.attentions.{attending}")
        attending += isinstance(stage.attention, SelfAttention)
    return modules


def ncsnpp_modules(network: NCSNpp) -> dict[str, str]:
    """Module of ours -> module of theirs; ``ddpm`` is such a network."""
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
    """Module of ours -> module of theirs."""
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
    """Names of the tensors around each attention: queries, keys and values are three of theirs, of two generations."""
    found: dict[str, str | tuple[str, ...]] = {}
    for name, module in network.named_modules():
        if isinstance(module, SelfAttention):
            theirs = modules[f"{name}.norm"].removesuffix(".group_norm")
            old = f"{theirs}.query.weight" in tensors
            for leaf in ("weight", "bias"):
                found[f"{name}.qkv.{leaf}"] = tuple(f"{theirs}.{part}.{leaf}" for part in (OLD_QKV if old else QKV))
                found[f"{name}.output.{leaf}"] = f"{theirs}.{OLD_OUTPUT if old else OUTPUT}.{leaf}"
    return found
