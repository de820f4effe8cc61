"""guided-diffusion: tables of the chains, single steps, whole respaced chains."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor

from parity.recordings import (
    Comparison,
    Group,
    Recording,
    absolute,
    column,
    parameters,
    per_element,
    per_unit_element,
    replay,
)
from samplers import DDIM, Ancestral, Step, sample
from sde_lib import SDE, VPSDE, Discrete, GaussianMixture
from sde_lib.denoiser import Prediction

THINNED = ("spaced0", "spaced1", "spaced2", "spaced3", "spaced4", "spaced5")
"""The recorded selections of levels from a chain of 1000; the others are from chains of other lengths."""


@cache
def chain(schedule: str) -> Discrete:
    """DDPM's linear chain is ours; the cosine one comes as its betas."""
    if schedule == "linear":
        return VPSDE(0.1, 20.0).discretize(1000)
    return Discrete.of_betas(Recording("guided_diffusion/tables")[f"{schedule}1000.betas"])


def tables(recording: Recording, schedule: str) -> Iterator[Comparison]:
    """Marginals at the levels; the posterior out of the bridge."""
    level = torch.arange(1, 1001, dtype=torch.float64)
    alpha, sigma, _ = chain(schedule).at(level)
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    of_x0, std = chain(schedule).bridge(zero, one, level, level - 1, eta=1.0)
    of_x, _ = chain(schedule).bridge(one, zero, level, level - 1, eta=1.0)
    ours = {
        "betas": chain(schedule).transition(level - 1, level)[1] ** 2,
        "alphas_cumprod": alpha**2,
        "alphas_cumprod_prev": chain(schedule).alpha(level - 1) ** 2,
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": 2 * torch.log(sigma),
        "sqrt_recip_alphas_cumprod": 1 / alpha,
        "sqrt_recipm1_alphas_cumprod": sigma / alpha,
        "posterior_variance": std**2,
        "posterior_mean_coef1": of_x0,
        "posterior_mean_coef2": of_x,
    }
    for name, values in ours.items():
        if f"{schedule}1000.{name}" in recording:
            yield f"{schedule}1000.{name}", values, recording[f"{schedule}1000.{name}"]


def respaced(recording: Recording) -> Iterator[Comparison]:
    """The betas of a chain that keeps only some levels: its transitions between them."""
    for key in recording.arrays:
        case, *rest = key.split(".")
        if case not in THINNED or rest[-1] != "timestep_map":
            continue
        late = recording[key].double() + 1
        early = torch.cat([torch.zeros(1).double(), late[:-1]])
        b = chain(rest[0]).transition(early, late)[1]
        yield f"{case}.{rest[0]}.betas", b**2, recording[f"{case}.{rest[0]}.betas"]


def steps(recording: Recording) -> Iterator[Comparison]:
    """Single moves of samples at different levels, one by one; the reference adds no noise on the way to level 0.

    It moves an estimate of the data through float32 noise, which near the data keeps three digits: DDIM moves of such
    a model are compared where sigma is above 0.1.
    """
    levels, outputs = (recording["t"].double() + 1).tolist(), recording["model_output"][:, :3].split(1)
    for case in parameters(recording.name)["cases"]:
        schedule, kind = case.split(".")
        sde, x, still = chain(schedule), recording[f"{schedule}.x_t"], torch.zeros_like(recording["x_start"])
        plain = [estimate(sde, kind, f) for f in outputs]
        for name, denoisers in {"noclip": plain, "clip": [clipped(denoise) for denoise in plain]}.items():
            if f"{case}.{name}.mean" in recording:
                x0 = torch.cat([denoise(row, t).x0 for denoise, row, t in zip(denoisers, x.split(1), levels)])
                yield f"{case}.{name}.pred_xstart", x0, recording[f"{case}.{name}.pred_xstart"]
                mean = update(Ancestral(sde), denoisers, x, levels, still)
                yield f"{case}.{name}.mean", mean, recording[f"{case}.{name}.mean"]
        if kind in ("eps_small", "eps_large"):
            step, noise = Ancestral(sde, variance=float(kind == "eps_large")), recording[f"{case}.noise_p_sample"]
            noise = torch.where(column(recording["t"]) > 0, noise, 0)
            ours = update(step, [clipped(denoise) for denoise in plain], x, levels, noise)
            yield f"{case}.p_sample", ours, recording[f"{case}.p_sample"]
        rows = [i for i, t in enumerate(levels) if sde.sigma(torch.tensor(t)) > 0.1 or kind != "x0_range"]
        for eta, noise in zip((0.0, 0.5, 1.0), recording[f"{case}.noise_ddim"]):
            ours = update(DDIM(sde, eta), plain, x, levels, noise)
            yield f"{case}.ddim_eta{eta:g}", ours[rows], recording[f"{case}.ddim_eta{eta:g}"][rows]


