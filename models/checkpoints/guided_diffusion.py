"""Reader of guided diffusion's and improved diffusion's weights, U-Nets and noisy classifiers.

The files are plain state dicts. Channels, levels, labels, positions of attention and pools follow from the shapes of
the tensors. Heads, the order of queries, keys and values, the schedule and the side of the images do not: for published
files, a table by file name has them; for others, a JSON file or the command's flags next to the weights must.
"""

import json
import re
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from score_sde.models.adm import ADM, ADMClassifier, ADMEncoder, Strided
from score_sde.models.blocks import Block, SelfAttention
from score_sde.models.checkpoints.foreign import Foreign
from score_sde.models.checkpoints.parts import (
    Dialect,
    Tensors,
    as_it_is,
    head_first,
    linear_attention,
    names,
    with_null,
)
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.layers import all_of
from score_sde.storage.reading import read_text

DIALECT = Dialect(
    block={
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "affine": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "shortcut": "skip_connection",
    },
    attention={"norm": "norm", "qkv": "qkv", "output": "proj_out"},
)

LARGE = {"num_head_channels": 64}
IMPROVED = {"num_heads": 4, "noise_schedule": "cosine", "diffusion_steps": 4000, "rescale_timesteps": True}
BEDROOM = {"num_heads": 1, "image_size": 256}

PUBLISHED: dict[str, dict[str, Any]] = {
    "64x64_diffusion": LARGE
    | {"image_size": 64, "use_new_attention_order": True, "noise_schedule": "cosine", "dropout": 0.1},
    "128x128_diffusion": {"image_size": 128, "num_heads": 4},
    "256x256_diffusion": LARGE | {"image_size": 256},
    "256x256_diffusion_uncond": LARGE | {"image_size": 256},
    "512x512_diffusion": LARGE | {"image_size": 512},
    "lsun_bedroom": LARGE | {"image_size": 256, "dropout": 0.1},
    "lsun_cat": LARGE | {"image_size": 256, "dropout": 0.1},
    "lsun_horse": LARGE | {"image_size": 256, "dropout": 0.1},
    "lsun_horse_nodropout": LARGE | {"image_size": 256},
    "64x64_classifier": {"noise_schedule": "cosine"},
    "128x128_classifier": {},
    "256x256_classifier": {},
    "512x512_classifier": {},
    "imagenet64_uncond_100M_1500K": IMPROVED | {"image_size": 64},
    "imagenet64_uncond_vlb_100M_1500K": IMPROVED | {"image_size": 64},
    "imagenet64_cond_270M_250K": IMPROVED | {"image_size": 64, "rescale_timesteps": False},
    "cifar10_uncond_50M_500K": IMPROVED | {"image_size": 32, "dropout": 0.3},
    "cifar10_uncond_vlb_50M_500K": IMPROVED | {"image_size": 32, "dropout": 0.3},
    "lsun_uncond_100M_1200K_bs128": BEDROOM,
    "lsun_uncond_100M_2400K_bs64": BEDROOM,
}
"""Name of a published file -> the flags of its command that its tensors do not determine."""


