"""score_sde_pytorch: processes, chains, predictors, correctors, flow, likelihood and losses.

The reference evaluates its score at the continuous marginal but moves along the chain of N levels. Here a denoiser of
the chain returns that score, so the two can be compared. Its table index i is our level i + 1.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from parity.recordings import (
    Comparison,
    Group,
    Recording,
    absolute,
    column,
    gaussian,
    parameters,
    per_element,
    per_sample,
    replay,
)
from score_sde.samplers import (
    GRIDS,
    ODE,
    Ancestral,
    EulerMaruyama,
    PredictorCorrector,
    ReverseDiffusion,
    masked,
    replacement,
)
from score_sde.samplers.loop import Step
from score_sde.samplers.predictor_corrector import PREDICTORS, Corrector
from score_sde.sde_lib import (
    SDE,
    TIMESTEP_SAMPLERS,
    VESDE,
    VPSDE,
    WEIGHTS,
    Discrete,
    Flow,
    Gaussian,
    SubVPSDE,
    denoising_loss,
    log_prob,
)
from score_sde.sde_lib.denoiser import Prediction
from score_sde.sde_lib.process import Time
from score_sde.sde_lib.runge_kutta import DormandPrince
from score_sde.sde_lib.trace import Exact, Hutchinson


def process(about: dict, t_min: float) -> SDE:
    """The continuous process with the recorded parameters."""
    if about["sde"] == "ve":
        return VESDE(about["sigma_min"], about["sigma_max"], t_min)
    return {"vp": VPSDE, "subvp": SubVPSDE}[about["sde"]](about["beta_min"], about["beta_max"], t_min)


def levels(t: Tensor, num_levels: int) -> Tensor:
    """The level of the chain that the reference uses at time t, by truncation."""
    return (t.double() * (num_levels - 1)).long() + 1


def on_chain(chain: SDE, score: Callable[[Tensor, Time], Tensor], time_of: Callable[[Time], Time]) -> Callable:
    """Denoiser of a chain that returns the score of the continuous marginal at the time of the level."""
    return lambda x, level: Prediction(chain.x0_of_score(x, score(x, time_of(level)), level))


def zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like)


# --- sde_math ---------------------------------------------------------------------------------------------------------


def marginals(recording: Recording, ours: torch.dtype, theirs: str, after: float = 0.0) -> Iterator[Comparison]:
    """Compares the process at times above ``after``: at t = 0, VP and sub-VP have no noise and no finite log-SNR."""
    sde = process(parameters("sde_math/params")["cases"][recording.name.split("/")[1]], t_min=1e-5)
    rows = recording["t"] > after
    t, x = column(recording["t"][rows]).to(ours), recording["x"][rows].to(ours)
    alpha, sigma, _ = sde.marginal(t)
    yield "mean", alpha * x, recording[f"mean{theirs}"][rows]
    yield "std", sigma.flatten(), recording[f"std{theirs}"][rows]
    yield "drift", sde.drift(t) * x, recording[f"drift{theirs}"][rows]
    yield "diffusion", sde.diffusion(t).flatten(), recording[f"diffusion{theirs}"][rows]
    yield "prior_logp", sde.prior_log_prob(recording["z"].to(ours)), recording[f"prior_logp{theirs}"]


def exact_scores(recording: Recording, theirs: str = "", noise: float = 1e-3) -> Iterator[Comparison]:
    """Compares the x0 estimate that the score implies; the score itself where sigma^2 leaves it enough digits."""
    sde = process(parameters("sde_math/params")["cases"][recording.name.split("/")[1]], t_min=1e-5)
    exact = gaussian(recording, recording["x"].shape[1:]).denoiser(sde)
    sigma = sde.sigma(recording["t"])
    for name, rows in {"x0 of score": sigma > 0, "score": sigma > noise}.items():
        t, x, score = column(recording["t"][rows]), recording["x"][rows], recording[f"score{theirs}"][rows]
        if name == "score":
            yield name, exact.score(x, t), score
        else:
            yield name, exact(x, t).x0, sde.x0_of_score(x, score, t)


def reverse_processes(recording: Recording, theirs: str = "", after: float = 0.0) -> Iterator[Comparison]:
    """Compares drifts and diffusions, from steps of length 1: x - step(x) without noise is the drift."""
    about = parameters("sde_math/params")["cases"][recording.name.split("/")[1]]
    sde, num_levels = process(about, t_min=1e-5), about["N"]
    rows = recording["t"] > after
    t, x, score = column(recording["t"][rows]), recording["x"][rows], recording["score"][rows]
    level = levels(t, num_levels).double()

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return Prediction(sde.x0_of_score(x, score, t))

    def moves(step: Step, denoise: Callable, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Returns minus the mean move, and the scale of the noise."""
        mean = step(denoise, x, t, s, zeros)
        return x - mean, (step(denoise, x, t, s, torch.ones_like) - mean)[:, 0, 0, 0]

    drift, diffusion = moves(EulerMaruyama(sde), denoise, t, t - 1)
    yield "rsde_drift", drift, recording[f"rsde_drift{theirs}"][rows]
    yield "rsde_diffusion", diffusion, recording[f"rsde_diffusion{theirs}"][rows]

    alpha, sigma, _ = sde.marginal(t)
    ratio, growth = sigma / alpha, 0.5 * (sde.diffusion(t) / sigma) ** 2  # r, and d log r / dt
    radius = (1 + ratio**2).sqrt()  # x = alpha radius u, and theta = atan r
    velocity, _ = Flow(sde, denoise, Gaussian.standard(x))(torch.atan(ratio), x / (alpha * radius))
    stretch = sde.drift(t) + (ratio / radius) ** 2 * growth
    flow = stretch * x + alpha * radius * velocity * ratio / radius**2 * growth
    yield "ode_drift", flow, recording[f"ode_drift{theirs}"][rows]

    if isinstance(sde, SubVPSDE):  # the reference has no such chain and takes Euler-Maruyama steps
        f, g = sde.drift(t) / num_levels * x, sde.diffusion(t) / math.sqrt(num_levels)
        reverse_f, reverse_g = moves(EulerMaruyama(sde), denoise, t, t - 1 / num_levels)
    else:
        chain = sde.discretize(num_levels)
        a, g = chain.transition(level - 1, level)
        f = (a - 1) * x
        reverse_f, reverse_g = moves(
            ReverseDiffusion(chain), on_chain(chain, lambda x, t: score, lambda _: t), level, level - 1
        )
    yield "f", f, recording[f"f{theirs}"][rows]
    yield "G", g.flatten(), recording[f"G{theirs}"][rows]
    yield "rsde_f", reverse_f, recording[f"rsde_f{theirs}"][rows]
    yield "rsde_G", reverse_g, recording[f"rsde_G{theirs}"][rows]


