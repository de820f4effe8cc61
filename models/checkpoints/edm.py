"""Reader of EDM's weights: DDPM++, NCSN++ and ADM with each of the four preconditionings.

Names and shapes of the tensors determine the network. A JSON file next to the weights gives the preconditioning, under
``precond`` or in the form of EDM's training_options.json; for published files, the file name does.
"""

import json
import re
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.models.adm import ADM
from score_sde.models.checkpoints.foreign import Foreign
from score_sde.models.checkpoints.parts import Dialect, Tensors, linear_attention, names, value_fastest, with_null
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.layers import all_of
from score_sde.models.song import Song
from score_sde.storage.reading import read_text

DIALECT = Dialect(
    block={"affine": "affine"}
    | {"norm1": "norm0", "conv1": "conv0", "norm2": "norm1", "conv2": "conv1", "shortcut": "skip"},
    attention={"norm": "norm2", "qkv": "qkv", "output": "proj"},
)

RECIPE = (
    "where you trust it, run in EDM's folder: python -c \"import json, pickle, sys, torch; f = sys.argv[1]; "
    "n = pickle.load(open(f, 'rb'))['ema']; torch.save(n.state_dict(), f[:-3] + 'pt'); "
    "json.dump({'precond': type(n).__name__}, open(f[:-3] + 'json', 'w'))\" "
)
"""Command that converts a pickle with code to a state dict and the name of its preconditioning; the path follows."""

PRECONDITIONINGS: dict[str, dict[str, dict[str, Any]]] = {
    "VPPrecond": {
        "sde": {"name": "vpsde", "beta_min": 0.1, "beta_max": 20.0, "t_min": 1e-5},
        "denoiser": {"parameterization": "eps", "sigma_data": 1.0, "c_noise": "time", "input": "unit"},
    },
    "VEPrecond": {
        "sde": {"name": "vesde", "sigma_min": 0.02, "sigma_max": 100.0, "t_min": 1e-5},
        "denoiser": {
            "parameterization": "scaled_score",
            "sigma_data": 0.5,
            "c_noise": "log_half_sigma",
            "input": "raw",
        },
    },
    "iDDPMPrecond": {
        "sde": {"name": "iddpm", "num_levels": 1000, "offset": 0.008},
        "denoiser": {"parameterization": "eps", "sigma_data": 1.0, "c_noise": "nearest_level", "input": "unit"},
    },
    "EDMPrecond": {
        "sde": {"name": "edm", "sigma_min": 0.002, "sigma_max": 80.0},
        "denoiser": {"parameterization": "edm", "sigma_data": 0.5, "c_noise": "edm", "input": "unit"},
    },
}
"""Preconditioning class of EDM -> config sections sde and denoiser. Karras et al., 2022, table 1."""

ARGUMENTS = {
    "VPPrecond": {"beta_min": ("sde", "beta_min"), "epsilon_t": ("sde", "t_min")},
    "VEPrecond": {"sigma_min": ("sde", "sigma_min"), "sigma_max": ("sde", "sigma_max")},
    "iDDPMPrecond": {"C_2": ("sde", "offset")},
    "EDMPrecond": {"sigma_data": ("denoiser", "sigma_data")},
}
"""Argument of a preconditioning class -> section and key of the config."""


