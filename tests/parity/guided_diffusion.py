"""guided-diffusion: tables of the chains, single steps, whole respaced chains."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from unittest.mock import patch

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
    per_hundredth_element,
    per_unit_element,
    replay,
)
from score_sde.samplers import DDIM, Ancestral, LearnedVariance, Step, sample
from score_sde.sde_lib import SDE, VPSDE, WEIGHTS, Discrete, GaussianMixture, prior_term, variational_bound
from score_sde.sde_lib.bound import Bound, Hybrid, kl, log_prob_bins, log_prob_data, step_bound
from score_sde.sde_lib.denoiser import Prediction
from score_sde.sde_lib.process import reverse_std

PUBLISHED_LEVELS = 1000
"""Number of levels of the published chain, used where a recording names no other."""


@cache
def chain(schedule: str, num_levels: int = PUBLISHED_LEVELS) -> Discrete:
    """DDPM's linear chain scaled to its number of levels, or the cosine chain from its betas."""
    if schedule == "linear":
        return VPSDE(0.1, 20.0).discretize(num_levels)
    return Discrete.of_betas(Recording("guided_diffusion/tables")[f"{schedule}{num_levels}.betas"])


def tables(recording: Recording, schedule: str) -> Iterator[Comparison]:
    """Compares the marginals at the levels, and the posterior with ``bridge``."""
    for name, num_levels in parameters(recording.name)["schedules"]:
        if name == schedule:
            yield from _tables(recording, f"{schedule}{num_levels}", chain(schedule, num_levels))


