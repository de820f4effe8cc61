"""From a config to the objects it names."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn

from data import CODECS, DATASETS, Dataset, Identity, Pixels, measure
from engine.errors import unknown
from models import NETWORKS
from sde_lib import PARAMETERIZATIONS, SDE, SDES, TIME_LAWS, WEIGHTS, Denoiser


def pick(table: Mapping[str, Any], what: str, name: str) -> Any:
    """The entry of a table.

    Raises: ValueError naming the near names, or else all known ones.
    """
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def make(table: Mapping[str, Callable], what: str, spec: Mapping[str, Any], **extra: Any) -> Any:
    """Build the entry of ``table`` that ``spec["name"]`` names from the other items of ``spec``."""
    options = dict(spec)
    return pick(table, what, options.pop("name"))(**options, **extra)


@dataclass(frozen=True)
class DataFacts:
    """What a run has to know of its data once they are gone; kept in each checkpoint.

    Args:
        shape: of one example.
        levels: number of values an entry can take, 0 for real-valued data.
        std: standard deviation of the encoded training data.
        diameter: largest distance between two encoded training examples.
    """

    shape: tuple[int, ...]
    levels: int
    std: float
    diameter: float

    @classmethod
    def of(cls, dataset: Dataset, codec: Pixels | Identity) -> "DataFacts":
        """Measured on a dataset."""
        measured = measure(dataset, codec)
        return cls(dataset.shape, dataset.levels, measured.std, measured.diameter)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataFacts":
        """Inverse of ``dataclasses.asdict``, through JSON."""
        return cls(**{**values, "shape": tuple(values["shape"])})


@dataclass(frozen=True)
class Experiment:
    """The parts of a run, put together."""

    facts: DataFacts
    codec: Pixels | Identity
    sde: SDE
    network: nn.Module
    device: torch.device

    def denoiser(self, network: nn.Module, config: ConfigDict) -> Denoiser:
        """A network as a denoiser of this experiment's SDE."""
        return Denoiser(network, self.sde, config.denoiser.parameterization, self.sigma_data(config))

    def sigma_data(self, config: ConfigDict) -> float:
        """The standard deviation that the denoiser takes the data to have."""
        if config.denoiser.sigma_data == 0 and self.facts.std == 0:
            raise ValueError("the training data are all alike, so sigma_data is 0; set denoiser.sigma_data")
        return config.denoiser.sigma_data or self.facts.std


def read_dataset(config: ConfigDict, split: str) -> Dataset:
    """The examples of a split."""
    paths = {"path": config.data.path, "test_path": config.data.test_path} if config.data.name == "images" else {}
    return make(DATASETS, "dataset", {"name": config.data.name, **paths}, split=split)


def make_codec(config: ConfigDict, levels: int) -> Pixels | Identity:
    """The codec for data with this number of levels."""
    return make(CODECS, "codec", config.codec, levels=levels)


def build(config: ConfigDict, facts: DataFacts) -> Experiment:
    """The experiment of a config on data of which the facts are known.

    Raises: ValueError for a name that is in no table, a device that is not there, a shape that the network refuses.
    """
    pick(PARAMETERIZATIONS, "parameterization", config.denoiser.parameterization)
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    device = make_device(config.device)
    sde_spec = config.sde.to_dict()
    if sde_spec.get("sigma_max") == 0:
        sde_spec["sigma_max"] = facts.diameter
    network = make(NETWORKS, "network", config.network, shape=facts.shape).to(device)
    return Experiment(
        facts=facts,
        codec=make_codec(config, facts.levels),
        sde=make(SDES, "sde", sde_spec),
        network=network,
        device=device,
    )


def make_weight(config: ConfigDict, sigma_data: float) -> Callable:
    """The weight of the loss, ``(sde, t) -> weight``."""
    options = {"sigma_data": sigma_data} if config.loss.weight == "edm" else {}
    return functools.partial(pick(WEIGHTS, "weight", config.loss.weight), **options)


def make_time_law(config: ConfigDict) -> Callable:
    """The law of time, ``(sde, u) -> (t, correction)``."""
    options = {"mean": config.loss.time_mean, "std": config.loss.time_std}
    law = pick(TIME_LAWS, "time law", config.loss.time_law)
    return functools.partial(law, **(options if config.loss.time_law == "lognormal" else {}))


def check_at_least(least: int, config: ConfigDict, *keys: str) -> None:
    """Raises: ValueError naming the first of these keys, such as train.batch_size, that is below ``least``."""
    for section, key in (dotted.split(".") for dotted in keys):
        if not config[section][key] >= least:
            raise ValueError(f"{section}.{key} {config[section][key]}: need at least {least}")


def make_device(name: str) -> torch.device:
    """The device of that name; auto is the first accelerator, or else the CPU.

    Raises: ValueError for a name that torch does not know or a device that this machine does not have.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; try --device cpu or auto") from None
    return device