def read(path: str | PathLike[str], weights: str = "ema") -> Foreign:
    """Reads EDM's weights.

    EDM's linear layer on one-hot labels becomes a table that includes the null label.

    Args:
        path: path of the state dict, from ``torch.save`` or safetensors; EDM's own pickles contain code.
        weights: ``ema`` or ``raw``, without effect: a file has one set of weights, EDM's averages.
    Raises: ForeignError for a pickle (the message contains a recipe), a file that cannot be read safely or has another
        format, missing or unexpected tensors, and an unknown preconditioning.
    Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, table 1, 8.
        arXiv:2206.00364
    """
    path = Path(path)
    if path.suffix == ".pkl" and path.is_file():
        raise ForeignError(f"{path} is a pickle with code, so it is refused; {RECIPE}{path.name}")
    tensors = Tensors(path, "model.map_layer0.weight", "EDM", weights)
    precond, settings = find_preconditioning(path, tensors)
    prepared = {section: dict(entries) for section, entries in PRECONDITIONINGS[precond].items()}
    for name, (section, key) in ARGUMENTS[precond].items():
        if name in settings:
            prepared[section][key] = settings[name]
    if "beta_d" in settings and precond == "VPPrecond":
        prepared["sde"]["beta_max"] = prepared["sde"]["beta_min"] + settings["beta_d"]
    if precond == "iDDPMPrecond":
        prepared["sde"]["num_levels"] = check_levels(tensors, prepared["sde"]["offset"])

    kind, options = architecture(tensors)
    resampled = check_filters(tensors, options.get("fir", ()))

    def arrange(network: ADM | Song) -> dict[str, str]:
        sides = resolutions(tensors)
        modules = song_modules(network, sides) if isinstance(network, Song) else adm_modules(network, sides)
        linear_attention(network, modules, tensors, value_fastest)
        if "model.map_label.weight" in tensors:
            arrange_labels(tensors)
        return names(network, modules)

    for name in resampled:
        del tensors[name]
    placed = tensors.placed(kind, options, arrange)
    shape = options.pop("shape")
    network = {"name": "song" if kind is Song else "adm", **options}
    config = {**prepared, "network": network, "codec": {"name": "pixels"}}
    return Foreign("edm", config, placed, shape, wrapper=tensors.wrapper, choice=tensors.choice)


def find_preconditioning(path: Path, tensors: Tensors) -> tuple[str, dict[str, float]]:
    """The name of the preconditioning class, and its known arguments.

    They are read from NAME.json, config.json or training_options.json; a buffer ``u`` implies iDDPMPrecond.

    Raises: ForeignError if the preconditioning cannot be determined.
    """
    for sidecar in (path.with_suffix(".json"), path.with_name("config.json"), path.with_name("training_options.json")):
        if sidecar.is_file():
            try:
                settings = json.loads(read_text(sidecar))
                settings = settings.get("network_kwargs", settings)
                precond = (settings.get("precond") or settings["class_name"]).rpartition(".")[2]
                arguments = {name: value for name, value in settings.items() if isinstance(value, float)}
                arguments |= settings.get("attributes", {})
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ForeignError(f'{sidecar} has no precond; write {{"precond": "EDMPrecond"}} or another') from None
            if precond not in PRECONDITIONINGS:
                raise ForeignError(f"{sidecar}: unknown precond {precond!r}; known: {', '.join(PRECONDITIONINGS)}")
            return precond, arguments
    if "u" in tensors:
        return "iDDPMPrecond", {}
    if path.stem.startswith("edm-"):
        return "EDMPrecond", {}
    published = re.fullmatch(r"baseline-.*-(vp|ve)", path.stem)
    if published:
        return {"vp": "VPPrecond", "ve": "VEPrecond"}[published[1]], {}
    raise ForeignError(
        f'{path} does not contain its preconditioning; write {{"precond": "EDMPrecond"}}, VPPrecond, VEPrecond or '
        f"iDDPMPrecond, to {path.with_suffix('.json').name} in the same folder"
    )


def check_levels(tensors: Tensors, offset: float) -> int:
    """The number of noise levels, after a check that they are improved DDPM's; removes their buffer ``u``.

        u_{j-1}^2 + 1 = (u_j^2 + 1) / max(abar(j - 1) / abar(j), 1/1000),    abar(j) = sin(pi j / (2 N (1 + offset)))^2

    Raises: ForeignError if they differ from this formula.
    """
    found = tensors.pop("u") if "u" in tensors else tensors["u"]
    num_levels = len(found) - 1
    abar = (
        torch.sin(torch.pi / 2 * torch.arange(num_levels + 1, dtype=torch.float64) / (num_levels * (1 + offset))) ** 2
    )
    growth = torch.log((abar[:-1] / abar[1:]).clamp(min=1e-3)).flip(0)
    expected = torch.cat([torch.zeros(1).double(), torch.expm1(-growth.cumsum(0)).sqrt()]).flip(0)
    if not torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-6):
        raise ForeignError(f"{tensors.path}: its noise levels u differ from the cosine schedule with C_2 {offset}")
    return num_levels


