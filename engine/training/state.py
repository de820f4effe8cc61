"""State of training that checkpoints save and restore."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from score_sde.engine import checkpoint, ranks
from score_sde.engine.training.adam import Adam
from score_sde.engine.training.ema import EMA
from score_sde.engine.training.nonfinite import NonFiniteSteps
from score_sde.engine.training.posthoc import about, profiles
from score_sde.sde_lib import Gaussian, TimestepSampler


class State:
    """Everything that training changes, except the step and the number of examples, which meta.json holds."""

    def __init__(
        self,
        network: nn.Module,
        ema: EMA,
        optimizer: Adam,
        timestep_sampler: TimestepSampler,
        nonfinite: NonFiniteSteps,
    ) -> None:
        self.network, self.ema, self.optimizer = network, ema, optimizer
        self.timestep_sampler, self.nonfinite = timestep_sampler, nonfinite

    def save(
        self, folder: Path, step: int, gaussian: Gaussian, window: Mapping[str, Any], meta: Mapping[str, Any]
    ) -> None:
        """Writes checkpoint ``step`` below ``folder``; all processes take part, and the first one writes.

        Args:
            gaussian: moment-matched Gaussian of the data.
            window: steps since the last line of metrics.
            meta: JSON values of meta.json.
        """
        to_cpu = partial(ranks.to_first, device="cpu")
        state = {
            "optimizer": self.optimizer.state_dict(to_cpu),
            "ema_updates": self.ema.num_updates,
            "timestep_sampler": self.timestep_sampler.state_dict(),
            "nonfinite": self.nonfinite.state_dict(),
            "window": dict(window),
        }
        raw = ranks.whole_network(self.network, to_cpu)
        with self.ema.whole():
            parts: dict[str, nn.Module | Gaussian] = {checkpoint.RAW: raw, **self._averages()}
            parts[checkpoint.GAUSSIAN] = gaussian
            if ranks.rank() == 0:
                checkpoint.save(folder, step, parts, state, {**meta, **about(self.ema)})

    def load(self, path: Path) -> Mapping[str, Any]:
        """Restores all but the raw weights, which the experiment has from its start; returns the window.

        Raises: CheckpointError for a damaged file.
        """
        for name, average in self._averages().items():
            checkpoint.load_network(path, name, average)
        state = checkpoint.load_state(path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.num_updates = state["ema_updates"]
        self.timestep_sampler.load_state_dict(state.get("timestep_sampler", {}))
        self.nonfinite.load_state_dict(state.get("nonfinite", self.nonfinite.state_dict()))
        return state.get("window", {})

    def _averages(self) -> dict[str, nn.Module]:
        rates = dict(zip(map(checkpoint.ema_file, self.ema.rates), self.ema.networks))
        return {**rates, **profiles(self.ema)}
