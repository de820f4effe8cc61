"""Reader of score_sde_pytorch's checkpoints: weights, and configs, which are parsed without running them."""

import ast
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from score_sde.models.blocks import Block, SelfAttention
from score_sde.models.checkpoints import safe
from score_sde.models.checkpoints.foreign import Foreign, place, skeleton
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.checkpoints.wrappers import unwrap
from score_sde.models.ddpm import DDPM
from score_sde.models.embeddings import Fourier
from score_sde.models.layers import all_of
from score_sde.models.ncsn import ACTIVATIONS, NCSN, NCSNv2
from score_sde.models.ncsnpp import InputSkip, NCSNpp
from score_sde.models.resampling import Down, Up
from score_sde.storage.reading import read_text

NETWORKS = {
    "ddpm": ("ddpm", DDPM),
    "ncsnpp": ("ncsnpp", NCSNpp),
    "ncsn": ("ncsn", NCSN),
    "ncsnv2_64": ("ncsnv2", NCSNv2),
    "ncsnv2_128": ("ncsnv2", NCSNv2),
    "ncsnv2_256": ("ncsnv2", NCSNv2),
}
"""model.name -> name and class of the network."""

DEPTHS = {"ncsn": 4, "ncsnv2_64": 4, "ncsnv2_128": 5, "ncsnv2_256": 6}
"""Networks with a RefineNet -> number of encoder levels."""

OWN_NAMES = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 3 31 4 5"}
"""Depth -> numbers in the foreign names of the encoder levels; ``DECODER_NAMES`` has those of the decoder."""

DECODER_NAMES = OWN_NAMES | {6: "1 2 31 3 4 5"}

_DEFAULT: dict[str, dict[str, Any]] = {
    "training": {"continuous": True},
    "data": {"image_size": 32, "centered": False, "num_channels": 3},
    "model": {
        "sigma_min": 0.01,
        "sigma_max": 50,
        "num_scales": 1000,
        "beta_min": 0.1,
        "beta_max": 20.0,
        "dropout": 0.1,
        "embedding_type": "fourier",
    },
}

DEFAULTS = {
    "default_cifar10_configs": {},
    "default_celeba_configs": {"data.image_size": 64, "model.sigma_max": 90.0},
    "default_lsun_configs": {
        "data.image_size": 256,
        "model.sigma_max": 378,
        "model.num_scales": 2000,
        "model.dropout": 0.0,
    },
}
"""Module -> the values of its get_default_configs that differ from CIFAR-10's, for the keys read here."""


MARKS = ("all_modules.0.weight", "all_modules.0.W", "begin_conv.weight")
"""Tensors that identify the format: first layer of DDPM and NCSN++, random frequencies, first layer of NCSN."""


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether the dict of a file is a score_sde checkpoint, or a state dict of its networks in any wrapper."""
    return has_average(content) or unwrap(content, MARKS) is not None


def has_average(content: Mapping[str, Any]) -> bool:
    """Whether a file has the form of score_sde's training checkpoints, with the averages as a list without names."""
    return (
        isinstance(content.get("ema"), Mapping)
        and "shadow_params" in content["ema"]
        and isinstance(content.get("model"), Mapping)
    )


def read(path: str | Path, config: str | Path | None = None, weights: str = "ema") -> Foreign:
    """Reads a score_sde checkpoint.

    Args:
        path: path of the checkpoint.
        config: path of its config, ``.json`` or ``.py``; None for the only such file in the checkpoint's folder.
        weights: ``ema`` or ``raw``.
    Raises: ForeignError for a file that is missing, damaged, unsafe or of another format, a config that lacks a key,
        and tensors that are missing, unexpected or misshapen.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021. arXiv:2011.13456
    """
    path = Path(path)
    content = safe.read(path)
    if not recognises(content):
        has = ", ".join(str(name)[:80] for name in list(content)[:5])
        raise ForeignError(f"{path} is no checkpoint of score_sde, whose networks have all_modules: it has {has}")
    settings = Config.read(Path(config) if config else sidecar(path))
    sections = settings.sections()
    options = {key: value for key, value in sections["network"].items() if key != "name"}
    network = skeleton(NETWORKS[settings["model.name"]][1], shape=settings.shape, **options)
    found = unwrap({"model": content["model"]} if has_average(content) else content, MARKS, weights)
    theirs = tensors(content, found.tensors if found else {}, settings, weights, path)
    placed = place(network, theirs, dict(names(network, settings)), path)
    step, choice = content.get("step", 0), has_average(content) or (found is not None and found.choice)
    wrapper = "" if has_average(content) or found is None else found.wrapper
    return Foreign("score_sde", sections, placed, settings.shape, 256, int(step), wrapper, choice)


