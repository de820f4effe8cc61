"""diffusers: schedulers that coincide with steps of this library, on a Gaussian mixture in float64."""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from parity.recordings import Comparison, Group, Recording, parameters, per_sample, replay
from score_sde.samplers import (
    DDIM,
    GRIDS,
    PLMS,
    PNDM,
    Ancestral,
    DPMSolverPP,
    Heun,
    Multistep,
    Step,
    UniPC,
    sample,
    trajectory,
)
from score_sde.sde_lib import EDMSDE, SDE, VPSDE, Discrete, GaussianMixture, Prediction

CHAINS: dict[str, Callable[[SDE], Step]] = {
    "ddpm_small": Ancestral,
    "ddpm_large": lambda sde: Ancestral(sde, v=1.0),
    "ddim_eta0": DDIM,
    "ddim_eta05": lambda sde: DDIM(sde, eta=0.5),
    "ddim_trailing": DDIM,
}
"""Schedulers on the levels of DDPM's chain."""

MULTISTEP: dict[str, Callable[[SDE], Step]] = {"pndm": PNDM, "pndm_plms": PLMS}
"""Schedulers on the same levels that stop at the first level instead of at the data."""

LADDERS: dict[str, Callable[[SDE], Step]] = {
    "euler": DDIM,
    "euler_karras": DDIM,
    "euler_ancestral": Ancestral,
    "heun": Heun,
    "heun_karras": Heun,
    "dpm_1": DDIM,
}
"""Schedulers on noise-to-signal ratios."""


class PublishedUniPC(UniPC):
    """UniPC whose last steps have lower order for any number of steps."""

    def __init__(
        self, sde: SDE, form: str = "data", order: int = 3, variant: str = "bh2", to_data: bool = False
    ) -> None:
        super().__init__(sde, form, order, variant)
        self.to_data = to_data

    def orders(self, num_moves: int) -> np.ndarray:
        return np.minimum(self.order, num_moves + self.to_data - np.arange(num_moves))


class Lowered(Multistep):
    """A method whose last steps have lower order if there are fewer than 15."""

    def orders(self, num_moves: int) -> np.ndarray:
        return np.minimum(self.order, num_moves - np.arange(num_moves) if num_moves < 15 else self.order)


class LoweredMidpoint(Lowered, DPMSolverPP):
    """The rule of DPM-Solver++(2M) for eps."""

    def __init__(self, sde: SDE, eta: float = 0.0) -> None:
        Multistep.__init__(self, sde, "noise", "log_ratio", 2, eta=eta)


TO_DATA: dict[str, Callable[[SDE], Step]] = {
    "dpm_2m": DPMSolverPP,
    "dpm_2m_karras": DPMSolverPP,
    "dpm_2m_sde": lambda sde: DPMSolverPP(sde, eta=1.0),
    "dpm_2m_heun": lambda sde: Multistep(sde, "data", "log_ratio", 2),
    "unipc_2": lambda sde: PublishedUniPC(sde, order=2, to_data=True),
    "unipc_3": lambda sde: PublishedUniPC(sde, to_data=True),
}
"""Multistep schedulers that end at the data."""

TO_LAST_LEVEL: dict[str, Callable[[SDE], Step]] = {
    "dpm_2m_eps": LoweredMidpoint,
    "dpm_2m_sde_eps": lambda sde: LoweredMidpoint(sde, eta=1.0),
    "unipc_2_bh1": lambda sde: PublishedUniPC(sde, order=2, variant="bh1"),
    "unipc_2_eps": lambda sde: PublishedUniPC(sde, "noise", order=2),
    "deis_2": lambda sde: Lowered(sde, "noise", "log_ratio", 2),
    "deis_3": lambda sde: Lowered(sde, "noise", "log_ratio", 3),
}
"""Multistep schedulers that stop at the first level of DDPM's chain."""


def chain(recording: Recording, name: str) -> Discrete:
    """The linear chain of a scheduler, with its recorded parameters."""
    cases = parameters(recording.name)["cases"].items()
    about = next(case["full_config"] for run, case in cases if run.startswith(f"{name}.") and "full_config" in case)
    assert about["beta_schedule"] == "linear"
    num_levels, ends = about["num_train_timesteps"], (about["beta_start"], about["beta_end"])
    return VPSDE(*(num_levels * beta for beta in ends)).discretize(num_levels)


def runs(recording: Recording) -> Iterator[tuple[str, str, int]]:
    """Yields the name of a run, its scheduler, and the number of dimensions."""
    for key in recording.arrays:
        name, num_steps, *rest = key.split(".")
        if rest and rest[-1] == "x_f64":
            yield f"{name}.{num_steps}", name, int(rest[0].removeprefix("d"))


