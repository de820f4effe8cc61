"""Solvers of other packages with a common signature: (denoise, y, ratios) -> y at the last ratio.

With y = x / alpha and r = sigma / alpha, each package solves a variance-exploding process with sigma = r; diffusers,
which divides by sqrt(1 + r^2), solves a variance-preserving one. None steps to r = 0. All computations are in float64:
the ratios replace the tables of diffusers, and its casts to float32 keep the dtype of the state.

A solver that gives equal numbers in two packages is listed once: k-diffusion's Euler and LMS equal azula's DDIM and
zAB4, azula's Heun equals k-diffusion's, diffusers' DEIS equals azula's zEAB, and its DPM++2S equals k-diffusion's. The
multistep DPM++ of diffusers ends with a lower order below 15 moves, and is listed in addition to k-diffusion's.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor

from score_sde.sde_lib import SDE

Denoise = Callable[[Tensor, float], Tensor]
"""(y, ratio) -> x0."""

Solve = Callable[[Denoise, Tensor, Tensor], Tensor]


class Peer(NamedTuple):
    """A solver and its number of evaluations per move."""

    solve: Solve
    cost: int = 1


def peers(sde: SDE) -> tuple[dict[str, Peer], dict[str, str | None]]:
    """Returns all solvers by name, and the version of each package, None if it is not installed."""
    found, versions = {"Euler in t (textbook)": Peer(partial(_euler_in_time, sde))}, {}
    for package, rows in {"azula": _azula, "k_diffusion": _k_diffusion, "diffusers": _diffusers}.items():
        installed = importlib.util.find_spec(package) is not None
        versions[package] = importlib.metadata.version(package) if installed else None
        found |= {f"{name} ({package})": peer for name, peer in rows().items()} if installed else {}
    return found, versions


def _euler_in_time(sde: SDE, denoise: Denoise, y: Tensor, ratios: Tensor) -> Tensor:
    """Euler's method in t for dx/dt = f x - g^2 score / 2, as in score_sde."""
    times = sde.time(-2 * torch.log(ratios)).tolist()
    x = sde.marginal(times[0]).alpha * y
    for t, s, ratio in zip(times, times[1:], ratios.tolist()):
        score = sde.score(x, denoise(x / sde.marginal(t).alpha, ratio), t)
        x = x + (s - t) * (sde.drift(t) * x - 0.5 * sde.diffusion(t) ** 2 * score)
    return x / sde.marginal(times[-1]).alpha


def _azula() -> dict[str, Peer]:
    sample = importlib.import_module("azula.sample")

    def solve(name: str, order: dict[str, int], denoise: Denoise, y: Tensor, ratios: Tensor) -> Tensor:
        def denoiser(x: Tensor, t: Tensor) -> SimpleNamespace:
            return SimpleNamespace(mean=denoise(x, t.item()))

        denoiser.schedule = lambda t: (torch.ones_like(t), t)
        kind = getattr(sample, name + "Sampler")
        return type(name, (kind,), {"timesteps": ratios})(denoiser, silent=True, **order)(y)

    rows = {
        f"{kind}{order}": Peer(partial(solve, kind, {"order": order}))
        for kind in ("vAB", "zEAB", "xEAB")
        for order in (2, 3, 4)
    }
    others = {
        f"{kind}{order}": Peer(partial(solve, kind, {"order": order})) for kind, order in (("zAB", 4), ("REAB", 3))
    }
    return {**rows, **others, "DDIM": Peer(partial(solve, "DDIM", {}))}


def _k_diffusion() -> dict[str, Peer]:
    sampling = k_diffusion_sampling()

    def solve(name: str, options: dict[str, object], denoise: Denoise, y: Tensor, ratios: Tensor) -> Tensor:
        def model(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x, sigma[0].item())

        return getattr(sampling, f"sample_{name}")(model, y, ratios, disable=True, **options)

    flow = {"eta": 0.0, "noise_sampler": lambda sigma, next_sigma: 0.0}
    return {
        "DPM++2M": Peer(partial(solve, "dpmpp_2m", {})),
        "DPM++3M": Peer(partial(solve, "dpmpp_3m_sde", flow)),
        "DPM++2S": Peer(partial(solve, "dpmpp_2s_ancestral", flow), 2),
        "Heun": Peer(partial(solve, "heun", {}), 2),
        "DPM2": Peer(partial(solve, "dpm_2", {}), 2),
    }