def read(path: str | PathLike[str], weights: str = "ema") -> Foreign:
    """Reads weights of guided diffusion or improved diffusion.

    Class-conditional networks were trained without a null label; it is set to zeros and is untrained.

    Args:
        path: path of the state dict; the training code writes averaged and raw weights to separate files.
        weights: ``ema`` or ``raw``, without effect: a file has one set of weights.
    Raises: ForeignError for a file that cannot be read safely or has another format, missing or unexpected tensors, and
        an unknown file name without flags.
    Reference: Dhariwal, Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021. arXiv:2105.05233
        Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021. arXiv:2102.09672
    """
    tensors = Tensors(path, "time_embed.0.weight", "guided diffusion", weights)
    flags = find_flags(Path(path))
    classifies = not any(name.startswith("output_blocks.") for name in tensors)
    options, num_blocks = architecture(tensors, flags, classifies)
    kind = ADMClassifier if classifies else ADM

    def arrange(network: ADMEncoder) -> dict[str, str]:
        modules = encoder_modules(network)
        if isinstance(network, ADM):
            modules |= decoder_modules(network, num_blocks)
        else:
            modules |= classifier_modules(options["pool"])
        order = as_it_is if flags.get("use_new_attention_order") else head_first
        linear_attention(network, modules, tensors, order)
        if "label_emb.weight" in tensors:
            tensors["label_emb.weight"] = with_null(tensors["label_emb.weight"])
        for name in ("out.2.qkv_proj.weight", "out.2.c_proj.weight", "out.3.weight"):
            if classifies and name in tensors:
                tensors[name] = tensors[name].flatten(1)
        if "out.2.positional_embedding" in tensors:
            tensors["out.2.positional_embedding"] = tensors["out.2.positional_embedding"].T
        return names(network, modules)

    placed = tensors.placed(kind, options, arrange)
    shape = options.pop("shape")
    config = {
        "sde": schedule(flags),
        "network": {"name": "adm_classifier" if classifies else "adm", **options},
        "denoiser": denoiser(flags, path),
        "codec": {"name": "pixels"},
    }
    if classifies:
        config["loss"] = {"objective": {"name": "classification"}}
    return Foreign("guided_diffusion", config, placed, shape, wrapper=tensors.wrapper, choice=tensors.choice)


def find_flags(path: Path) -> dict[str, Any]:
    """The flags of the training command: from a file next to the weights, or from the table of published files.

    The file is NAME.json, config.json, NAME.flags or flags.txt; JSON may have the arguments of the network under
    ``kwargs``.

    Raises: ForeignError if there are no flags, or they cannot be read.
    """
    for sidecar in (path.with_suffix(".json"), path.with_name("config.json")):
        if sidecar.is_file():
            try:
                settings = json.loads(read_text(sidecar))
                return dict(settings.get("kwargs", settings))
            except (ValueError, TypeError, AttributeError):
                raise ForeignError(
                    f'{sidecar} has no JSON object of flags; write one such as {{"num_heads": 4}}'
                ) from None
    for sidecar in (path.with_suffix(".flags"), path.with_name("flags.txt")):
        if sidecar.is_file():
            words = re.findall(r"--(\w+)[ =]+(\S+)", read_text(sidecar).replace('"', " "))
            return {name: literal(value) for name, value in words}
    if path.stem in PUBLISHED:
        return PUBLISHED[path.stem]
    raise ForeignError(
        f"{path} does not contain its number of heads and its schedule; write the flags of its command to "
        f"{path.with_suffix('.flags').name} or {path.with_suffix('.json').name} in the same folder"
    )


def literal(value: str) -> Any:
    """The value of a word on a command line: a number, a bool, or the word itself."""
    try:
        return {"True": True, "False": False}.get(value) if value in ("True", "False") else json.loads(value)
    except ValueError:
        return value