# --- weights ----------------------------------------------------------------------------------------------------------


def tensors(
    content: Mapping[str, Any], network: Mapping[str, Tensor], settings: "Config", weights: str, path: Path
) -> dict[str, Tensor]:
    """Foreign name -> tensor, for the network alone; matrices of NIN layers are transposed to (out, in).

    The averages cover the trainable parameters in order, without frequencies and buffers.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"unknown weights {weights!r}; known: ema, raw")
    theirs = dict(network)
    levels = theirs.pop("sigmas", None)
    if levels is not None:
        check_levels(levels, settings, path)
    if weights == "ema" and has_average(content):
        averaged = [name for name in theirs if not name.endswith(".W") or ".NIN_" in name]
        shadows = content["ema"]["shadow_params"]
        if len(shadows) != len(averaged):
            raise ForeignError(f"{path} averages {len(shadows)} of its {len(averaged)} parameters; take --weights raw")
        for name, shadow in zip(averaged, shadows, strict=True):
            if shadow.shape != theirs[name].shape:
                shapes = f"{tuple(shadow.shape)} for {tuple(theirs[name].shape)}"
                raise ForeignError(f"{path} has an average of another shape for {name}, {shapes}; take --weights raw")
        theirs |= dict(zip(averaged, shadows, strict=True))
    if not settings.conditional:  # it contains the noise embedding without using it
        kept = {name: tensor for name, tensor in theirs.items() if name != "all_modules.0.W"}
        theirs = {name: torch.zeros_like(t) if ".Dense_0." in name else t for name, t in kept.items()}
    return {name: turned(name, tensor, theirs) for name, tensor in theirs.items()}


def turned(name: str, tensor: Tensor, theirs: Mapping[str, Tensor]) -> Tensor:
    """A NIN layer's matrix as (out, in) or as a 1 x 1 convolution of a block's shortcut; other tensors unchanged."""
    entry, _, layer = name.partition(".NIN_")
    if not layer.endswith(".W"):
        return tensor
    return tensor.T[..., None, None] if f"{entry}.Conv_0.weight" in theirs else tensor.T


def check_levels(levels: Tensor, settings: "Config", path: Path) -> None:
    """Raises: ForeignError unless the noise levels in the file equal the config's."""
    first, last = math.log(settings["model.sigma_max"]), math.log(settings["model.sigma_min"])
    count = settings["model.num_scales"]
    if levels.shape != (count,):
        has = f"noise levels of shape {tuple(levels.shape)}"
        raise ForeignError(f"{path} has {has}, its config {count} of them; give the config it was trained with")
    expected = torch.linspace(first, last, count, dtype=torch.float64).exp()
    if not torch.allclose(levels.double(), expected, rtol=1e-4):
        has = f"{len(levels)} noise levels from {levels.max():g} to {levels.min():g}"
        means = f"{len(expected)} from {expected.max():g} to {expected.min():g}"
        raise ForeignError(f"{path} has {has}, its config {means}; give the config it was trained with")


UNITS = (Fourier, nn.Linear, nn.Conv2d, nn.GroupNorm, Block, SelfAttention, InputSkip, Down, Up)
"""Modules that correspond to one entry of score_sde's list ``all_modules``, in the same order."""


def names(network: nn.Module, settings: "Config") -> Iterator[tuple[str, str | tuple[str, ...]]]:
    """(name, foreign name) of every tensor; a tuple of foreign names is concatenated."""
    if isinstance(network, NCSN):
        depth = len(network.encoder)
        halving = {str(i) for i, blocks in enumerate(all_of(network.encoder, nn.ModuleList)) if blocks[0].halves}
        yield from ((name, refined(name, depth, halving)) for name in network.state_dict())
        return
    unused = not settings.conditional and settings.fourier  # unused frequencies come first
    for number, (prefix, unit) in enumerate(units(network), start=unused):
        for name in unit.state_dict():
            theirs, start = within(unit, name, settings.plain), f"all_modules.{number}."
            yield prefix + name, tuple(start + t for t in theirs) if isinstance(theirs, tuple) else start + theirs
    if not settings.conditional:
        yield "conditioning.label.table.weight", ()