def tables(recording: Recording, theirs: str = "") -> Iterator[Comparison]:
    about = parameters("sde_math/params")["cases"][recording.name.split("/")[1]]
    sde, num_levels = process(about, about["eps"]), about["N"]
    times = GRIDS["uniform"](sde, num_levels - 1)
    yield "pc_timesteps", times, recording[f"pc_timesteps{theirs}"]
    if isinstance(sde, SubVPSDE):
        return
    chain, level = sde.discretize(num_levels), torch.arange(1, num_levels + 1, dtype=torch.float64)
    alpha, sigma, _ = chain.marginal(level)
    a, b = chain.transition(level - 1, level)
    chains = {
        "table_discrete_betas": b**2,
        "table_alphas": a**2,
        "table_alphas_cumprod": alpha**2,
        "table_sqrt_alphas_cumprod": alpha,
        "table_sqrt_1m_alphas_cumprod": sigma,
        "get_ddpm_params_betas": b**2,
        "get_ddpm_params_alphas_cumprod": alpha**2,
        "table_discrete_sigmas": sigma,
        "get_sigmas": sigma.flip(0),
    }
    for name, ours in chains.items():
        if f"{name}{theirs}" in recording:
            yield name, ours, recording[f"{name}{theirs}"]


# --- sampler_steps ----------------------------------------------------------------------------------------------------