def architecture(tensors: Tensors, flags: dict[str, Any], classifies: bool) -> tuple[dict[str, Any], int]:
    """Options of the network, and the number of blocks per level.

    Raises: ForeignError if shapes and flags do not determine them.
    """
    width, channels = tensors["time_embed.0.weight"].shape
    stem = tensors["input_blocks.0.0.weight"]
    numbers = {int(name.split(".")[1]) for name in tensors if name.startswith("input_blocks.")}
    total = len(numbers)
    if numbers != set(range(total)):
        raise ForeignError(f"{tensors.path}: the numbers of its input_blocks have gaps; download it again")
    strided = [name for name in tensors if re.fullmatch(r"input_blocks\.\d+\.0\.op\.weight", name)]
    ups = {name.split(".")[1] for name in tensors if re.match(r"output_blocks\.\d+\.[12]\.(in_layers|conv)\.", name)}
    if classifies and not strided:
        levels = count_levels(tensors, total)
    else:
        levels = 1 + (len(strided) if classifies else len(ups))
    if total % levels:
        raise ForeignError(f"{tensors.path}: {total} encoder blocks do not form {levels} levels; download it again")
    each = total // levels

    first = [f"input_blocks.{level * each + 1}" for level in range(levels)]
    counts = [len(tensors[f"{name}.0.out_layers.3.weight"]) for name in first]
    coarsest = 2 ** (levels - 1)
    if "out.2.positional_embedding" in tensors:
        side = round((tensors["out.2.positional_embedding"].shape[1] - 1) ** 0.5) * coarsest
    elif "image_size" in flags:
        side = flags["image_size"]
    else:
        raise ForeignError(f"{tensors.path}: its flags lack image_size, the side of its images in pixels")
    options = {
        "shape": (stem.shape[1], side, side),
        "channels": channels,
        "channel_mult": tuple(whole(count / channels) for count in counts),
        "num_blocks": each - 1,
        "attention": tuple(side // 2**k for k, name in enumerate(first) if f"{name}.1.qkv.weight" in tensors),
        "dropout": 0.0 if classifies else float(flags.get("dropout", 0.0)),
        "scale_shift": len(tensors["input_blocks.1.0.emb_layers.1.weight"]) == 2 * counts[0],
        "resample_blocks": not strided,
        "norm_group": 1,
    }
    by_script = classifies and (any(name.startswith("classifier_") for name in flags) or "num_heads" not in flags)
    head_channels = flags.get("num_head_channels", 64 if by_script else -1)
    options |= {"head_channels": head_channels} if head_channels > 0 else {"heads": flags.get("num_heads", 4)}
    if classifies:
        pool = next(pool for pool, output in OUTPUTS.items() if pool == "spatial" or output.mark in tensors)
        last = tensors[f"{OUTPUTS[pool].modules['output']}.weight"]
        return options | {"num_classes": len(last), "pool": pool}, each - 1
    options["learned_variance"] = len(tensors["out.2.weight"]) == 2 * stem.shape[1]
    options["num_classes"] = len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else 0
    options["embedding_mult"] = width // channels
    return options, each - 1


def whole(number: float) -> float | int:
    """The number as an int if it is whole."""
    return int(number) if number == int(number) else number


def count_levels(tensors: Tensors, total: int) -> int:
    """The only number of levels that matches all shapes, for encoders whose downsampling blocks have common shapes.

    A downsampling block keeps the channels and has no attention; within a level all blocks have attention or none; only
    the first block of a level changes the channels.

    Raises: ForeignError if no number matches, or several do.
    """
    attends = [f"input_blocks.{i}.1.qkv.weight" in tensors for i in range(total)]
    changes = [f"input_blocks.{i}.0.skip_connection.weight" in tensors for i in range(total)]

    def suits(each: int) -> bool:
        halving, first = range(each, total, each), range(1, total, each)
        levels = [set(attends[i : i + each - 1]) for i in first]
        return (
            not any(attends[i] or changes[i] for i in halving)
            and all(len(level) == 1 for level in levels)
            and not any(change for i, change in enumerate(changes) if i not in first)
        )

    found = [total // each for each in range(2, total + 1) if total % each == 0 and suits(each)]
    if len(found) != 1:
        raise ForeignError(
            f"{tensors.path}: its shapes match {found or 'no'} levels, unlike those of the published encoders"
        )
    return found[0]


def encoder_modules(network: ADMEncoder) -> dict[str, str]:
    """Module -> foreign module, for conditioning, encoder and middle."""
    modules = {f"conditioning.layers.{i}": f"time_embed.{i}" for i in (0, 2)}
    modules |= {"conditioning.label.table": "label_emb", "stem": "input_blocks.0.0"}
    for i, module in enumerate(network.encoder):
        ours, theirs = f"encoder.{i}", f"input_blocks.{i + 1}"
        if isinstance(module, Strided):
            modules[f"{ours}.conv"] = f"{theirs}.0.op"
        else:
            modules |= DIALECT.stage(ours, module, f"{theirs}.0", f"{theirs}.1")
    modules |= DIALECT.stage("middle.0", network.middle[0], "middle_block.0", "middle_block.1")
    return modules | DIALECT.stage("middle.1", network.middle[1], "middle_block.2", "")


def decoder_modules(network: ADM, num_blocks: int) -> dict[str, str]:
    """Module -> foreign module, for decoder and output."""
    modules = {"output.0": "out.0", "output.2": "out.2"}
    for level, stages in enumerate(all_of(network.decoder, nn.ModuleList)):
        for i, stage in enumerate(stages):
            theirs = f"output_blocks.{level * (num_blocks + 1) + i}"
            modules |= DIALECT.stage(f"decoder.{level}.{i}", stage, f"{theirs}.0", f"{theirs}.1")
        if level < len(network.ups):
            up, last = network.ups[level], f"{theirs}.{1 + isinstance(stage.attention, SelfAttention)}"
            if isinstance(up, Block):
                modules |= DIALECT.stage(f"ups.{level}", up, last, "")
            else:
                modules[f"ups.{level}.conv"] = f"{last}.conv"
    return modules


class Output(NamedTuple):
    """Pool and last layer of a classifier.

    Args:
        mark: name of a tensor that identifies the pool, given that the entries above it in the table do not match.
        modules: module -> foreign module.
    """

    mark: str
    modules: dict[str, str]


OUTPUTS = {
    "attention": Output(
        "out.2.positional_embedding", {"pool.norm": "out.0", "pool.qkv": "out.2.qkv_proj", "output": "out.2.c_proj"}
    ),
    "spatial_v2": Output("out.1.weight", {"pool.hidden": "out.0", "pool.norm": "out.1", "output": "out.3"}),
    "adaptive": Output("out.3.weight", {"pool.norm": "out.0", "output": "out.3"}),
    "spatial": Output("", {"pool.hidden": "out.0", "output": "out.2"}),
}
"""Keys of ``POOLS`` -> pool and last layer."""


def classifier_modules(pool: str) -> dict[str, str]:
    """Module -> foreign module, for pool and last layer of a classifier."""
    return {**OUTPUTS[pool].modules, "pool.positions": "out.2.positional_embedding"}


def schedule(flags: dict[str, Any]) -> dict[str, Any]:
    """The discrete-time process; the linear schedule scales beta with the number of levels to keep the final noise."""
    num_levels = flags.get("diffusion_steps", 1000)
    known = ("linear", "cosine")
    if flags.get("noise_schedule", "linear") not in known:
        raise ForeignError(f"unknown noise_schedule {flags['noise_schedule']!r}; known: {', '.join(known)}")
    if flags.get("noise_schedule") == "cosine":
        return {"name": "iddpm", "num_levels": num_levels}
    return {"name": "ddpm", "num_levels": num_levels, "beta_min": 0.1 / num_levels, "beta_max": 20 / num_levels}


def denoiser(flags: dict[str, Any], path: str | PathLike[str]) -> dict[str, Any]:
    """The config section denoiser: parameterization and noise conditioning.

    Raises: ForeignError if the number of levels is not 1000 and the flags lack the unit of the noise conditioning.
    """
    level, rescaled = "level", flags.get("rescale_timesteps")
    if flags.get("diffusion_steps", 1000) != 1000:
        if rescaled is None:
            raise ForeignError(f"{path}: the flags lack rescale_timesteps, True by default in improved diffusion alone")
        level = "level_of_1000" if rescaled else "level"
    parameterization = "x0" if flags.get("predict_xstart") else "eps"
    return {"parameterization": parameterization, "sigma_data": 0.5, "c_noise": level, "input": "raw"}