def estimate(sde: SDE, kind: str, f: Tensor) -> Callable[[Tensor, float], Prediction]:
    """A model that answers f, the data or the noise."""
    return lambda x, t: Prediction(f if kind.startswith("x0") else sde.x0(x, f, t))


def clipped(denoise: Callable[[Tensor, float], Prediction]) -> Callable[[Tensor, float], Prediction]:
    return lambda x, t: Prediction(denoise(x, t).x0.clamp(-1, 1))


def update(step: Step, denoisers: list, x: Tensor, levels: list[float], noise: Tensor) -> Tensor:
    """Each sample with its own denoiser from its level to the next one."""
    samples = zip(denoisers, x.split(1), levels, noise.split(1))
    return torch.cat([step(denoise, row, t, t - 1, replay(z[None])) for denoise, row, t, z in samples])


def chains(recording: Recording) -> Iterator[Comparison]:
    """Whole chains over some of the levels; the learned variance, held at 0.2 of [-1, 1], is 0.6 of the way to beta."""
    for case, about in recording.cases.items():
        if about["kind"] == "bpd" or about["cond_fn"]:
            continue
        sde, x = chain(about["schedule"]), recording[f"{case}.x_T"]
        mean = torch.full((1, *x.shape[1:]), about["mu"], dtype=torch.float64)
        exact = GaussianMixture(torch.ones(1).double(), mean, about["s"] ** 2).denoiser(sde)
        denoise = clipped(exact) if about["options"].get("clip_denoised", True) else exact
        share = 0.5 * (about["var_channel"] + 1)
        step = Ancestral(sde, share) if about["kind"] == "ddpm" else DDIM(sde, about["options"].get("eta", 0.0))
        levels = recording[f"{case}.timestep_map"].flip(0).double() + 1
        ours = sample(step, denoise, x, levels, replay(recording[f"{case}.noise"]))
        yield f"{case}.x", ours, recording[f"{case}.x"]


def group(what: str, file: str, deviation: Callable, allowed: float, needs: str, compare: Callable) -> Group:
    return Group("guided-diffusion", what, (f"guided_diffusion/{file}",), deviation, allowed, compare, needs)


GROUPS = (
    group(
        "tables of the linear chain",
        "tables",
        per_element,
        1e-12,
        "linear1000.alphas_cumprod",
        partial(tables, schedule="linear"),
    ),
    group(
        "tables of the cosine chain",
        "tables",
        per_element,
        1e-12,
        "cosine1000.alphas_cumprod",
        partial(tables, schedule="cosine"),
    ),
    group("betas of respaced chains", "tables", absolute, 1e-9, "spaced0.linear.betas", respaced),
    group("ancestral and DDIM updates in float32", "steps", per_unit_element, 1e-4, "x_start", steps),
    group("ancestral and DDIM chains in float32", "chains", per_unit_element, 1e-4, "ddim.linear.ddim25.x", chains),
)