def predictors(recording: Recording, precision: str = "") -> Iterator[Comparison]:
    """Compares one update of each sample at its own time, one at a time because a sampler's time is a number."""
    about = parameters(recording.name)["sde"]
    sde, num_levels = process(about, about["eps"]), about["N"]
    exact = gaussian(recording, recording["x_in"].shape[1:]).denoiser(sde)
    chain = sde if isinstance(sde, SubVPSDE) else sde.discretize(num_levels)
    steps = {
        "pred.euler_maruyama": EulerMaruyama(sde),
        "pred.reverse_diffusion": EulerMaruyama(sde) if chain is sde else ReverseDiffusion(chain),
        "pred.ancestral_sampling": Ancestral(chain, v=1.0 if isinstance(sde, VPSDE) else 0.0),
        "pred.none": PREDICTORS["none"](sde),
    }
    for case, step in steps.items():
        if f"{case}.x_out{precision}" not in recording:
            continue
        noise, out, mean = (recording[f"{case}.{key}{precision}"] for key in ("noise", "x_out", "x_mean"))
        x_in = recording["x_in"].to(out.dtype)
        rows, means = [], []
        for i, t in enumerate(recording["t"].to(out.dtype).tolist()):
            level = float(levels(torch.tensor(t), num_levels))
            if step.sde is sde:
                denoise, late, early = exact, t, t - 1 / num_levels
            else:
                denoise, late, early = on_chain(chain, exact.score, lambda _, t=t: t), level, level - 1
            rows.append(step(denoise, x_in[i : i + 1], late, early, replay(noise[:, i : i + 1])))
            means.append(step(denoise, x_in[i : i + 1], late, early, zeros))
        yield f"{case}.x_out", torch.cat(rows), out
        yield f"{case}.x_mean", torch.cat(means), mean


def correctors(recording: Recording, precision: str = "") -> Iterator[Comparison]:
    """Compares updates of the whole batch, with the published means of the norms over the batch."""
    about = parameters(recording.name)["sde"]
    sde = process(about, about["eps"])
    exact = gaussian(recording, recording["x_in"].shape[1:]).denoiser(sde)
    for case, options in recording.cases.items():
        if options["kind"] != "corrector" or f"{case}.x_out{precision}" not in recording:
            continue
        out = recording[f"{case}.x_out{precision}"]
        t, x = column(recording["t"]).to(out.dtype), recording["x_in"].to(out.dtype)
        noise = recording[f"{case}.noise{precision}"]
        yield f"{case}.x_out", _correct(sde, about["N"], exact.score, options, x, t, noise), out