def units(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The units of a network in the order of construction, with the prefixes of their names."""
    for name, child in module.named_children():
        if isinstance(child, UNITS):
            yield f"{prefix}{name}.", child
        else:
            yield from units(child, f"{prefix}{name}.")


def within(unit: nn.Module, name: str, plain: bool) -> str | tuple[str, ...]:
    """The foreign name of a unit's tensor within its entry; ``plain``: whether the blocks are DDPM's."""
    layer, _, kind = name.rpartition(".")
    letter = {"weight": "W", "bias": "b"}.get(kind)
    if isinstance(unit, Fourier):
        return "W"
    if isinstance(unit, SelfAttention) and layer != "norm":
        return f"NIN_3.{letter}" if layer == "output" else tuple(f"NIN_{i}.{letter}" for i in range(3))
    if isinstance(unit, (Down, Up)):
        return f"{'Conv2d_0' if unit.fir.size else 'Conv_0'}.{kind}"
    if isinstance(unit, Block) and layer == "shortcut" and plain:
        return f"NIN_0.{letter}"
    table = {"norm": "GroupNorm_0", "norm1": "GroupNorm_0", "norm2": "GroupNorm_1", "affine": "Dense_0"}
    table |= {"conv": "Conv_0", "conv1": "Conv_0", "conv2": "Conv_1", "shortcut": "Conv_2"}
    return f"{table[layer]}.{kind}" if layer else kind


def refined(name: str, depth: int, halving: Collection[str]) -> str:
    """The foreign name of a tensor of NCSN or NCSNv2.

    Args:
        depth: number of encoder levels.
        halving: indices of the levels that halve the resolution, in which two layers have another name.
    """
    starts = {"stem": "begin_conv", "norm": "normalizer", "output": "end_conv"}
    first, _, rest = name.partition(".")
    if first in starts:
        return f"{starts[first]}.{rest}".replace("levels.", "embed.")
    level, rest = rest.split(".", 1)
    if first == "encoder":
        rest = re.sub(r"norm(\d)", r"normalize\1", rest)
        if level in halving and rest[0] == "0":
            rest = re.sub(r"(conv2|shortcut)", r"\1.conv", rest)
        theirs = f"res{OWN_NAMES[depth].split()[int(level)]}.{rest}"
    else:
        rest = re.sub(r"^fuse\.", "msf.", re.sub(r"^pool\.", "crp.", rest))
        rest = re.sub(r"^(adapt\.\d+|output)\.(conv|norm)s\.(\d+)", unit_of, rest)
        theirs = f"refine{DECODER_NAMES[depth].split()[int(level)]}.{rest}"
    return theirs.replace("levels.", "embed.")


def unit_of(match: re.Match[str]) -> str:
    """The foreign name of a layer of residual units: 1-based numbers of the unit and of the layer within it."""
    path, kind, number = match[1], match[2], int(match[3])
    path = path.replace("adapt.", "adapt_convs.").replace("output", "output_convs")
    return f"{path}.{number // 2 + 1}_{number % 2 + 1}_{kind}"


# --- configs ----------------------------------------------------------------------------------------------------------


def sidecar(path: Path) -> Path:
    """The only config in a checkpoint's folder.

    Raises: ForeignError for none, or more than one.
    """
    found = sorted(file for file in path.parent.iterdir() if file.suffix in (".json", ".py"))
    if len(found) != 1:
        has = ", ".join(file.name for file in found[:3]) or "none"
        raise ForeignError(f"{path} needs its config, one .json or .py file in the same folder; found: {has}")
    return found[0]


class Config:
    """A score_sde config with dotted keys such as ``model.nf``.

    Args:
        values: key -> value.
        path: path of the file, for messages.
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Parses a ``.json`` or ``.py`` file without running it.

        Raises: ForeignError for a file that is missing or is no config.
        """
        try:
            text = read_text(path)
            values = _assignments(text) if path.suffix == ".py" else json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("it has no keys")
        except OSError as error:
            raise ForeignError(f"{path}: {error.strerror}; give the config of the checkpoint") from None
        except (SyntaxError, ValueError) as error:
            raise ForeignError(
                f"{path} cannot be read ({' '.join(str(error).split())}); give the config as JSON"
            ) from None
        return cls({key.removeprefix("config."): value for key, value in _flat(values).items()}, path)

    def __getitem__(self, key: str) -> Any:
        if key not in self.values:
            raise ForeignError(f"{self.path} lacks {key}; add it")
        if isinstance(self.values[key], Unread):
            line = self.values[key].line
            raise ForeignError(
                f"{self.path}, line {line}: {key} is not a plain value, and configs are not run; write its value"
            )
        return self.values[key]

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, or ``default`` if the file lacks it."""
        return self[key] if key in self.values else default

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the data."""
        return self["data.num_channels"], self["data.image_size"], self["data.image_size"]

    @property
    def conditional(self) -> bool:
        """Whether the network has an embedding of the noise level."""
        return self.get("model.conditional", True)

    @property
    def fourier(self) -> bool:
        """Whether that embedding has random frequencies."""
        return self["model.name"] == "ncsnpp" and self["model.embedding_type"].lower() == "fourier"

    @property
    def plain(self) -> bool:
        """Whether the residual blocks are DDPM's."""
        return self["model.name"] == "ddpm" or self["model.resblock_type"].lower() == "ddpm"

    def sections(self) -> dict[str, dict[str, Any]]:
        """The config sections sde, network, denoiser and codec.

        Raises: ForeignError for a missing key, an unknown network or process, or an invalid combination of them.
        """
        name, kind, continuous = self["model.name"], self["training.sde"].lower(), self["training.continuous"]
        if name not in NETWORKS:
            raise ForeignError(f"{self.path}: unknown model.name {name!r}; known: {', '.join(NETWORKS)}")
        low, high, count = float(self["model.sigma_min"]), float(self["model.sigma_max"]), self["model.num_scales"]
        rates = {
            "beta_min": float(self.get("model.beta_min", 0.1)),
            "beta_max": float(self.get("model.beta_max", 20.0)),
        }
        if kind == "subvpsde" or (kind == "vpsde" and continuous):
            sde, c_noise, parameterization = {"name": kind, **rates}, "time", "eps"
        elif kind == "vpsde":
            sde = {"name": "ddpm", "num_levels": count, **{key: rate / count for key, rate in rates.items()}}
            c_noise, parameterization = "level", "eps"
        elif kind == "vesde" and continuous:
            sde = {"name": "vesde", "sigma_min": low, "sigma_max": high}
            c_noise, parameterization = "sigma", "score"
        elif kind == "vesde":
            sde = {"name": "ncsn", "sigma_min": low, "sigma_max": high, "num_levels": count}
            c_noise, parameterization = "level_from_noise", "score"
        else:
            raise ForeignError(f"{self.path}: unknown training.sde {kind!r}; known: vpsde, subvpsde, vesde")
        discrete, own = c_noise in ("level", "level_from_noise"), name in DEPTHS
        if own and c_noise != "level_from_noise":
            raise ForeignError(f"{self.path}: the network {name} needs vesde and training.continuous False")
        if not (own or discrete or self.fourier) and self["model.scale_by_sigma"]:
            raise ForeignError(f"{self.path}: scale_by_sigma needs embedding_type fourier or training.continuous False")
        expected = {"normalization": "InstanceNorm++"} if own else {"nonlinearity": "swish"}
        for key, value in expected.items():
            if (given := self.get(f"model.{key}", value)).lower() != value.lower():
                raise ForeignError(f"{self.path}: the network {name} has model.{key} {value} here, not {given}")
        denoiser = {"parameterization": parameterization, "c_noise": c_noise, "input": "raw"}
        if name in DEPTHS and name != "ncsn":
            denoiser["c_noise"] = "sigma"
        codec = {"name": "pixels", "low": -1.0 if self["data.centered"] else 0.0}
        return {"sde": sde, "network": self.network(low, high, count), "denoiser": denoiser, "codec": codec}

    def network(self, low: float, high: float, count: int) -> dict[str, Any]:
        """The config section network, for ``count`` noise levels from ``low`` to ``high``."""
        name, centred = self["model.name"], self["data.centered"]
        if name in DEPTHS:
            activation = self.get("model.nonlinearity", "elu").lower()
            if activation not in ACTIVATIONS:
                known = ", ".join(ACTIVATIONS)
                raise ForeignError(f"{self.path}: unknown model.nonlinearity {activation!r}; known: {known}")
            options = {"name": NETWORKS[name][0], "channels": self["model.nf"], "centred": centred}
            options |= {"activation": activation, "depth": DEPTHS[name]}
            return options | ({"num_levels": count} if name == "ncsn" else {})
        by_sigma = self["model.scale_by_sigma"]
        common = {
            "name": name,
            "channels": self["model.nf"],
            "channel_mult": tuple(self["model.ch_mult"]),
            "num_blocks": self["model.num_res_blocks"],
            "attention": tuple(self["model.attn_resolutions"]),
            "dropout": float(self["model.dropout"]),
            "noise_unconditional": not self.conditional,
            "resample_conv": self["model.resamp_with_conv"],
            "centred": centred,
            "by_sigma": by_sigma,
            "ladder": (low, high, float(count)) if by_sigma and not self.fourier else (),
        }
        if name == "ddpm":
            return common | {"attend_always": False}
        return common | {
            "blocks": self["model.resblock_type"].lower(),
            "fir": tuple(map(float, self["model.fir_kernel"])) if self["model.fir"] else (),
            "progressive": self["model.progressive"].lower(),
            "progressive_input": self["model.progressive_input"].lower(),
            "combine": self["model.progressive_combine"].lower(),
            "embedding": self["model.embedding_type"].lower(),
            "fourier_scale": float(self.get("model.fourier_scale", 16.0)),
            "rescale": self["model.skip_rescale"],
        }


class Unread:
    """Placeholder for a value of a Python config that is not a literal.

    Args:
        line: its line number.
    """

    def __init__(self, line: int) -> None:
        self.line = line


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested keys to dotted ones."""
    items: dict[str, Any] = {}
    for key, value in values.items():
        items |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return items


def _assignments(text: str) -> dict[str, Any]:
    """The assignments in a Python config's get_config: literals, aliases, new and known default ConfigDicts.

    Raises: ValueError if it has no get_config or starts from an unknown config.
    """
    tree = ast.parse(text)
    modules = [node.module.split(".")[-1] for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    bodies = [node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "get_config"]
    if not bodies:
        raise ValueError("it has no get_config()")
    names: dict[str, Any] = {}
    for node in bodies[0]:
        if not isinstance(node, ast.Assign):
            continue
        value = _value(node.value, names, modules)
        for target in node.targets:
            if isinstance(target, ast.Name):
                names[target.id] = value
            elif isinstance(target, ast.Attribute):
                holder = _look(target.value, names)
                if not isinstance(holder, dict):
                    raise ValueError(
                        f"line {node.lineno}: {ast.unparse(target.value)} is unknown without running the file"
                    )
                holder[target.attr] = value
    if not isinstance(names.get("config"), dict):
        raise ValueError("its get_config() creates no config")
    return names["config"]


def _value(node: ast.expr, names: Mapping[str, Any], modules: list[str]) -> Any:
    """The value of an expression: a literal, a dict for a ConfigDict, or the value of a name or attribute."""
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func).split(".")[-1]
        if called == "ConfigDict" and not node.args:
            return {}
        if called == "get_default_configs":
            known = [module for module in modules if module in DEFAULTS]
            if not known:
                raise ValueError(f"line {node.lineno}: only the defaults of {', '.join(DEFAULTS)} are known")
            return _defaults(known[0])
    if isinstance(node, (ast.Attribute, ast.Name)):
        return _look(node, names)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Unread(node.lineno)


def _look(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of a name, or of an attribute of one."""
    holder = (
        names if isinstance(node, ast.Name) else _look(node.value, names) if isinstance(node, ast.Attribute) else {}
    )
    key = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    if not isinstance(holder, Mapping) or key not in holder:
        raise ValueError(f"line {node.lineno}: {ast.unparse(node)} is unknown without running it")
    return holder[key]


def _defaults(module: str) -> dict[str, dict[str, Any]]:
    """The default config of a module, restricted to the keys read here."""
    values = {section: dict(keys) for section, keys in _DEFAULT.items()}
    for key, value in DEFAULTS[module].items():
        section, name = key.split(".")
        values[section][name] = value
    return values | {section: {} for section in ("sampling", "eval", "optim")}