def resolutions(tensors: Tensors) -> list[int]:
    """Resolutions of the levels, read from the names of the tensors, finest first."""
    found = {int(match[1]) for name in tensors if (match := re.match(r"model\.enc\.(\d+)x\d+_", name))}
    return sorted(found, reverse=True)


def architecture(tensors: Tensors) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of the network, and its options."""
    sides = resolutions(tensors)
    if not sides:
        raise ForeignError(f"{tensors.path} is not a complete network: missing model.enc; download it again")
    width, features = tensors["model.map_layer0.weight"].shape
    stem = tensors[f"model.enc.{sides[0]}x{sides[0]}_conv.weight"]
    song = f"model.dec.{sides[0]}x{sides[0]}_aux_conv.weight" in tensors
    channels = len(stem) if song else features
    first = f"model.enc.{sides[0]}x{sides[0]}_block"
    counts = [len(tensors[f"model.enc.{side}x{side}_block0.conv1.weight"]) for side in sides]
    last = tensors[f"model.dec.{sides[0]}x{sides[0]}_aux_conv.weight" if song else "model.out_conv.weight"]
    label, augment = ("model.map_label.weight", "model.map_augment.weight")
    options = {
        "shape": (stem.shape[1], sides[0], sides[0]),
        "channels": channels,
        "channel_mult": tuple(n // channels if n % channels == 0 else n / channels for n in counts),
        "num_blocks": sum(name.startswith(first) and name.endswith("conv1.weight") for name in tensors),
        "attention": tuple(side for side in sides if f"model.enc.{side}x{side}_block0.qkv.weight" in tensors),
        "dropout": 0.0,
        "num_classes": tensors[label].shape[1] if label in tensors else 0,
        "learned_variance": len(last) == 2 * stem.shape[1],
        "embedding_mult": width // channels,
        "augment_dim": tensors[augment].shape[1] if augment in tensors else 0,
    }
    if not song:
        return ADM, options | {"norm_group": 4, "head_channels": 64}
    residual, skip = (any(f"_aux_{kind}.weight" in name for name in tensors) for kind in ("residual", "skip"))
    writers = sum(name.startswith("model.dec.") and name.endswith("_aux_conv.weight") for name in tensors)
    filters = [tensor for name, tensor in tensors.items() if name.endswith(".resample_filter")]
    return Song, options | {
        "embedding": "fourier" if "model.map_noise.freqs" in tensors else "positional",
        "noise_mult": features // channels,
        "encoder": "residual" if residual else "skip" if skip else "standard",
        "decoder": "skip" if writers > 1 else "standard",
        "fir": taps(filters[0]) if filters else (),
    }


def taps(kernel: Tensor) -> tuple[float, ...]:
    """The 1D filter f of a kernel (1, 1, k, k) = f f^T, scaled to a first entry of 1; () for (1, 1)."""
    row = kernel.reshape(kernel.shape[-2:]).sum(0)
    found = tuple((row / row[0]).round(decimals=4).tolist())
    return () if found == (1.0, 1.0) else found


def check_filters(tensors: Tensors, fir: tuple[float, ...]) -> list[str]:
    """The names of the filters, after a check that all of them are the network's.

    Raises: ForeignError naming a filter that differs.
    """
    found, row = [name for name in tensors if name.endswith(".resample_filter")], torch.tensor(fir or (1.0, 1.0))
    expected = torch.outer(row, row) / row.sum() ** 2
    for name in found:
        if tensors[name].shape[-2:] != expected.shape or not torch.allclose(tensors[name], expected, atol=1e-6):
            raise ForeignError(f"{tensors.path}: {name} is another filter than the network's; download it again")
    return found


def arrange_labels(tensors: Tensors) -> None:
    """Converts the linear layer on one-hot labels to a table, in place; DDPM++ scales labels and adds a bias."""
    weight, bias = tensors["model.map_label.weight"].T, tensors.pop("model.map_label.bias", None)
    rows = weight if bias is None else weight * len(weight) ** 0.5 + bias
    tensors["model.map_label.weight"] = with_null(rows, bias)


def conditioning_modules() -> dict[str, str]:
    """Module -> foreign module, for the layers of the conditioning."""
    found = {"conditioning.layers.0": "model.map_layer0", "conditioning.layers.2": "model.map_layer1"}
    found |= {"conditioning.label.table": "model.map_label", "conditioning.augment": "model.map_augment"}
    return found | {"conditioning.features.frequencies": "model.map_noise.freqs"}


def stage_modules(ours: str, module: nn.Module, theirs: str) -> dict[str, str]:
    """Module -> foreign module, for a block and its attention, which are a single module in EDM."""
    return DIALECT.stage(ours, module, theirs, theirs)


def adm_modules(network: ADM, sides: list[int]) -> dict[str, str]:
    """Module -> foreign module."""
    per_level = len(network.encoder) // len(sides) + 1
    modules = conditioning_modules() | {"output.0": "model.out_norm", "output.2": "model.out_conv"}
    modules["stem"] = f"model.enc.{sides[0]}x{sides[0]}_conv"
    for i, module in enumerate(network.encoder):
        level, block = divmod(i + 1, per_level)
        at = f"model.enc.{sides[level]}x{sides[level]}"
        modules |= stage_modules(f"encoder.{i}", module, f"{at}_block{block - 1}" if block else f"{at}_down")
    return modules | decoder_modules(network, sides)


def song_modules(network: Song, sides: list[int]) -> dict[str, str]:
    """Module -> foreign module."""
    modules = conditioning_modules() | {"stem": f"model.enc.{sides[0]}x{sides[0]}_conv"}
    for level, (side, stages) in enumerate(zip(sides, all_of(network.encoder, nn.ModuleList), strict=True)):
        at = f"model.enc.{side}x{side}"
        if level:
            modules |= stage_modules(f"downs.{level - 1}", network.downs[level - 1], f"{at}_down")
            reader, name = ("readers.{}.conv", "residual") if network.residual else ("readers.{}", "skip")
            modules[reader.format(level - 1)] = f"{at}_aux_{name}"
        for i, stage in enumerate(stages):
            modules |= stage_modules(f"encoder.{level}.{i}", stage, f"{at}_block{i}")
    coarsest_first = sides[::-1]
    for i, side in enumerate(coarsest_first[-len(network.writers) :]):
        modules |= {f"writers.{i}.{k}": f"model.dec.{side}x{side}_aux_{part}" for k, part in ((0, "norm"), (2, "conv"))}
    return modules | decoder_modules(network, sides)


def decoder_modules(network: ADM | Song, sides: list[int]) -> dict[str, str]:
    """Module -> foreign module, for the decoder and the middle, which belongs to the decoder in EDM."""
    modules: dict[str, str] = {}
    for i, stage in enumerate(network.middle):
        modules |= stage_modules(f"middle.{i}", stage, f"model.dec.{sides[-1]}x{sides[-1]}_in{i}")
    for level, (side, stages) in enumerate(zip(sides[::-1], all_of(network.decoder, nn.ModuleList), strict=True)):
        at = f"model.dec.{side}x{side}"
        if level:
            modules |= stage_modules(f"ups.{level - 1}", network.ups[level - 1], f"{at}_up")
        for i, stage in enumerate(stages):
            modules |= stage_modules(f"decoder.{level}.{i}", stage, f"{at}_block{i}")
    return modules