def _correct(sde: SDE, num_levels: int, score: Callable, options: dict, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """One corrector at time t: alpha of the chain; sigma of the continuous marginal for the annealed corrector."""
    if options["name"] == "none":
        return Corrector(sde, "ald", options["snr"], 0)(None, x, t, t, replay(noise))
    level = levels(t, num_levels).double()
    a = sde.discretize(num_levels).transition(level - 1, level)[0]
    early = t.double() if isinstance(sde, VESDE) else _time_of_log_alpha(sde, sde.log_alpha(t.double()) - a.log())
    kind = {"langevin": "langevin_batch", "ald": "ald"}[options["name"]]
    correct = Corrector(sde, kind, options["snr"], options["n_steps"])
    return correct(on_chain(sde, score, lambda t: t), x, t, early.to(t), replay(noise))


def _time_of_log_alpha(sde: SDE, log_alpha: Tensor) -> Tensor:
    """Time at which a variance-preserving process has this log alpha."""
    return sde.time(2 * log_alpha - torch.log(-torch.expm1(2 * log_alpha)))


# --- sampler_runs -----------------------------------------------------------------------------------------------------


def predictor_corrector_runs(recording: Recording, precision: str = "") -> Iterator[Comparison]:
    """Compares whole chains from the recorded start through the recorded noise, without noise in the last update."""
    for case, options in recording.cases.items():
        if options["probability_flow"] or f"{case}.x{precision}" not in recording:
            continue
        sde, num_levels = process(options["sde"], options["sde"]["eps"]), options["sde"]["N"]
        expected, noise = recording[f"{case}.x{precision}"], recording[f"{case}.noise{precision}"].clone()
        if options["denoise"]:
            noise[-1] = 0
        exact = gaussian(recording, expected.shape[1:]).denoiser(sde)
        times = GRIDS["uniform"](sde, num_levels - 1).tolist()
        x, draw = recording[f"{case}.prior_noise{precision}"] * sde.prior_std, replay(noise)
        if options["predictor"] == "euler_maruyama":
            for t in times:
                x = EulerMaruyama(sde)(exact, x, t, t - 1 / num_levels, draw)
        else:
            chain = sde.discretize(num_levels)
            time_of = {float(level): t for level, t in zip(range(num_levels, 0, -1), times)}
            step = _predictor_corrector(sde, chain, options, exact.score, time_of)
            denoise = on_chain(chain, exact.score, time_of.__getitem__)
            for level in range(num_levels, 0, -1):  # the reference's step to the data is like its other steps
                x = step(denoise, x, float(level), float(level - 1), draw)
        yield f"{case}.x", x, expected


def constrained_runs(recording: Recording, precision: str = "") -> Iterator[Comparison]:
    """Inpainting and colourisation: the known part is replaced after corrector and predictor, both at one time.

    The reference returns the last state with the mean of the known part; the rest still contains the noise. The first
    state of a colourisation is the prior with its first channel, rather than its grey, removed.
    """
    for case, options in recording.cases.items():
        if f"{case}.x{precision}" not in recording:
            continue
        expected, draw = recording[f"{case}.x{precision}"], replay(recording[f"{case}.noise{precision}"])
        sde, num_levels = process(options["sde"], options["eps"]), options["sde"]["N"]
        chain, exact = sde.discretize(num_levels), gaussian(recording, expected.shape[1:]).denoiser(sde)
        if case.endswith("inpaint"):
            known, mask = recording["data"], recording["mask"]
            project, constrain = masked(mask), replacement(known, masked(mask), draw)
        else:
            known, mask = recording["gray"], torch.tensor([1, 0, 0]).reshape(3, 1, 1)
            project = mixing(_COLOURS[:, :1] @ _CHANNELS[:1])
            constrain = replacement(known, project, lambda x, draw=draw: mixing(_COLOURS)(draw(x)))
        times = GRIDS["uniform"](sde, num_levels - 1).tolist()
        time_of = dict(zip(range(num_levels, 0, -1), times))
        step = PredictorCorrector(chain, "reverse_diffusion", "langevin_batch", options["snr"], options["n_steps"])
        prior = recording[f"{case}.prior_noise{precision}"] * sde.prior_std
        x = prior - masked(mask)(prior) + project(known.to(prior))
        for level, t in time_of.items():
            alpha, sigma, _ = sde.marginal(t)
            step.correct.constrain = lambda x, *_, marginal=(alpha, sigma), constrain=constrain: constrain(x, *marginal)
            x = step(on_chain(chain, exact.score, time_of.__getitem__), x, float(level), float(level - 1), draw)
            x = constrain(x, alpha, sigma)
        yield f"{case}.x", constrain(x, alpha, 0.0), expected


def mixing(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """Applies a matrix to the channels of x (B, C, H, W)."""
    return lambda x: torch.einsum("ij,bjhw->bihw", matrix.to(x), x)


_CHANNELS = torch.tensor(
    [
        [5.7735014e-01, 5.7735026e-01, 5.7735026e-01],
        [-8.1649649e-01, 4.0824834e-01, 4.0824822e-01],
        [4.7008697e-08, 7.0710671e-01, -7.0710683e-01],
    ],
    dtype=torch.float64,
)
_COLOURS = torch.linalg.inv(_CHANNELS)
"""Rotation from colours to grey and two more channels, and back, to the reference's number of digits."""


def _predictor_corrector(sde: SDE, chain: SDE, options: dict, score: Callable, time_of: dict) -> PredictorCorrector:
    """The published sampler: on the chain, except annealed Langevin dynamics, which takes sigma of the continuous
    marginal."""
    predictor = {"ancestral_sampling": "ancestral"}.get(options["predictor"], options["predictor"])
    corrector = {"langevin": "langevin_batch", "ald": "ald", "none": "ald"}[options["corrector"]]
    num_steps = 0 if options["corrector"] == "none" else options["n_steps"]
    step = PredictorCorrector(chain, predictor, corrector, options["snr"], num_steps)
    if predictor == "ancestral" and isinstance(sde, VPSDE):
        step.predict = Ancestral(chain, v=1.0)
    if options["corrector"] == "ald":
        ald, denoise = Corrector(sde, "ald", options["snr"], num_steps), on_chain(sde, score, lambda t: t)
        step.correct = lambda _, x, t, s, draw: ald(denoise, x, time_of[t], time_of[t], draw)
    return step


def flow_runs(recording: Recording, tight: bool, theirs: str) -> Iterator[Comparison]:
    """Compares the flow from the prior to t_min; ``denoise`` adds the mean of one reverse-diffusion update."""
    for case, options in recording.cases.items():
        if (options["rtol"] < 1e-4) != tight or (options["denoise"] and theirs != "x"):
            continue  # the closed form holds for the flow alone
        sde, num_levels = process(options["sde"], options["sde"]["eps"]), options["sde"]["N"]
        z, expected = recording[f"{case}.z"], recording[f"{case}.{theirs}"]
        exact = gaussian(recording, z.shape[1:]).denoiser(sde)
        end = sde.t_min
        x = ODE(sde, rtol=options["rtol"], atol=options["atol"])(exact, z.to(expected.dtype), sde.t_max, end, zeros)
        if options["denoise"] and isinstance(sde, SubVPSDE):
            x = EulerMaruyama(sde)(exact, x, end, end - 1 / num_levels, zeros)
        elif options["denoise"]:
            chain = sde.discretize(num_levels)
            x = ReverseDiffusion(chain)(on_chain(chain, exact.score, lambda _, end=end: end), x, 1.0, 0.0, zeros)
        yield f"{case}.{theirs}", x, expected


# --- likelihood -------------------------------------------------------------------------------------------------------


def likelihoods(recording: Recording, theirs: str, rtol: float = 1e-5) -> Iterator[Comparison]:
    """Compares bits per dimension, or the latent, with the recorded probe or the exact trace.

    The reference estimates the trace of the drift's whole Jacobian; here the Jacobian of a standard normal is
    subtracted first. The estimates differ by |v|^2 / D - 1 times its change of volume, nonzero for a Gaussian probe v.
    """
    for case, options in recording.cases.items():
        if theirs in ("bpd_exact_trace", "z_exact") and case.endswith("gaussian"):
            continue  # no probe enters, so the number is the same for both kinds
        data = f"{case.split('.')[1]}."
        sde, x, v = (
            process(options["sde"], options["eps"]),
            recording[f"{data}data"].double(),
            recording[f"{case}.epsilon"],
        )
        exact, size = gaussian(recording, x.shape[1:], prefix=data).denoiser(sde), x[0].numel()
        recorded = Hutchinson(lambda x, v=v: v.to(x), kind="gauss")  # uses the recorded probes unchanged
        trace = Exact() if theirs == "bpd_exact_trace" else recorded
        result = log_prob(sde, exact, x, None, trace, options["eps"], DormandPrince(rtol, rtol))
        excess = 0.0 if theirs == "bpd_exact_trace" else v.double().square().flatten(1).sum(1) / size - 1
        flow = Flow(sde, exact, Gaussian.standard(x))
        nats = result.nats + excess * (flow.log_volume(sde.t_max) - flow.log_volume(options["eps"]))
        ours = result.latent if theirs.startswith("z") else options["offset"] - nats / (size * math.log(2))
        yield f"{case}.{theirs}", ours, recording[f"{case}.{theirs}"]


# --- losses -----------------------------------------------------------------------------------------------------------


def losses(recording: Recording, precision: str = "") -> Iterator[Comparison]:
    """Compares the published mean losses, and the published halved sums, which are D / 2 times the means."""
    for case, options in parameters(recording.name)["cases"].items():
        if f"{case}.loss{precision}" not in recording:
            continue
        expected, name = recording[f"{case}.loss{precision}"], case.split(".")[0]
        x0 = recording["batch"].to(expected.dtype)
        z = recording[f"{name}.z{precision}"]
        if name.endswith("_legacy"):
            sde, denoise, t = _legacy(options, column(recording[f"{name}.labels"]))
            t = t.to(expected.dtype)
        else:
            sde = process(options["sde"], t_min=1e-5)
            t, _ = TIMESTEP_SAMPLERS["uniform"](sde, column(recording[f"{name}.rand{precision}"]))
            denoise = gaussian(recording, x0.shape[1:]).denoiser(sde)
        weight = WEIGHTS["likelihood" if options.get("likelihood_weighting") else "simple"]
        loss = denoising_loss(sde, denoise, weight, x0, z, t).mean()
        yield f"{case}.loss", (loss if options["reduce_mean"] else loss * x0[0].numel() / 2)[None], expected[None]


def _legacy(options: dict, labels: Tensor) -> tuple[Discrete, Callable, Tensor]:
    """NCSN's loss of a score and DDPM's of the noise, at levels; NCSN numbers its levels from the noisiest."""
    sde = process(options["sde"], t_min=1e-5)
    chain = sde.discretize(options["sde"]["N"])
    if isinstance(sde, VESDE):
        level, convert = (options["sde"]["N"] - labels).double(), chain.x0_of_score
    else:
        level, convert = (labels + 1).double(), chain.x0
    return chain, lambda x, t: Prediction(convert(x, -0.3 * x / (1 + labels), t)), level


# --- the groups -------------------------------------------------------------------------------------------------------

_MATH = ("sde_math/vp", "sde_math/subvp", "sde_math/ve")
_STEPS = ("sampler_steps/vp", "sampler_steps/subvp", "sampler_steps/ve")
_CHAINS = ("sampler_runs/pc_runs",)
_CONSTRAINED = ("sampler_runs/controllable",)
_FLOWS = ("sampler_runs/ode_runs",)
_LIKELIHOOD = ("likelihood/likelihood",)
_LOSSES = ("losses/score_sde_losses",)


def group(
    what: str, files: tuple[str, ...], deviation: Callable, allowed: float, needs: str, compare: Callable
) -> Group:
    return Group("score_sde", what, files, deviation, allowed, compare, needs)


MATH = (
    group(
        "marginals, drift, diffusion, prior",
        _MATH,
        per_element,
        1e-9,
        "std",
        partial(marginals, ours=torch.float64, theirs=""),
    ),
    group(
        "the same in float32, t above 0.004",
        _MATH,
        per_element,
        2e-5,
        "std_f32",
        partial(marginals, ours=torch.float32, theirs="_f32", after=4e-3),
    ),
    group(
        "ours in float32, theirs in float64, t from 1e-5",
        _MATH,
        per_element,
        2e-6,
        "std",
        partial(marginals, ours=torch.float32, theirs=""),
    ),
    group("score of Gaussian data", _MATH, per_sample, 1e-9, "score", exact_scores),
    group("reverse SDE, flow, discretised SDE", _MATH, per_sample, 1e-9, "rsde_f", reverse_processes),
    group("tables of the chains, times of the samplers", _MATH, per_element, 1e-9, "pc_timesteps", tables),
    group(
        "score, theirs in float32, sigma above 0.02",
        _MATH,
        per_sample,
        1e-4,
        "score_f32",
        partial(exact_scores, theirs="_f32", noise=0.02),
    ),
    group(  # sqrt(alpha) x - x and 1 - alpha lose digits in the reference
        "reverse SDE, flow, discretised SDE, theirs in float32, t above 0.004",
        _MATH,
        per_sample,
        5e-4,
        "rsde_f_f32",
        partial(reverse_processes, theirs="_f32", after=4e-3),
    ),
    group(
        "tables and times, theirs in float32",
        _MATH,
        per_element,
        1e-4,
        "pc_timesteps_f32",
        partial(tables, theirs="_f32"),
    ),
)

SAMPLERS = (
    group("predictors, one update", _STEPS, per_sample, 1e-9, "pred.none.x_out", predictors),
    group(
        "predictors, one update in float32",
        _STEPS,
        per_sample,
        1e-5,
        "pred.none.x_out_f32",
        partial(predictors, precision="_f32"),
    ),
    group("correctors, 1 and 3 updates", _STEPS, per_sample, 1e-9, "corr.none_n1.x_out", correctors),
    group(  # in float32 the score from x0 keeps 6e-8 / sigma^2; the tolerance is three times the predictors'
        "correctors, 1 and 3 updates in float32",
        _STEPS,
        per_sample,
        3e-5,
        "corr.none_n1.x_out_f32",
        partial(correctors, precision="_f32"),
    ),
    group("predictor-corrector runs", _CHAINS, per_sample, 1e-9, "ve.none.ald.noisy.x", predictor_corrector_runs),
    group(
        "predictor-corrector runs in float32",
        _CHAINS,
        per_sample,
        1e-3,
        "ve.none.ald.noisy.x_f32",
        partial(predictor_corrector_runs, precision="_f32"),
    ),
    group("inpainting and colourisation", _CONSTRAINED, per_sample, 1e-9, "vp.inpaint.x", constrained_runs),
    group(
        "inpainting and colourisation in float32",
        _CONSTRAINED,
        per_sample,
        1e-3,
        "vp.inpaint.x_f32",
        partial(constrained_runs, precision="_f32"),
    ),
    group(
        "ODE runs in float32, rtol 1e-5",
        _FLOWS,
        absolute,
        1e-4,
        "mu",
        partial(flow_runs, tight=True, theirs="x"),
    ),
    group(
        "ODE runs, rtol 1e-5, closed form",
        _FLOWS,
        absolute,
        1e-4,
        "mu",
        partial(flow_runs, tight=True, theirs="x_exact_flow_at_eps"),
    ),
    group(
        "ODE runs, rtol 1e-3, closed form",
        _FLOWS,
        absolute,
        5e-3,
        "mu",
        partial(flow_runs, tight=False, theirs="x_exact_flow_at_eps"),
    ),
)

DENSITIES = (
    group(
        "bits per dimension, recorded probe",
        _LIKELIHOOD,
        absolute,
        1e-4,
        "full.mu",
        partial(likelihoods, theirs="bpd"),
    ),
    group("latent of the likelihood", _LIKELIHOOD, per_sample, 1e-4, "full.mu", partial(likelihoods, theirs="z")),
    group(
        "bits per dimension, recorded probe, closed form",
        _LIKELIHOOD,
        absolute,
        1e-5,
        "full.mu",
        partial(likelihoods, theirs="bpd_exact_with_epsilon", rtol=1e-6),
    ),
    group(
        "bits per dimension, exact trace, closed form",
        _LIKELIHOOD,
        absolute,
        1e-4,
        "full.mu",
        partial(likelihoods, theirs="bpd_exact_trace"),
    ),
    group(
        "latent of the likelihood, closed form",
        _LIKELIHOOD,
        per_sample,
        1e-5,
        "full.mu",
        partial(likelihoods, theirs="z_exact", rtol=1e-6),
    ),
)

OBJECTIVES = (
    group("losses", _LOSSES, per_sample, 1e-9, "vp.sum.plain.loss", losses),
    group("losses in float32", _LOSSES, per_sample, 1e-5, "vp.sum.plain.loss_f32", partial(losses, precision="_f32")),
)

GROUPS = (*MATH, *SAMPLERS, *DENSITIES, *OBJECTIVES)