def mixture(recording: Recording, size: int) -> GaussianMixture:
    weights, means, stds = (recording[f"gmm{size}.{key}"] for key in ("weights", "means", "stds"))
    return GaussianMixture(weights, means, stds[:, None] ** 2)


def chains(recording: Recording) -> Iterator[Comparison]:
    for run, name, size in runs(recording):
        if name not in CHAINS:
            continue
        sde = chain(recording, name)
        levels = recording[f"{run}.timesteps"].double() + 1
        if name == "ddim_trailing":
            levels = GRIDS["levels"](sde, len(levels))
        draw, x = replay(recording[f"noise{size}.bank"]), recording[f"noise{size}.initial"].double()
        ours = sample(CHAINS[name](sde), mixture(recording, size).denoiser(sde), x, levels, draw)
        yield f"{run}.d{size}.x_f64", ours, recording[f"{run}.d{size}.x_f64"]


def multistep(recording: Recording) -> Iterator[Comparison]:
    """Compares the last state and the sequence of levels at which the denoiser is evaluated."""
    for run, name, size in runs(recording):
        if name not in MULTISTEP:
            continue
        sde, num_steps, asked = chain(recording, name), int(run.split(".")[1]), []
        num_levels = int(sde.t_max)
        times = GRIDS["levels"](sde, num_steps - 1, start=1 + num_levels - num_levels // num_steps, end=1)
        exact, x = mixture(recording, size).denoiser(sde), recording[f"noise{size}.initial"].double()

        def denoise(x: torch.Tensor, t: float, exact: Callable = exact, asked: list = asked) -> Prediction:
            asked.append(t - 1)
            return exact(x, t)

        *_, ours, _ = trajectory(MULTISTEP[name](sde), denoise, x, times, torch.zeros_like)
        yield f"{run}.d{size}.x_f64", ours, recording[f"{run}.d{size}.x_f64"]
        yield f"{run}.timesteps", torch.tensor(asked), recording[f"{run}.timesteps"]


def ladders(recording: Recording) -> Iterator[Comparison]:
    """Runs on the recorded ladders, and on Karras's between the same ends."""
    for run, name, size in runs(recording):
        if name not in LADDERS:
            continue
        calls = recording[f"{run}.sigma_of_each_model_call_f64"].tolist()
        sigmas = [calls[0], *(late for early, late in pairwise(calls) if late != early)]
        sde = EDMSDE(sigmas[-1], sigmas[0])
        karras = name.endswith("karras")
        times = GRIDS["karras"](sde, len(sigmas) - 1) if karras else torch.tensor(sigmas, dtype=torch.float64)
        preserved = (1 + sde.t_max**2) ** 0.5  # start: z if variance-preserving, else sigma_max z
        x = recording[f"noise{size}.initial"].double() * (preserved if name == "dpm_1" else sde.t_max)
        draw = replay(recording[f"noise{size}.bank"])
        ours = sample(LADDERS[name](sde), mixture(recording, size).denoiser(sde), x, times, draw)
        yield f"{run}.d{size}.x_f64", ours, recording[f"{run}.d{size}.x_f64"]


def multistep_ladders(recording: Recording) -> Iterator[Comparison]:
    """Runs on the recorded ladders to the data, or to the last level if the state is variance-preserving."""
    for run, name, size in runs(recording):
        if name not in TO_DATA | TO_LAST_LEVEL:
            continue
        calls, draw = recording[f"{run}.sigma_of_each_model_call_f64"], replay(recording[f"noise{size}.bank"])
        first = torch.exp(-0.5 * chain(recording, name).log_snr(torch.ones(1, dtype=torch.float64)))
        sigmas = calls if name in TO_DATA else torch.cat([calls, first])
        sde = EDMSDE(sigmas[-1].item(), sigmas[0].item())
        x = recording[f"noise{size}.initial"].double()
        x = x * (1 + sde.t_max**2) ** 0.5
        exact, make = mixture(recording, size).denoiser(sde), (TO_DATA | TO_LAST_LEVEL)[name]
        *_, state, ours = trajectory(make(sde), exact, x, sigmas, draw)
        if name in TO_LAST_LEVEL:
            ours = state / (1 + sde.t_min**2) ** 0.5
        yield f"{run}.d{size}.x_f64", ours, recording[f"{run}.d{size}.x_f64"]


def group(what: str, compare: Callable) -> Group:
    return Group("diffusers", what, ("diffusers/schedulers",), per_sample, 1e-6, compare, "gmm2.means")


GROUPS = (
    group("DDPM, DDIM", chains),
    group("PNDM, with and without its Runge-Kutta start", multistep),
    group("UniPC, DPM-Solver and DPM-Solver++ of order 2, their SDE forms, DEIS", multistep_ladders),
    group("Euler, Euler ancestral, Heun, DPM-Solver++ of order 1", ladders),
)