def _tables(recording: Recording, prefix: str, sde: Discrete) -> Iterator[Comparison]:
    level = torch.arange(1, sde.t_max + 1, dtype=torch.float64)
    alpha, sigma, _ = sde.marginal(level)
    zero, one = torch.zeros_like(level), torch.ones_like(level)
    of_x0, std = sde.bridge(zero, one, level, level - 1, eta=1.0)
    of_x, _ = sde.bridge(one, zero, level, level - 1, eta=1.0)
    ours = {
        "betas": sde.transition(level - 1, level)[1] ** 2,
        "alphas_cumprod": alpha**2,
        "alphas_cumprod_prev": sde.alpha(level - 1) ** 2,
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
        if f"{prefix}.{name}" in recording:
            yield f"{prefix}.{name}", values, recording[f"{prefix}.{name}"]


def respaced(recording: Recording) -> Iterator[Comparison]:
    """Compares the betas of a chain that keeps only some levels with the transitions between them."""
    about, whole = parameters(recording.name), Recording("guided_diffusion/tables")
    for key in recording.arrays:
        case, *rest = key.split(".")
        if rest[-1] != "timestep_map":
            continue
        schedule, num_levels = rest[0], about["respacing"][case]["num_timesteps"]
        if schedule != "linear" and f"{schedule}{num_levels}.betas" not in whole:
            continue  # the cosine chain of this length was not recorded
        late = recording[key].double() + 1
        early = torch.cat([torch.zeros(1).double(), late[:-1]])
        b = chain(schedule, num_levels).transition(early, late)[1]
        yield f"{case}.{schedule}.betas", b**2, recording[f"{case}.{schedule}.betas"]


def steps(recording: Recording) -> Iterator[Comparison]:
    """Compares single steps from different levels; the reference adds no noise on the way to level 0.

    It passes an estimate of the data through float32 noise, which near the data keeps three digits, so DDIM steps of
    such a model are compared only where sigma is above 0.1.
    """
    levels, outputs = (recording["t"].double() + 1).tolist(), recording["model_output"][:, :3].split(1)
    about = parameters(recording.name)
    for case in about["cases"]:
        schedule, kind = case.split(".")
        sde, x, still = (
            chain(schedule, about["T"]),
            recording[f"{schedule}.x_t"],
            torch.zeros_like(recording["x_start"]),
        )
        plain = [estimate(sde, kind, f) for f in outputs]
        for name, denoisers in {"noclip": plain, "clip": [clipped(denoise) for denoise in plain]}.items():
            if f"{case}.{name}.mean" in recording:
                x0 = torch.cat([denoise(row, t).x0 for denoise, row, t in zip(denoisers, x.split(1), levels)])
                yield f"{case}.{name}.pred_xstart", x0, recording[f"{case}.{name}.pred_xstart"]
                mean = update(Ancestral(sde), denoisers, x, levels, still)
                yield f"{case}.{name}.mean", mean, recording[f"{case}.{name}.mean"]
        if kind in ("eps_small", "eps_large"):
            step, noise = Ancestral(sde, v=float(kind == "eps_large")), recording[f"{case}.noise_p_sample"]
            noise = torch.where(column(recording["t"]) > 0, noise, 0)
            ours = update(step, [clipped(denoise) for denoise in plain], x, levels, noise)
            yield f"{case}.p_sample", ours, recording[f"{case}.p_sample"]
        rows = [i for i, t in enumerate(levels) if sde.sigma(torch.tensor(t)) > 0.1 or kind != "x0_range"]
        for eta, noise in zip((0.0, 0.5, 1.0), recording[f"{case}.noise_ddim"]):
            ours = update(DDIM(sde, eta), plain, x, levels, noise)
            yield f"{case}.ddim_eta{eta:g}", ours[rows], recording[f"{case}.ddim_eta{eta:g}"][rows]


def estimate(sde: SDE, kind: str, f: Tensor) -> Callable[[Tensor, float], Prediction]:
    """A model whose output f is the data or the noise."""
    return lambda x, t: Prediction(f if kind.startswith("x0") else sde.x0(x, f, t))


def clipped(denoise: Callable[[Tensor, float], Prediction]) -> Callable[[Tensor, float], Prediction]:
    return lambda x, t: Prediction(denoise(x, t).x0.clamp(-1, 1))


def update(step: Step, denoisers: list, x: Tensor, levels: list[float], noise: Tensor) -> Tensor:
    """Moves each sample, with its own denoiser, from its level to the next one."""
    samples = zip(denoisers, x.split(1), levels, noise.split(1))
    return torch.cat([step(denoise, row, t, t - 1, replay(z[None])) for denoise, row, t, z in samples])


# --- the bound --------------------------------------------------------------------------------------------------------


def published_log_ndtr(x: Tensor) -> Tensor:
    """The reference's approximation 1/2 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)) / 2 of the normal distribution
    function."""
    return torch.nn.functional.logsigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def published(function: Callable, *args, **kwargs) -> Tensor:
    """Evaluates ``function`` with the reference's distribution function and bins: 256 levels from -1 to 1.

    The bins of those levels fill [-256/255, 256/255]; ours fill [-1, 1], which the caller of ``log_prob_bins`` gives as
    ``edge``, so the edge is replaced there.
    """

    def bins(x0: Tensor, mean: Tensor, std: Tensor, bin_width: float, edge: float) -> Tensor:
        return log_prob_bins(x0, mean, std, bin_width, edge=256 / 255)

    with patch("torch.special.log_ndtr", published_log_ndtr), patch("score_sde.sde_lib.bound.log_prob_bins", bins):
        return function(*args, **kwargs)


def share_of(sde: SDE, kind: str, level: Tensor, channel: Tensor) -> Tensor:
    """Interpolation weight of the variance: from the channel, or fixed; at level 1 the reference uses level 2's
    posterior."""
    if kind.endswith("_range"):
        return 0.5 * (channel + 1)
    return torch.where(level > 1, float(kind.endswith("_large")), 0.0).expand_as(channel)


def bounds(sde: SDE, level: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations of the posterior and of the forward step."""
    second = level.clamp(min=2)
    return sde.bridge(0.0, 1.0, second, second - 1, eta=1.0)[1], sde.transition(level - 1, level)[1]


def in_bits(nats: Tensor, like: Tensor) -> Tensor:
    return nats / (like[0].numel() * math.log(2))


def predictions(recording: Recording) -> Iterator[tuple[str, str, Discrete, Tensor, Tensor, Prediction]]:
    """Yields (case, kind, chain, level, x_t, model output) in double precision, for models with bounded variances."""
    level, output = column(recording["t"].double() + 1), recording["model_output"].double()
    about = parameters(recording.name)
    for case in about["cases"]:
        schedule, kind = case.split(".")
        if kind == "eps_learned":
            continue
        sde, x = chain(schedule, about["T"]), recording[f"{schedule}.x_t"].double()
        found = estimate(sde, kind, output[:, :3])(x, level).x0
        yield case, kind, sde, level, x, Prediction(found, share_of(sde, kind, level, output[:, 3:]))


def variances(recording: Recording) -> Iterator[Comparison]:
    """Compares the log variances of reverse steps, fixed and learned."""
    for case, _, sde, level, _, prediction in predictions(recording):
        name = f"{case}.noclip.log_variance"
        if name in recording:
            yield name, 2 * torch.log(reverse_std(*bounds(sde, level), prediction.v)), recording[name]


def step_bounds(recording: Recording) -> Iterator[Comparison]:
    """Compares the terms of the bound; the reference clips probabilities at 1e-12, which wild estimates of x0 reach."""
    x0 = recording["x_start"].double()
    for case, kind, sde, level, x, plain in predictions(recording):
        rows = slice(int(kind.startswith("x0")), None)
        for name, clip in {"noclip": 1e9, "clip": 1.0}.items():
            prediction = plain._replace(x0=plain.x0.clamp(-clip, clip))
            ours = in_bits(published(step_bound, sde, prediction, x0, x, level, 0.0, 2 / 255), x0)
            if f"{case}.{name}.vb_bpd" in recording:
                yield f"{case}.{name}.vb_bpd", ours[rows], recording[f"{case}.{name}.vb_bpd"][rows]
    for schedule in ("linear", "cosine"):
        sde = chain(schedule, parameters(recording.name)["T"])
        yield f"{schedule}.prior_bpd", in_bits(prior_term(sde, x0), x0), recording[f"{schedule}.prior_bpd"]


def objectives(recording: Recording) -> Iterator[Comparison]:
    """Compares training losses: rescaled_kl is our bound, rescaled_mse our hybrid; the others are scaled to one level
    of T."""
    x0, eps = recording["x_start"].double(), recording["q_noise"].double()
    for case, kind, sde, level, _, prediction in predictions(recording):
        if not kind.endswith("_range"):
            continue
        weight = WEIGHTS["x0" if kind.startswith("x0") else "simple"]
        bound, hybrid = Bound(sde, 2 / 255), Hybrid(sde, weight, 2 / 255)
        told = (lambda x, t, prediction=prediction: prediction, x0, eps, level, None, 0.0)
        simple, whole, both = hybrid.simple(*told), published(bound, *told), published(hybrid, *told)
        ours = {
            "mse.mse": simple,
            "mse.vb": whole / sde.t_max,
            "mse.loss": simple + whole / sde.t_max,
            "rescaled_mse.loss": both,
            "kl.loss": whole / sde.t_max,
        }
        rows = slice(int(kind.startswith("x0")), None)
        for name, values in ours.items():
            yield f"{case}.training.{name}", values[rows], recording[f"{case}.training.{name}"][rows]
        theirs = recording[f"{case}.training.rescaled_kl.loss"] / sde.t_max
        yield f"{case}.training.rescaled_kl.loss", whole[rows] / sde.t_max, theirs[rows]


def laws(recording: Recording) -> Iterator[Comparison]:
    """Compares the divergence of normals, given log variances, and the masses of bins around the data."""
    x0, eps, output = (recording[key].double() for key in ("x_start", "q_noise", "model_output"))
    mean, channel = output.chunk(2, 1)
    yield "normal_kl", kl(x0, torch.exp(0.5 * channel), eps, torch.exp(0.5 * mean)), recording["normal_kl"]
    masses = published(log_prob_data, x0, x0 + 0.02 * eps, torch.exp(channel - 3), 2 / 255)
    yield "discretized_ll", masses, recording["discretized_ll"]


def whole_bounds(recording: Recording) -> Iterator[Comparison]:
    """Compares the bound over a respaced chain with clipped estimates; the reference starts at the last level."""
    for case, about in recording.cases.items():
        if about["kind"] != "bpd":
            continue
        late = recording[f"{case}.timestep_map"].double() + 1
        early = torch.cat([torch.zeros(1).double(), late[:-1]])
        sde = Discrete.of_betas(chain(about["schedule"]).transition(early, late)[1] ** 2)
        x0 = recording[f"{case}.x_start"].double()
        draw = replay(recording[f"{case}.noise"].flip(0))
        found = published(variational_bound, sde, network(about, sde, x0), x0, draw, 0.0, 2 / 255)
        snr = torch.exp(sde.log_snr(torch.arange(1, len(late) + 1).double()))
        ours = {
            "total_bpd": in_bits(found.nats, x0),
            "prior_bpd": in_bits(found.prior, x0),
            "vb": in_bits(found.levels.flip(1), x0),
            "xstart_mse": found.distortion.flip(1) ** 2,
            "mse": (snr * found.distortion**2).flip(1),
        }
        for name, values in ours.items():
            yield f"{case}.{name}", values, recording[f"{case}.{name}"]


# --- whole chains -----------------------------------------------------------------------------------------------------


def network(about: dict, sde: SDE, like: Tensor) -> Callable[[Tensor, float], Prediction]:
    """The exact denoiser of N(mu, s^2) and the variance weight, a channel in [-1, 1]."""
    mean = torch.full((1, *like.shape[1:]), about["mu"], dtype=torch.float64)
    exact = GaussianMixture(torch.ones(1).double(), mean, about["s"] ** 2).denoiser(sde)
    denoise = clipped(exact) if about["options"].get("clip_denoised", True) else exact
    share = 0.5 * (about["var_channel"] + 1)
    return lambda x, t: Prediction(denoise(x, t).x0, torch.full_like(x, share))


def chains(recording: Recording) -> Iterator[Comparison]:
    """Compares whole respaced chains, the ancestral ones with a learned variance."""
    for case, about in recording.cases.items():
        if about["kind"] == "bpd" or about["cond_fn"]:
            continue
        sde, x = chain(about["schedule"]), recording[f"{case}.x_T"]
        denoise = network(about, sde, x)
        step = LearnedVariance(sde) if about["kind"] == "ddpm" else DDIM(sde, about["options"].get("eta", 0.0))
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
    group("variances of reverse moves", "steps", per_element, 1e-4, "normal_kl", variances),
    group("terms of the bound", "steps", per_hundredth_element, 1e-4, "normal_kl", step_bounds),
    group("training losses with the bound", "steps", per_hundredth_element, 1e-4, "normal_kl", objectives),
    group("divergences and masses of bins", "steps", per_element, 1e-4, "normal_kl", laws),
    group("the whole bound of a respaced chain", "chains", per_element, 1e-4, "bpd.linear.30.vb", whole_bounds),
    group("ancestral and DDIM updates in float32", "steps", per_unit_element, 1e-4, "linear.eps_range.p_sample", steps),
    group("ancestral and DDIM chains in float32", "chains", per_unit_element, 1e-4, "ddim.linear.ddim25.x", chains),
)
