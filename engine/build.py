"""Objects of a config: SDE, network, codec and denoiser."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from score_sde.configs.default import Config
from score_sde.data import Codec
from score_sde.engine.codecs import bin_width, make_codec
from score_sde.engine.devices import make_device, set_threads
from score_sde.engine.facts import DataFacts
from score_sde.models import NETWORKS
from score_sde.sde_lib import CHAIN_PARAMETERIZATIONS, OBJECTIVES, PARAMETERIZATIONS, SDE, SDES, Denoiser, Gaussian
from score_sde.sde_lib.devices import put
from score_sde.sde_lib.discrete import ladder_size
from score_sde.storage.naming import options, pick


def make(table: Mapping[str, Callable], kind: str, spec: Mapping[str, Any], **extra: Any) -> Any:
    """Returns the entry ``spec["name"]`` of ``table``, constructed with the other items of ``spec``.

    Args:
        kind: of the entries, for the message of an unknown name.
        extra: more arguments.
    """
    options = dict(spec)
    return pick(table, kind, options.pop("name"))(**options, **extra)


@dataclass(frozen=True)
class Experiment:
    """Objects of a run.

    Args:
        gaussian: moment-matched Gaussian of the encoded training data, float64 on the CPU; ``gaussian.like(x)`` has
            the dtype and device of x.
    """

    facts: DataFacts
    codec: Codec
    sde: SDE
    network: nn.Module
    device: torch.device
    gaussian: Gaussian

    def denoiser(self, network: nn.Module, config: Config) -> Denoiser:
        """Returns the denoiser of a network for this experiment's SDE."""
        model = pick(OBJECTIVES, "objective", config.loss.objective.name).model
        settings = {**config.denoiser, "sigma_data": self.sigma_data(config)}
        return model(network, self.sde, **options(model, settings))

    @property
    def bin_width(self) -> float:
        """Width of a level in units of the encoded data; 0 for real-valued data."""
        return bin_width(self.codec)

    @property
    def low(self) -> float:
        """Lower end of the encoded levels; 0 for real-valued data."""
        return self.codec.low if self.codec.levels else 0.0

    def sigma_data(self, config: Config) -> float:
        """Returns the standard deviation of the data for the denoiser.

        Raises: ValueError if it is 0.
        """
        if config.denoiser.sigma_data == 0 and self.facts.std == 0:
            raise ValueError("the training data are all alike, so sigma_data is 0; set denoiser.sigma_data")
        return config.denoiser.sigma_data or self.facts.std


def build(config: Config, facts: DataFacts, gaussian: Gaussian | None = None) -> Experiment:
    """Returns the experiment of a config on data with these facts.

    Args:
        gaussian: moment-matched Gaussian of the data; None for N(0, std^2).
    Raises: ValueError for an unknown name, a missing device, or a shape that the network does not support.
    """
    pick(PARAMETERIZATIONS | CHAIN_PARAMETERIZATIONS, "parameterization", config.denoiser.parameterization)
    device = make_device(config.device)
    sde_spec = dict(config.sde)
    if sde_spec.get("sigma_max") == 0:
        sde_spec["sigma_max"] = facts.diameter
    if sde_spec.get("num_levels") == 0 and "sigma_max" in sde_spec:
        sde_spec["num_levels"] = ladder_size(sde_spec["sigma_min"], sde_spec["sigma_max"], math.prod(facts.shape))
    try:
        network = make(NETWORKS, "network", config.network, shape=facts.shape).to(device)
    except RuntimeError as error:  # sizes beyond any memory, as in an untrusted config
        reason = str(error).splitlines()[0]
        raise ValueError(f"the network {config.network.name} cannot be made: {reason}; make it smaller") from error
    set_threads(config, facts.shape, network)
    name = config.loss.objective.name
    objective = pick(OBJECTIVES, "objective", name)
    kinds = getattr(network, "output_kinds", ("state",))
    if objective.output_kind not in kinds:
        raise ValueError(
            f"loss.objective {name!r} does not train the network {config.network.name!r}: it needs the output "
            f"{objective.output_kind}, and the network returns {' or '.join(kinds)}"
        )
    return Experiment(
        facts=facts,
        codec=make_codec(config.codec, facts),
        sde=make(SDES, "sde", sde_spec),
        network=network,
        device=device,
        gaussian=gaussian or Gaussian(torch.zeros(facts.shape, dtype=torch.float64), facts.std**2 or 1.0),
    )


def conditions(config: Config, batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the conditions of a batch: the label, if the network has classes."""
    return {"label": put(batch["label"], device)} if config.network.get("num_classes") else {}