def k_diffusion_sampling() -> ModuleType:
    """Returns ``k_diffusion.sampling`` without importing the rest of the package and its dependencies."""
    package = ModuleType("k_diffusion")
    package.__path__ = list(importlib.util.find_spec("k_diffusion").submodule_search_locations)
    unused = ("torchsde", "torchdiffeq", "torchvision", "torchvision.transforms")
    with mock.patch.dict(sys.modules, {"k_diffusion": package, **{name: mock.MagicMock() for name in unused}}):
        return importlib.import_module("k_diffusion.sampling")


def _diffusers() -> dict[str, Peer]:
    schedulers = importlib.import_module("diffusers.schedulers")
    multistep = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_multistep")
    multistep.torch = _Torch(torch)
    importlib.import_module("diffusers.utils.logging").set_verbosity_error()

    def solve(name: str, options: dict[str, object], denoise: Denoise, y: Tensor, ratios: Tensor) -> Tensor:
        scheduler = getattr(schedulers, name)(prediction_type="sample", **options)
        return follow(scheduler, lambda x, x0, alpha, sigma: x0, denoise, y, ratios)

    def ipndm(denoise: Denoise, y: Tensor, ratios: Tensor) -> Tensor:
        scheduler = schedulers.IPNDMScheduler()

        def velocity(x: Tensor, x0: Tensor, alpha: float, sigma: float) -> Tensor:
            return (alpha * x - x0) / sigma

        return follow(scheduler, velocity, denoise, y, ratios)

    def follow(scheduler: object, output: Callable, denoise: Denoise, y: Tensor, ratios: Tensor) -> Tensor:
        num, alpha = len(ratios) - 1, (1 + ratios**2) ** -0.5
        scheduler.set_timesteps(num)
        scheduler.timesteps = torch.arange(num, 0, -1)
        scheduler.sigmas, scheduler.alphas, scheduler.betas = ratios, alpha, alpha * ratios
        scheduler.set_begin_index(0)
        multistep.torch.float32 = y.dtype
        x = alpha[0] * y
        for time, a, ratio in zip(scheduler.timesteps, alpha.tolist(), ratios.tolist()):
            x = scheduler.step(output(x, denoise(x / a, ratio), a, a * ratio), time, x).prev_sample
        return x / alpha[-1]

    def row(name: str, **options: object) -> Peer:
        return Peer(partial(solve, f"{name}Scheduler", {**options, "final_sigmas_type": "sigma_min"}))

    unipc = {
        f"UniPC-{kind}-{order} {form}": row(
            "UniPCMultistep", solver_order=order, solver_type=kind, predict_x0=form == "x"
        )
        for kind in ("bh1", "bh2")
        for order in (2, 3)
        for form in ("x", "eps")
    }
    dpm = {
        "DPM++2M": row("DPMSolverMultistep", solver_order=2),
        "DPM++3M": row("DPMSolverMultistep", solver_order=3),
        "DPM++3S": row("DPMSolverSinglestep", solver_order=3),
        "DPM-Solver-2M": row("DPMSolverMultistep", solver_order=2, algorithm_type="dpmsolver"),
        "DPM-Solver-3M": row("DPMSolverMultistep", solver_order=3, algorithm_type="dpmsolver"),
        "DPM-Solver-3S": row("DPMSolverSinglestep", solver_order=3, algorithm_type="dpmsolver"),
    }
    return {**unipc, **dpm, "iPNDM": Peer(ipndm)}


class _Torch:
    """The module torch with attributes that can be replaced for a single importer."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)
