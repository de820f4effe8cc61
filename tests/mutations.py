"""Typical mistakes in code of this kind; each, injected alone, has to fail the selftest.

A mutation replaces one piece of a function's source. The function is compiled again and its new code object is put into
the same function object, so every table and every module that imported the function runs the mistake.
"""

import ast
import functools
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from score_sde.selftest import Row, Setting
from score_sde.selftest.groups import CHECKS, results


class Mutation(NamedTuple):
    """One mistake.

    Args:
        name: description of the mistake.
        group: the checks expected to fail first.
        where: module:function or module:class.method.
        old: a piece of source that occurs once.
        new: its replacement.
    """

    name: str
    group: str
    where: str
    old: str
    new: str


def function_of(where: str):
    """Returns the function at module:name, without its decorators."""
    module, _, path = where.partition(":")
    found = functools.reduce(getattr, path.split("."), importlib.import_module(f"score_sde.{module}"))
    return inspect.unwrap(getattr(found, "__func__", found))


def source_of(where: str) -> str:
    """Source of the function, without the indentation of its class."""
    return textwrap.dedent(inspect.getsource(function_of(where)))


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Applies the mutation within a ``with`` block.

    Raises: LookupError if ``old`` no longer occurs once in the source.
    """
    function = function_of(mutation.where)
    source = source_of(mutation.where)
    if source.count(mutation.old) != 1:
        raise LookupError(f"{mutation.where} holds {mutation.old!r} {source.count(mutation.old)} times: write it anew")
    tree = ast.parse(source.replace(mutation.old, mutation.new))
    tree.body[0].decorator_list = []
    scope = {}
    exec(compile(tree, f"<{mutation.name}>", "exec"), function.__globals__, scope)
    original = function.__code__
    function.__code__ = scope[function.__name__].__code__
    try:
        yield
    finally:
        function.__code__ = original


OWN_TEXT = tuple(f"stopped by {kind}:" for kind in ("AttributeError", "NameError", "SyntaxError", "TypeError"))
"""Start of a row that reports code that cannot run; such a failure is no evidence that a check detects the mistake."""


def noticed(mutation: Mutation) -> tuple[str, Row] | None:
    """Returns the first row that fails under the mutation, and its group; the expected group runs first.

    Raises: LookupError for a mutation whose code does not run.
    """
    setting = Setting(torch.device("cpu"), torch.float64)
    with applied(mutation):
        for group in (mutation.group, *(CHECKS.keys() - {mutation.group})):
            for row in results(group, setting):
                if not row.passed:
                    if row.what.startswith(OWN_TEXT):
                        raise LookupError(f"{mutation.name}: its text does not run, {row.what}; write it anew")
                    return group, row
    return None


PROCESS, LEAVES, CHAIN = "sde_lib.process:SDE", "sde_lib.processes", "sde_lib.process"
SCHEDULES = "sde_lib.schedules"
DENOISER, LOSSES, LAWS = "sde_lib.denoiser", "sde_lib.losses", "sde_lib.timestep_samplers"
FLOW, LIKELIHOOD, TRACE = "sde_lib.flow:Flow", "sde_lib.likelihood", "sde_lib.trace"
ADAMS, DORMAND, DEQUANTIZE = "sde_lib.adams_pece", "sde_lib.runge_kutta:DormandPrince", "sde_lib.dequantization"
MATCHING = "sde_lib.score_matching"
BOUND = "sde_lib.bound"
GAUSSIAN, NODES = "sde_lib.gaussian:Gaussian", "sde_lib.nodes"
STOCHASTIC, CORRECTOR = "samplers.stochastic", "samplers.predictor_corrector"
LANGEVIN, MULTISTEP = "samplers.langevin", "samplers.pndm"

MUTATIONS = [
    # --- processes ----------------------------------------------------------------------------------------------------
    Mutation("VP: signal decays twice as fast", "processes", f"{LEAVES}:VPSDE.log_alpha", "-0.5 * t", "-1.0 * t"),
    Mutation("VP: the ramp of beta not halved", "processes", f"{LEAVES}:VPSDE.log_alpha", "+ 0.5 * t", "+ t"),
    Mutation("VP: variance for deviation", "processes", f"{LEAVES}:VPSDE.sigma", "torch.sqrt(", "("),
    Mutation("VP: 1 - exp(-x) cancels", "processes", f"{LEAVES}:VPSDE.sigma", "-torch.expm1(", "1 - torch.exp("),
    Mutation(
        "sub-VP: deviation of VP",
        "processes",
        f"{LEAVES}:SubVPSDE.sigma",
        "-torch.expm1(2 * self.log_alpha(t))",
        "torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))",
    ),
    Mutation(
        "cosine: offset once instead of twice",
        "processes",
        f"{LEAVES}:CosineSDE.sigma",
        "2 * self._start",
        "self._start",
    ),
    Mutation(
        "VE: prior N(0, 1)",
        "processes",
        f"{LEAVES}:VESDE.__init__",
        "self.prior_std = sigma_max",
        "self.prior_std = 1.0",
    ),
    Mutation("VE: inverse of log-SNR lacks a half", "processes", f"{LEAVES}:VESDE.time", "-0.5 * log_snr", "-log_snr"),
    Mutation(
        "EDM: inverse of log-SNR by its sign", "processes", f"{LEAVES}:EDMSDE.time", "-0.5 * log_snr", "0.5 * log_snr"
    ),
    Mutation(
        "DDPM's chain: 999 for 1000",
        "processes",
        f"{LEAVES}:VPSDE.discretize",
        "self.beta_max / num_steps)",
        "self.beta_max / (num_steps - 1))",
    ),
    Mutation(
        "improved DDPM's chain: betas not capped",
        "processes",
        f"{LEAVES}:CosineSDE.discretize",
        "max=0.999",
        "max=0.9999",
    ),
    Mutation(
        "rectified: inverse of log-SNR lacks a half", "processes", f"{LEAVES}:RectifiedSDE.time", "-0.5 * log", "-log"
    ),
    Mutation(
        "rectified: prior N(0, 1)",
        "processes",
        f"{LEAVES}:RectifiedSDE.__init__",
        "t_min, t_max, t_max",
        "t_min, t_max, 1.0",
    ),
    Mutation("chain: the line of the level above", "processes", "sde_lib.discrete:_line", "floor()", "ceil()"),
    Mutation(
        "ladder: two deviations for three", "processes", "sde_lib.discrete:ladder_ratio", "width - 3", "width - 2"
    ),
    Mutation(
        "sigmoid: symmetrical part alone",
        "processes",
        f"{SCHEDULES}:SigmoidSDE.log_snr",
        " - self.width * t + odds",
        " + odds",
    ),
    Mutation("Laplace: a tail of 1", "processes", f"{SCHEDULES}:LaplaceSDE.time", "0.5 * torch", "1.0 * torch"),
    Mutation(
        "logistic: scale on the wrong side",
        "processes",
        f"{SCHEDULES}:LogisticSDE.time",
        ") / self.scale",
        ") * self.scale",
    ),
    Mutation(
        "learned schedule: pieces not stretched to one",
        "processes",
        f"{SCHEDULES}:MonotoneSchedule.density",
        "slopes / _rise(end, start)",
        "slopes",
    ),
    Mutation(
        "log-SNR of amplitudes, not of powers",
        "processes",
        f"{PROCESS}.marginal",
        "sigma, 2 * (log_alpha",
        "sigma, (log_alpha",
    ),
    Mutation("diffusion lacks a square root", "processes", f"{PROCESS}.diffusion", "torch.sqrt(-_", "(-_"),
    Mutation(
        "diffusion of the wrong time in the table",
        "processes",
        f"{PROCESS}.tabulate",
        "self.diffusion(times).tolist()",
        "self.diffusion(times.flip(0)).tolist()",
    ),
    Mutation(
        "transition upside down",
        "processes",
        f"{PROCESS}.transition",
        "late.alpha / early.alpha",
        "early.alpha / late.alpha",
    ),
    Mutation(
        "transition: noise of the wrong time", "processes", f"{PROCESS}.transition", "late.sigma * _", "early.sigma * _"
    ),
    Mutation(
        "share of new noise lacks a square root",
        "processes",
        f"{CHAIN}:_forgotten",
        "math.sqrt(-math.expm1(fall))",
        "-math.expm1(fall)",
    ),
    Mutation(
        "bridge: noise of the wrong time",
        "processes",
        f"{PROCESS}.bridge_weights",
        "early.sigma * forgotten",
        "late.sigma * forgotten",
    ),
    Mutation(
        "bridge: noise added, mean not shrunk",
        "processes",
        f"{PROCESS}.bridge_weights",
        "(1 - forgotten**2) ** 0.5",
        "1.0",
    ),
    Mutation(
        "bridge: the signal in eps forgotten",
        "processes",
        f"{PROCESS}.bridge_weights",
        "early.alpha - kept * late.alpha",
        "early.alpha",
    ),
    Mutation(
        "prior: normaliser lacks a 2",
        "processes",
        f"{PROCESS}.prior_log_prob",
        "math.sqrt(2 * math.pi)",
        "math.sqrt(math.pi)",
    ),
    # --- denoisers ----------------------------------------------------------------------------------------------------
    Mutation("score with the sign flipped", "denoisers", f"{PROCESS}.score", "(alpha * x0 - x)", "(x - alpha * x0)"),
    Mutation("score over sigma, not its square", "denoisers", f"{PROCESS}.score", "/ sigma**2", "/ sigma"),
    Mutation("noise added by its variance", "denoisers", f"{PROCESS}.perturb", "sigma * eps", "sigma**2 * eps"),
    Mutation(
        "eps-prediction with the sign flipped", "denoisers", f"{DENOISER}:_eps", "-marginal.ratio", "marginal.ratio"
    ),
    Mutation(
        "v-prediction as if alpha^2 + sigma^2 = 1",
        "denoisers",
        f"{DENOISER}:_v",
        "alpha / radius**2, -sigma / radius",
        "alpha, -sigma",
    ),
    Mutation(
        "edm: c_skip as if alpha = 1", "denoisers", f"{DENOISER}:_edm", "return alpha * sigma_data", "return sigma_data"
    ),
    Mutation("score-prediction lacks a square", "denoisers", f"{DENOISER}:_score", "sigma**2 / alpha", "sigma / alpha"),
    Mutation(
        "network input not scaled",
        "denoisers",
        f"{DENOISER}:Denoiser._network_output",
        "self.network(scale * x",
        "self.network(x",
    ),
    Mutation(
        "network told alpha, not log-SNR",
        "denoisers",
        f"{DENOISER}:Denoiser._network_output",
        "conditioning(self.c_noise(self.sde, t, marginal), x)",
        "conditioning(marginal.alpha, x)",
    ),
    Mutation(
        "log-SNR through bfloat16",
        "denoisers",
        f"{DENOISER}:conditioning",
        "c_noise.flatten().to(x.device, torch.float32)",
        "c_noise.flatten().to(x.device, torch.bfloat16).float()",
    ),
    Mutation(
        "embedding of log-SNR under autocast",
        "denoisers",
        "models.embeddings:LogSNREmbedding.forward",
        "torch.autocast(log_snr.device.type, enabled=False)",
        "torch.inference_mode(False)",
    ),
    # --- exact mixtures -----------------------------------------------------------------------------------------------
    Mutation(
        "posterior mean: gain lacks alpha",
        "exact",
        "sde_lib.exact:GaussianMixture.posterior_mean",
        "alpha * self.variances / variance",
        "self.variances / variance",
    ),
    Mutation(
        "mixture density: weights forgotten",
        "exact",
        "sde_lib.exact:GaussianMixture._components",
        "self.log_weights + log_density",
        "log_density",
    ),
    # --- moment-matched Gaussian
    # --------------------------------------------------------------------------------------------------
    Mutation(
        "moment-matched Gaussian: covariance around 0",
        "gaussian",
        f"{GAUSSIAN}.of",
        "part.to(dtype) - mean.to(dtype)",
        "part.to(dtype)",
    ),
    Mutation(
        "moment-matched Gaussian: noise within bins left out",
        "gaussian",
        f"{GAUSSIAN}.of",
        "(least) + extra",
        "(least)",
    ),
    Mutation(
        "moment-matched Gaussian: all variance for the directions left out",
        "gaussian",
        f"{GAUSSIAN}.of",
        "total - values.sum().item()",
        "total",
    ),
    Mutation(
        "moment-matched Gaussian: the width of a bin for its square",
        "gaussian",
        "engine.codecs:moment_matched",
        "bin_width(codec) ** 2",
        "bin_width(codec)",
    ),
    Mutation(
        "moment-matched Gaussian: directions count twice",
        "gaussian",
        f"{GAUSSIAN}.spectrum",
        "function(self.variances) - rest",
        "function(self.variances)",
    ),
    Mutation("whiten: r for its square", "gaussian", f"{GAUSSIAN}.noised", "square = ratio**2", "square = ratio"),
    Mutation("colour: the mean forgotten", "gaussian", f"{GAUSSIAN}.colour", "self.mean + ", ""),
    Mutation(
        "linear denoiser: signal and noise exchanged",
        "gaussian",
        f"{GAUSSIAN}.noised",
        "v / (v + square)",
        "square / (v + square)",
    ),
    Mutation("volume: the determinant for its root", "gaussian", f"{GAUSSIAN}.log_volume", "0.5 * ", ""),
    Mutation(
        "ratios: density for the slope", "gaussian", f"{NODES}:logistic_uniform", "1 / law(found)[1]", "law(found)[1]"
    ),
    Mutation(
        "ratios: the uniform part in r, not in log r",
        "gaussian",
        f"{NODES}:logistic_uniform",
        "(log_ratio - ends[0]) * uniform",
        "(np.exp(log_ratio) - low) / (high - low)",
    ),
    # --- losses -------------------------------------------------------------------------------------------------------
    Mutation("loss summed over dimensions", "losses", f"{LOSSES}:denoising_loss", ".mean(1)", ".sum(1)"),
    Mutation(
        "min-SNR clamped from the wrong side", "losses", f"{LOSSES}:min_snr", "clamp(max=gamma)", "clamp(min=gamma)"
    ),
    Mutation(
        "edm weight: product for sum", "losses", f"{LOSSES}:edm", "snr(sde, t) + sigma_data", "snr(sde, t) * sigma_data"
    ),
    Mutation("likelihood weight: g for g^2", "losses", f"{LOSSES}:likelihood", "** 2 *", "*"),
    Mutation("v weight without its 1", "losses", f"{LOSSES}:velocity", "return 1 + snr", "return snr"),
    Mutation(
        "importance correction upside down",
        "losses",
        f"{LAWS}:importance",
        "(highest - lowest) / (rate",
        "(highest - lowest) * (rate",
    ),
    Mutation(
        "importance: interval run from the wrong end",
        "losses",
        f"{LAWS}:importance",
        "sde.time(highest + (lowest - highest) * u)",
        "sde.time(lowest + (highest - lowest) * u)",
    ),
    Mutation("log-normal law of the variance", "losses", f"{LAWS}:lognormal", "log_snr = -2 * (", "log_snr = -1 * ("),
    Mutation("log-normal law: its tail normal too", "losses", f"{LAWS}:lognormal", "if tail:", "if not tail:"),
    Mutation("strata of the local batch", "losses", f"{LAWS}:stratified", "/ total", "/ num"),
    # --- bound --------------------------------------------------------------------------------------------------------
    Mutation(
        "learned variance: the variance mixed, not its logarithm",
        "bound",
        "sde_lib.process:reverse_std",
        "posterior ** (1 - v) * forward**v",
        "posterior * (1 - v) + forward * v",
    ),
    Mutation(
        "divergence: the laws exchanged", "bound", f"{BOUND}:kl", "as_tensor(std1 / std2", "as_tensor(std2 / std1"
    ),
    Mutation(
        "divergence: error over the width of the truth",
        "bound",
        f"{BOUND}:kl",
        "(mean1 - mean2) / std2",
        "(mean1 - mean2) / std1",
    ),
    Mutation(
        "bins: outer ones closed",
        "bound",
        f"{BOUND}:log_prob_bins",
        "bin_width - edge, x0 > edge - bin_width",
        "-9 * edge, x0 > 9 * edge",
    ),
    Mutation("bins: twice as wide", "bound", f"{BOUND}:log_prob_bins", "0.5 * bin_width", "bin_width"),
    Mutation(
        "bound: posterior of the level above",
        "bound",
        f"{BOUND}:step_bound",
        "second, second - 1,",
        "second + 1, second,",
    ),
    Mutation("bound: no decoder", "bound", f"{BOUND}:step_bound", "t > 1,", "t > 0,"),
    Mutation(
        "bound: last level left out", "bound", f"{BOUND}:variational_bound", "int(chain.t_max) + 1", "int(chain.t_max)"
    ),
    Mutation(
        "continuous bound: SNR of amplitudes",
        "bound",
        f"{BOUND}:diffusion_bound",
        "torch.exp(log_snr)",
        "torch.exp(0.5 * log_snr)",
    ),
    Mutation(
        "continuous bound: each evaluation counts for all", "bound", f"{BOUND}:diffusion_bound", "rises / num", "rises"
    ),
    Mutation(
        "continuous bound: the guess asked without noise",
        "bound",
        f"{BOUND}:diffusion_bound",
        "posterior_mean(x / alpha,",
        "posterior_mean(x0,",
    ),
    Mutation(
        "continuous bound: the guess errs by its bias alone", "bound", f"{BOUND}:_guess_error", "volume + known", "0"
    ),
    Mutation("decoder: neighbours closer than they are", "bound", f"{BOUND}:decoder_term", "0.5 * away", "0.25 * away"),
    Mutation("decoder: the density at its peak", "bound", f"{BOUND}:decoder_term", "math.pi * math.e", "math.pi"),
    Mutation(
        "decoder: levels told apart by their variance",
        "bound",
        f"{BOUND}:decoder_time",
        "DECODER_NOISE * bin_width",
        "(DECODER_NOISE * bin_width) ** 0.5",
    ),
    Mutation("objective bound: a level for all", "bound", f"{BOUND}:Bound.__call__", "self.sde.t_max / (", "1 / ("),
    Mutation("hybrid: the bound in full", "bound", f"{BOUND}:Hybrid.__call__", "self.bound_weight *", "1.0 *"),
    # --- score matching -----------------------------------------------------------------------------------------------
    Mutation(
        "implicit: the trace not doubled",
        "score_matching",
        f"{MATCHING}:Implicit.__call__",
        "2 * trace",
        "trace",
    ),
    Mutation(
        "implicit: weight on the score as on x0",
        "score_matching",
        f"{MATCHING}:Implicit.__call__",
        " * sigma**4 / alpha**2",
        "",
    ),
    Mutation(
        "sliced: projections summed, not averaged",
        "score_matching",
        f"{MATCHING}:Sliced.squared_norm",
        ".mean(0)",
        ".sum(0)",
    ),
    # --- noise --------------------------------------------------------------------------------------------------------
    Mutation("Philox of nine rounds", "noise", "samplers.noise:philox", "range(10)", "range(9)"),
    Mutation("Box and Muller lack a 2", "noise", "samplers.noise:normals", "mul_(-2.0)", "mul_(-1.0)"),
    Mutation(
        "noise by place in the batch, not by seed",
        "noise",
        "samplers.noise:states",
        "seeds.cpu().numpy().view(np.uint64)",
        "np.arange(len(seeds), dtype=np.uint64)",
    ),
    Mutation(
        "the same noise at every draw",
        "noise",
        "samplers.noise:Noise._ahead",
        "self.stream, self.draw, most",
        "self.stream, 0, most",
    ),
    Mutation("every run has the same noise", "noise", "engine.randomness:_stream", "16 * seed + purpose", "purpose"),
    # --- grids --------------------------------------------------------------------------------------------------------
    Mutation(
        "quadratic grid the wrong way round",
        "grids",
        "samplers.grids:quadratic",
        "torch.sqrt, torch.square",
        "torch.square, torch.sqrt",
    ),
    Mutation(
        "Karras's grid in log-SNR of powers", "grids", "samplers.grids:karras", "-0.5 / rho * sde", "-1.0 / rho * sde"
    ),
    Mutation(
        "a grid to the data of one step more", "grids", "samplers.grids:edm", "max(num_steps - 1, 1)", "num_steps"
    ),
    Mutation(
        "quadratic levels from the other end",
        "grids",
        "samplers.grids:levels_quadratic",
        "num_levels * i**2 // num_steps**2",
        "num_levels - num_levels * (num_steps - i) ** 2 // num_steps**2",
    ),
    Mutation("a grid of one step less", "grids", "samplers.grids:_spaced", "0, 1, num_steps + 1", "0, 1, num_steps"),
    # --- steps --------------------------------------------------------------------------------------------------------
    Mutation(
        "Euler-Maruyama: score with the sign flipped",
        "steps",
        f"{STOCHASTIC}:EulerMaruyama.__call__",
        "+ h * g**2",
        "- h * g**2",
    ),
    Mutation(
        "Euler-Maruyama: the flow's half of the score",
        "steps",
        f"{STOCHASTIC}:EulerMaruyama.__call__",
        "+ h * g**2",
        "+ 0.5 * h * g**2",
    ),
    Mutation(
        "Euler-Maruyama: h for its root in the noise",
        "steps",
        f"{STOCHASTIC}:EulerMaruyama.__call__",
        "root * g",
        "h * g",
    ),
    Mutation(
        "Euler-Maruyama: drift with the sign flipped",
        "steps",
        f"{STOCHASTIC}:EulerMaruyama.__call__",
        "(1 - h *",
        "(1 + h *",
    ),
    Mutation(
        "reverse diffusion: forward factor", "steps", f"{STOCHASTIC}:ReverseDiffusion.__call__", "(2 - a) * x", "a * x"
    ),
    Mutation(
        "reverse diffusion: b for b^2", "steps", f"{STOCHASTIC}:ReverseDiffusion.__call__", "b**2 * score", "b * score"
    ),
    Mutation(
        "ancestral: the two variances exchanged",
        "steps",
        "sde_lib.process:reverse_std",
        "posterior ** (1 - v) * forward**v",
        "posterior**v * forward ** (1 - v)",
    ),
    Mutation(
        "ddim: noise added, mean not shrunk",
        "steps",
        "samplers.ddim:DDIM.__call__",
        "t, s, self.eta)",
        "t, s, 0.0)\n    std = self.sde.bridge(x, x, t, s, self.eta)[1]",
    ),
    Mutation(
        "Heun: ratio upside down",
        "steps",
        "sde_lib.flow:trapezoidal",
        "late.ratio * (early.alpha / early.sigma)",
        "early.ratio * (late.alpha / late.sigma)",
    ),
    Mutation(
        "Heun: second look at the wrong time",
        "steps",
        "sde_lib.flow:trapezoidal",
        "denoise(y, s, **cond)",
        "denoise(y, t, **cond)",
    ),
    Mutation(
        "corrector: alpha off by one",
        "steps",
        f"{CORRECTOR}:Corrector.__call__",
        "self.sde.transition(s, t)[0]",
        "self.sde.marginal(t).alpha",
    ),
    Mutation("Langevin: noise lacks a 2", "steps", f"{LANGEVIN}:langevin", "(2 * h) ** 0.5", "h**0.5"),
    Mutation(
        "corrector: ratio not squared",
        "steps",
        f"{CORRECTOR}:Corrector.__call__",
        "(a * self.snr) ** 2",
        "(a * self.snr)",
    ),
    Mutation(
        "corrector: noise of the wrong time",
        "steps",
        f"{CORRECTOR}:Corrector.__call__",
        "self.sde.marginal(t).sigma",
        "self.sde.marginal(s).sigma",
    ),
    Mutation(
        "annealed Langevin: x stays, not x / alpha",
        "steps",
        f"{LANGEVIN}:AnnealedLangevin.__call__",
        "self._at(denoise, x, t, draw) / self.sde.transition(s, t)[0]",
        "self._at(denoise, x, t, draw)",
    ),
    Mutation(
        "annealed Langevin: one step size for all levels",
        "steps",
        f"{LANGEVIN}:AnnealedLangevin._at",
        "self.sde.marginal(t).sigma ** 2",
        "self.sde.marginal(self.sde.t_min).sigma ** 2",
    ),
    Mutation(
        "annealed Langevin: the variance of half the steps is held",
        "steps",
        f"{LANGEVIN}:langevin_step_size",
        "(1 - h) ** (2 * num_steps)",
        "(1 - h) ** num_steps",
    ),
    Mutation(
        "multistep: the past in the wrong order",
        "steps",
        f"{MULTISTEP}:PLMS.__call__",
        "[self.sde.eps(x, x0, t), *self.past[: self.order - 1]]",
        "[*self.past, self.sde.eps(x, x0, t)][-self.order :]",
    ),
    Mutation(
        "multistep: an order less",
        "steps",
        f"{MULTISTEP}:PLMS.__call__",
        "self.past[: self.order - 1]",
        "self.past[: self.order - 2]",
    ),
    Mutation(
        "Runge-Kutta start: no middle",
        "steps",
        f"{MULTISTEP}:PNDM._runge_kutta",
        "0.5 * (t + s)",
        "s",
    ),
    Mutation(
        "Runge-Kutta start: equal weights",
        "steps",
        f"{MULTISTEP}:PNDM._runge_kutta",
        "(first + 2 * second + 2 * third + fourth) / 6",
        "(first + second + third + fourth) / 4",
    ),
    Mutation(
        "consistency: noise of the time before",
        "steps",
        "samplers.consistency:ConsistencyStep.__call__",
        "draw(x), s)",
        "draw(x), t)",
    ),
    Mutation(
        "corrector after the predictor, at the time before",
        "steps",
        f"{CORRECTOR}:PredictorCorrector.__call__",
        "self.predict(denoise, self.correct(denoise, x, t, s, draw), t, s, draw)",
        "self.correct(denoise, self.predict(denoise, x, t, s, draw), t, s, draw)",
    ),
    Mutation(
        "corrector measures the batch, not the example",
        "sampling",
        f"{CORRECTOR}:by_norm",
        "square().sum(1).reshape",
        "square().sum(1).mean().expand(len(score)).reshape",
    ),
    # --- multistep, stages, control -----------------------------------------------------------------------------------
    Mutation(
        "multistep: noise of the forward move",
        "steps",
        "samplers.integrands:Coordinates.noise",
        "self.scale(end)[:, None] / self.scale(points)",
        "self.scale(points) / self.scale(end)[:, None]",
    ),
    Mutation(
        "multistep: noise lacks a 2", "steps", "samplers.integrands:Coordinates.noise", "-2 * (widths", "-1 * (widths"
    ),
    Mutation(
        "multistep: the scale of the flow for the reverse SDE",
        "steps",
        "samplers.integrands:Coordinates.scale",
        "** self.power",
        "",
    ),
    Mutation(
        "multistep: the pace of the flow for the reverse SDE",
        "steps",
        "samplers.integrands:Coordinates.pace",
        "-self.power /",
        "-1 /",
    ),
    Mutation(
        "multistep: a value that lacks the growth of its scale",
        "steps",
        "samplers.integrands:Coordinates.weights",
        "self.integrand.growth(ratio, self.std) - 1",
        "-1",
    ),
    Mutation(
        "multistep: polynomials in log r whatever the integration variable",
        "steps",
        "samplers.integrands:Coordinates.integration_variable",
        "self._variable(ratio, self.std, self.sde)",
        "np.log(ratio)",
    ),
    Mutation(
        "multistep: a move of two orders lower",
        "steps",
        "samplers.multistep:Multistep.counts",
        "1 + moves)",
        "np.maximum(moves - 1, 1))",
    ),
    Mutation(
        "multistep: a corrector that mends nothing",
        "steps",
        "samplers.multistep:Multistep.plan",
        "(weights + changes)",
        "weights",
    ),
    Mutation(
        "multistep: a correction added to what it corrects",
        "steps",
        "samplers.multistep:Multistep.plan",
        "changes[1:, 1:] -= weights[:-1, :-1]",
        "pass",
    ),
    Mutation(
        "multistep: no noise",
        "steps",
        "samplers.multistep:Multistep.__call__",
        "x.add_(draw(x), alpha=move.noise)",
        "x.add_(draw(x), alpha=0.0)",
    ),
    Mutation(
        "multistep: values of the trajectory before",
        "steps",
        "samplers.multistep:Multistep.reset",
        "self.past, self.moves = [],",
        "self.moves =",
    ),
    Mutation(
        "multistep: two values at most",
        "steps",
        "samplers.multistep:Multistep.orders",
        "self.order)",
        "min(self.order, 2))",
    ),
    Mutation(
        "stages: the first value at every stage",
        "steps",
        "samplers.singlestep:Singlestep.rule",
        "found[:, i, nodes] = self.coordinates.integrals(ratio[:, nodes],",
        "found[:, i, (0,) * len(nodes)] = self.coordinates.integrals(ratio[:, nodes],",
    ),
    Mutation(
        "stages: a Runge-Kutta method in r",
        "steps",
        "samplers.singlestep:RungeKutta.rule",
        "np.log(ratio[:, -1] / ratio[:, 0])",
        "ratio[:, -1] / ratio[:, 0] - 1",
    ),
    Mutation(
        "churn: noise of half the variance",
        "steps",
        "samplers.churn:Churn.add_noise",
        "self.noise * b * draw(x)",
        "0.5**0.5 * self.noise * b * draw(x)",
    ),
    Mutation(
        "churn: the state stays at its level", "steps", "samplers.churn:Churn.add_noise", "draw(x), later", "draw(x), t"
    ),
    Mutation(
        "adaptive SDE: the second look ignored",
        "steps",
        "samplers.adaptive:AdaptiveSDE.propose",
        "0.5 * (x0 + estimate(low, s))",
        "x0",
    ),
    Mutation(
        "adaptive SDE: no noise in the better state",
        "steps",
        "samplers.adaptive:AdaptiveSDE.propose",
        "t, s, 1.0)[0] + std * z",
        "t, s, 1.0)[0]",
    ),
    Mutation(
        "dpm_adaptive: the noise seen at the start",
        "steps",
        "samplers.adaptive:DPMAdaptive.propose",
        "sde.eps(y, estimate(y, time), time)",
        "eps",
    ),
    Mutation(
        "dpm_adaptive: slopes taken for constants",
        "steps",
        "samplers.adaptive:_slope_weight",
        "1 / h - 1 / torch.expm1(h)",
        "torch.ones_like(h)",
    ),
    Mutation(
        "Brownian motion whose halves are too quiet",
        "noise",
        "samplers.brownian:Brownian.increment",
        "sign * 0.5 ** (0.5 * (below + 1))",
        "sign * 0.5 ** (0.5 * (below + 2))",
    ),
    Mutation(
        "Brownian motion whose halves are alike",
        "noise",
        "samplers.brownian:Brownian.increment",
        "-1 if i >> below & 1 else 1",
        "1",
    ),
    Mutation(
        "the logistic grid without its uniform part",
        "grids",
        "sde_lib.nodes:logistic_uniform",
        "weight * bump + (1 - weight) * (log_ratio - ends[0]) * uniform",
        "bump",
    ),
    Mutation(
        "given noise levels as sigma^2 / alpha^2",
        "grids",
        "samplers.grids:of_ratios",
        "sde.time_of_ratio(noise)",
        "sde.time_of_ratio(noise**0.5)",
    ),
    # --- sampling -----------------------------------------------------------------------------------------------------
    Mutation("no last denoising", "sampling", "samplers.loop:Step.finish", "denoise(x, t).x0", "x"),
    Mutation(
        "last step adds noise",
        "sampling",
        "samplers.loop:Step.finish",
        "denoise(x, t).x0",
        "denoise(x, t).x0 + self.sde.marginal(t).sigma * draw(x)",
    ),
    Mutation(
        "start not scaled to the prior",
        "sampling",
        "samplers.draw:from_seeds",
        "step.sde.prior_std * z",
        "z",
    ),
    Mutation(
        "engine: seeds by place in the batch",
        "sampling",
        "samplers.draw:from_seeds",
        "source(seeds)",
        "source(torch.arange(len(seeds)))",
    ),
    Mutation(
        "engine: log-density in units of the encoded data",
        "sampling",
        "engine.drawing:draw_scored",
        " + experiment.codec.log_det(experiment.facts.shape)",
        "",
    ),
    Mutation("latents of the size of the prior", "sampling", "samplers.ode:ODE.encode", " / self.sde.prior_std", ""),
    Mutation(
        "decoded from the normals themselves",
        "sampling",
        "samplers.ode:ODE.decode",
        "self.sde.prior_std * latents",
        "latents",
    ),
    # --- consistency --------------------------------------------------------------------------------------------------
    Mutation(
        "consistency: boundary at noise 0",
        "consistency",
        "sde_lib.consistency:_bounded",
        " - sde.marginal(sde.t_min).ratio",
        "",
    ),
    Mutation(
        "consistency: target at the later time",
        "consistency",
        "sde_lib.consistency:ConsistencyTraining.__call__",
        "denoise(earlier, s, **cond)",
        "denoise(earlier, t, **cond)",
    ),
    Mutation(
        "consistency: loss not over the gap of the pair",
        "consistency",
        "sde_lib.consistency:ConsistencyTraining.__call__",
        " / gap.flatten()",
        "",
    ),
    Mutation(
        "consistency: teacher's Euler move for Heun's",
        "consistency",
        "sde_lib.consistency:ConsistencyDistillation.data",
        "trapezoidal(self.teacher, self.sde, x, self.teacher(x, t, **cond).x0, t, s, **cond)",
        "self.teacher(x, t, **cond).x0",
    ),
    Mutation(
        "consistency: a teacher told another state",
        "consistency",
        "sde_lib.consistency:transport",
        "source.marginal(there).alpha / alpha * x",
        "x",
    ),
    # --- classifier ---------------------------------------------------------------------------------------------------
    Mutation(
        "classifier of clean data at noisy times",
        "classifier",
        "sde_lib.classifier:Classification.__call__",
        "self.sde.perturb(x0, eps, t), t)",
        "x0, t)",
    ),
    Mutation(
        "classifier told another time",
        "classifier",
        "sde_lib.classifier:Classifier.apply_network",
        "marginal = self.sde.marginal(t)",
        "marginal = self.sde.marginal(0.9 * t + 0.1 * self.sde.t_max)",
    ),
    # --- guidance -----------------------------------------------------------------------------------------------------
    Mutation(
        "guidance towards the null condition",
        "guidance",
        "samplers.guidance:classifier_free",
        "torch.lerp(without, with_cond, scale)",
        "torch.lerp(with_cond, without, scale)",
    ),
    Mutation(
        "guidance of scale w counted as 1 + w",
        "guidance",
        "samplers.guidance:classifier_free",
        "with_cond, scale)",
        "with_cond, 1 + scale)",
    ),
    Mutation(
        "classifier gradient over sigma",
        "guidance",
        "samplers.guidance:classifier",
        "scale * sigma**2 / alpha",
        "scale * sigma / alpha",
    ),
    Mutation(
        "classifier gradient without 1 / alpha",
        "guidance",
        "samplers.guidance:classifier",
        "sigma**2 / alpha *",
        "sigma**2 *",
    ),
    # --- control ------------------------------------------------------------------------------------------------------
    Mutation(
        "embeddings compared with the target's negative",
        "control",
        "samplers.guidance:embedding_guidance",
        "(encode(x, t) * target)",
        "(-encode(x, t) * target)",
    ),
    Mutation(
        "embedding guidance without its scale",
        "control",
        "samplers.guidance:embedding_guidance",
        "sum(1), scale)",
        "sum(1), 1.0)",
    ),
    Mutation(
        "embedding of the estimate: its gradient without sigma^2 / alpha",
        "control",
        "samplers.guidance:clean_embedding_guidance",
        "scale * sigma**2 / alpha * gradient",
        "scale * gradient",
    ),
    Mutation(
        "embedding of the estimate: a gradient that stops at it",
        "control",
        "samplers.guidance:clean_embedding_guidance",
        "similarity = (encode(x0) * target).sum()",
        "similarity = (encode(x0.detach() + (leaf - leaf.detach())) * target).sum()",
    ),
    Mutation(
        "embedding of the estimate: of the noisy state",
        "control",
        "samplers.guidance:clean_embedding_guidance",
        "encode(x0)",
        "encode(leaf)",
    ),
    Mutation(
        "autoguidance towards the weaker model",
        "control",
        "samplers.guidance:autoguidance",
        "torch.lerp(weaker(x, t, **cond).x0, x0, scale)",
        "torch.lerp(x0, weaker(x, t, **cond).x0, scale)",
    ),
    Mutation(
        "an interval of sigma, not of sigma / alpha",
        "control",
        "samplers.guidance:within",
        "ratio = sde.marginal(t).ratio",
        "ratio = sde.marginal(t).sigma",
    ),
    Mutation(
        "an interval turned inside out",
        "control",
        "samplers.guidance:within",
        "(low <= ratio) & (ratio <= high)",
        "(low > ratio) | (ratio > high)",
    ),
    Mutation(
        "dynamic threshold: the largest entry for the quantile",
        "control",
        "samplers.guidance:dynamic_threshold",
        "math.ceil(quantile * size.shape[1])",
        "size.shape[1]",
    ),
    Mutation(
        "dynamic threshold: estimates that fit are stretched",
        "control",
        "samplers.guidance:dynamic_threshold",
        ".clamp_min(1)",
        "",
    ),
    Mutation(
        "replacement without the signal's scale",
        "control",
        "samplers.constraints:replacement",
        "alpha * known.to(x)",
        "known.to(x)",
    ),
    Mutation(
        "replacement without noise", "control", "samplers.constraints:replacement", "target + sigma * draw(x)", "target"
    ),
    Mutation(
        "a mask the wrong way round",
        "control",
        "samplers.constraints:masked",
        "torch.where(mask.to(x.device).bool(), x, 0)",
        "torch.where(mask.to(x.device).bool(), 0, x)",
    ),
    Mutation(
        "a grid that goes over its levels once too often",
        "control",
        "samplers.constraints:resampled",
        "down.repeat(repeats - 1)",
        "down.repeat(repeats)",
    ),
    Mutation(
        "PiGDM: noise of the measurement not squared", "control", "samplers.posterior:_guided", "std**2 * v", "std * v"
    ),
    Mutation(
        "PiGDM: the moment-matched Gaussian's covariance for what is left of it",
        "control",
        "samplers.posterior:pigdm",
        "v * flat**2 / (v + flat**2)",
        "v",
    ),
    Mutation(
        "PiGDM: away from the measurement",
        "control",
        "samplers.posterior:_guided",
        "prediction.x0 + jacobian(",
        "prediction.x0 - jacobian(",
    ),
    Mutation(
        "posterior sampling: the denoiser's Jacobian without sigma^2 / alpha",
        "control",
        "samplers.posterior:_guided",
        "scale * torch.autograd.grad(prediction.x0",
        "torch.autograd.grad(prediction.x0",
    ),
    Mutation(
        "DPS: towards the misfit",
        "control",
        "samplers.posterior:DPS._guided",
        "moved - self.zeta * kept[0]",
        "moved + self.zeta * kept[0]",
    ),
    Mutation(
        "DPS: the gradient of the squared misfit",
        "control",
        "samplers.posterior:DPS._guided",
        "torch.linalg.vector_norm(misfit, dim=1).sum()",
        "misfit.square().sum()",
    ),
    Mutation(
        "depth of an edit: deviation for variance",
        "control",
        "samplers.editing:depth_time",
        "- 2 * math.log(std)",
        "- math.log(std)",
    ),
    Mutation(
        "spherical path: a straight line",
        "control",
        "samplers.editing:slerp",
        "(torch.cos(angle) * a + torch.sin(angle) * across)",
        "torch.lerp(a, b, weights)",
    ),
    Mutation(
        "an edit of the example without its noise",
        "control",
        "samplers.editing:sdedit",
        "step.sde.perturb(x, draw(x), times[0].item())",
        "x",
    ),
    # --- likelihood ---------------------------------------------------------------------------------------------------
    Mutation("flow: full score instead of half", "likelihood", "sde_lib.flow:_sin_cos", "0.5 * (", "0.25 * ("),
    Mutation(
        "flow: the sign of the velocity",
        "likelihood",
        f"{FLOW}.residual",
        "coefficients.slowness",
        "-coefficients.slowness",
    ),
    Mutation(
        "flow: velocity over the variance, not its root",
        "likelihood",
        f"{FLOW}.velocity",
        "narrow, residual",
        "narrow, self.gaussian.scale(coefficients.noised.narrow, residual)",
    ),
    Mutation(
        "flow: the mean of the moment-matched Gaussian for its denoiser",
        "likelihood",
        f"{FLOW}.residual",
        "self.gaussian.scale(coefficients.noised.kept, y - mean)",
        "torch.zeros_like(y)",
    ),
    Mutation(
        "flow: moment-matched Gaussian at another noise",
        "likelihood",
        f"{FLOW}.coefficients",
        "noised(ratio)",
        "noised(1.1 * ratio)",
    ),
    Mutation("flow: the network shown x / alpha", "likelihood", f"{FLOW}.residual", "coefficients.alpha * y", "y"),
    Mutation(
        "flow: time of half the log-SNR",
        "likelihood",
        f"{FLOW}.time",
        "time_of_ratio(self.ratio(angle))",
        "time_of_ratio(self.ratio(angle) ** 0.5)",
    ),
    Mutation(
        "flow: end points without the signal's scale", "likelihood", f"{FLOW}.leave", "marginal.alpha * self", "self"
    ),
    Mutation(
        "log-density without the signal's scale",
        "likelihood",
        f"{FLOW}.log_volume",
        "self.gaussian.mean.numel() * math.log(marginal.alpha) +",
        "0.0 +",
    ),
    Mutation(
        "log-density: the volumes of the coordinates exchanged",
        "likelihood",
        f"{LIKELIHOOD}:_along",
        "flow.log_volume(sde.t_max) - flow.log_volume(t)",
        "flow.log_volume(t) - flow.log_volume(sde.t_max)",
    ),
    Mutation(
        "log-density: divergence subtracted",
        "likelihood",
        f"{LIKELIHOOD}:_along",
        "growth = solution.integrals",
        "growth = -solution.integrals",
    ),
    Mutation(
        "log-density of samples: divergence as of data",
        "likelihood",
        f"{LIKELIHOOD}:_along",
        "else -solution.integrals",
        "else solution.integrals",
    ),
    Mutation(
        "log-density: change of volume subtracted",
        "likelihood",
        f"{LIKELIHOOD}:_along",
        "prior + divergence",
        "prior - divergence",
    ),
    Mutation(
        "log-density without the prior",
        "likelihood",
        f"{LIKELIHOOD}:_along",
        "nats = prior + divergence",
        "nats = divergence",
    ),
    Mutation("probes summed, not averaged", "likelihood", f"{LIKELIHOOD}:_along", "volumes.mean(1)", "volumes.sum(1)"),
    Mutation(
        "matched prior without the noise",
        "likelihood",
        f"{LIKELIHOOD}:matched_prior",
        "gaussian.whiten(x / marginal.alpha, marginal.ratio)",
        "gaussian.whiten(x / marginal.alpha, 0.0)",
    ),
    Mutation(
        "matched prior: a density of x / alpha",
        "likelihood",
        f"{LIKELIHOOD}:matched_prior",
        "math.sqrt(2 * math.pi) * marginal.alpha",
        "math.sqrt(2 * math.pi)",
    ),
    Mutation(
        "frozen probes resampled at every evaluation",
        "likelihood",
        f"{TRACE}:Hutchinson.start",
        "return lambda indices: vectors[:, :, indices]",
        "return lambda indices: self.kind.make(normals())[:, :, indices]",
    ),
    Mutation(
        "fresh probes that stay the same", "likelihood", f"{TRACE}:Hutchinson.start", "if self.fresh:", "if False:"
    ),
    Mutation(
        "fresh probes for a solver that adapts",
        "likelihood",
        f"{LIKELIHOOD}:_along",
        "solver.adaptive and trace.fresh",
        "False",
    ),
    Mutation(
        "turned probes that do not turn", "likelihood", "sde_lib.trace:turned", "probes * signs.to(probes)", "probes"
    ),
    Mutation("Walsh's signs of 0 and 1", "likelihood", "sde_lib.trace:walsh", "1 - 2 * (odd & 1)", "odd & 1"),
    Mutation(
        "Walsh's signs of one axis alone",
        "likelihood",
        "sde_lib.trace:walsh",
        "if (size - 1) >> level]",
        "if (size - 1) >> level][:1]",
    ),
    Mutation("Rademacher probes of 0 and 1", "likelihood", f"{TRACE}:rademacher", "-1.0, 1.0", "0.0, 1.0"),
    Mutation(
        "orthogonal probes of length 1", "likelihood", f"{TRACE}:orthogonal", "math.sqrt(dimensions) * frame", "frame"
    ),
    Mutation(
        "orthogonal probes of the length of their number",
        "likelihood",
        f"{TRACE}:orthogonal",
        "math.sqrt(dimensions)",
        "math.sqrt(num)",
    ),
    Mutation(
        "orthogonal probes told as independent",
        "likelihood",
        f"{TRACE}:without_replacement",
        "1 / num - 1 / dimensions",
        "1 / num",
    ),
    Mutation(
        "the spread of estimates told for that of their mean",
        "likelihood",
        f"{TRACE}:Hutchinson.variance",
        "spread * self.kind.variance(self.num, dimensions)",
        "spread",
    ),
    Mutation(
        "trace from another example's probe",
        "likelihood",
        f"{TRACE}:traces",
        "(product * part)",
        "(product * part.roll(1, 1))",
    ),
    Mutation(
        "a trace for each probe's neighbour",
        "likelihood",
        f"{TRACE}:traces",
        "forms.mT",
        "forms.roll(1, 0).mT",
    ),
    Mutation(
        "solver: stages at the wrong time",
        "likelihood",
        f"{DORMAND}.__call__",
        "nodes * step",
        "nodes**0 * step",
    ),
    Mutation(
        "solver: every step accepted",
        "likelihood",
        f"{DORMAND}.__call__",
        "accept = error <= 1",
        "accept = error <= 1e9",
    ),
    Mutation(
        "Adams: no corrector",
        "likelihood",
        f"{ADAMS}:AdamsPECE.__call__",
        "past, angles[: i + 1], self.order + 1,",
        "past[:-1], angles[:i], self.order,",
    ),
    Mutation(
        "Adams: corrector of the predictor's order",
        "likelihood",
        f"{ADAMS}:AdamsPECE.__call__",
        "self.order + 1",
        "self.order",
    ),
    Mutation(
        "Adams: one evaluation more",
        "likelihood",
        f"{ADAMS}:AdamsPECE.__call__",
        "self.evaluations * counts",
        "(self.evaluations + 1) * counts",
    ),
    Mutation(
        "Adams: traces at every node",
        "likelihood",
        f"{ADAMS}:AdamsPECE.__call__",
        "slice(None), i in marked)",
        "slice(None), True)",
    ),
    Mutation(
        "Adams: weights of the way back in the order of the way there",
        "likelihood",
        f"{ADAMS}:AdamsPECE.__call__",
        "-weights[::-1]",
        "-weights",
    ),
    Mutation(
        "Adams: weights for even nodes",
        "likelihood",
        f"{ADAMS}:integration_weights",
        "(nodes - start)",
        "(np.linspace(nodes[0], nodes[-1], len(nodes)) - start)",
    ),
    Mutation(
        "Adams: trapezoids for the spline",
        "likelihood",
        f"{ADAMS}:spline_weights",
        "gaps[1:] > _GROWTH * gaps[:-1]",
        "gaps[1:] > 0",
    ),
    Mutation(
        "torchdiffeq: one way for both",
        "likelihood",
        "sde_lib.solvers:Torchdiffeq.__call__",
        "(end - start) * rate",
        "abs(end - start) * rate",
    ),
    Mutation("uniform dequantisation not centred", "likelihood", f"{DEQUANTIZE}:uniform", "(u - 0.5)", "u"),
    Mutation(
        "uniform dequantisation: the bin's width forgotten",
        "likelihood",
        f"{DEQUANTIZE}:uniform",
        "-x.shape[1:].numel() * math.log(bin_width) +",
        "0.0 +",
    ),
    Mutation(
        "truncated normal without its normaliser",
        "likelihood",
        f"{DEQUANTIZE}:truncated_normal",
        "* sigma * inside)",
        "* sigma)",
    ),
    Mutation(
        "truncated normal: cut at a whole bin",
        "likelihood",
        f"{DEQUANTIZE}:truncated_normal",
        "/ (2 * sigma)",
        "/ sigma",
    ),
    Mutation(
        "truncated normal: noise on data that are not scaled",
        "likelihood",
        f"{DEQUANTIZE}:truncated_normal",
        "alpha * x + sigma",
        "x + sigma",
    ),
    Mutation(
        "truncated normal: density of z, not of sigma z",
        "likelihood",
        f"{DEQUANTIZE}:truncated_normal",
        "math.sqrt(2 * math.pi) * sigma * inside",
        "math.sqrt(2 * math.pi) * inside",
    ),
    Mutation(
        "prior mismatch: at the wrong end of time",
        "likelihood",
        f"{BOUND}:prior_term",
        "sde.marginal(sde.t_max)",
        "sde.marginal(sde.t_min)",
    ),
    Mutation(
        "likelihood: density of the noise added, not subtracted",
        "likelihood",
        "engine.density:DensityEstimator._once",
        "found.nats.double() - log_q",
        "found.nats.double() + log_q",
    ),
    Mutation(
        "likelihood: copies summed, not averaged",
        "likelihood",
        "engine.density:DensityEstimator._once",
        "torch.logsumexp(nats, 1) - math.log(samples)",
        "torch.logsumexp(nats, 1)",
    ),
    Mutation(
        "likelihood: the mean of logarithms for that of densities",
        "likelihood",
        "engine.density:DensityEstimator._once",
        "total = torch.logsumexp(nats, 1) - math.log(samples)",
        "total = nats.mean(1)",
    ),
    Mutation(
        "likelihood: copies all alike",
        "likelihood",
        "engine.density:DensityEstimator._once",
        "COPY * copies",
        "0 * copies",
    ),
    Mutation(
        "terms without the codec's scaling",
        "likelihood",
        "engine.density:DensityEstimator._once",
        "-log_q.double() - scaling",
        "-log_q.double()",
    ),
    # --- codecs -------------------------------------------------------------------------------------------------------
    Mutation(
        "pixels at the edges of their bins",
        "codecs",
        "data.codecs:Pixels._scale",
        "values.float() + 0.5",
        "values.float()",
    ),
    Mutation("pixels cut, not rounded", "codecs", "data.codecs:Pixels.decode", ".round()", ".floor()"),
    Mutation("pixels not clamped", "codecs", "data.codecs:Pixels.decode", ".clamp(0, self.levels - 1)", ""),
    Mutation("log-determinant of 256 levels for all", "codecs", "data.codecs:Pixels.log_det", "/ self.levels", "/ 256"),
    # --- training -----------------------------------------------------------------------------------------------------
    Mutation(
        "EMA keeps what it should forget",
        "training",
        "engine.training.ema:EMA.update",
        "get_ema_multi_avg_fn(kept(self.num_updates))",
        "get_ema_multi_avg_fn(1 - kept(self.num_updates))",
    ),
    Mutation(
        "EMA of buffers",
        "training",
        "engine.training.ema:EMA.update",
        "target.copy_(buffer)",
        "target.lerp_(buffer, 1 - kept(self.num_updates))",
    ),
    Mutation(
        "EMA warm-up of 10 steps forgotten",
        "training",
        "engine.training.ema:kept_of_rate",
        "(10 + n)",
        "(1 + n)",
    ),
    Mutation(
        "learning rate falls from half its height",
        "training",
        "engine.training.learning_rate:learning_rate",
        "min(1.0, images_seen /",
        "min(1.0, 0.5 + images_seen /",
    ),
    Mutation(
        "learning rate warms up in steps for images",
        "training",
        "engine.training.learning_rate:learning_rate",
        "(images_seen + config.train.batch_size)",
        "(images_seen / config.train.batch_size)",
    ),
    Mutation(
        "times from half of their law",
        "training",
        "engine.randomness:draw_times",
        "total or len(like))",
        "2 * (total or len(like)))",
    ),
    Mutation(
        "dither not centred", "training", "engine.randomness:dither", "like.shape[1:])) - 0.5", "like.shape[1:]))"
    ),
    Mutation(
        "resume forgets the optimiser's moments",
        "training",
        "engine.training.state:State.load",
        'self.optimizer.load_state_dict(state["optimizer"])',
        "pass",
    ),
    Mutation(
        "resume counts EMA updates from 0",
        "training",
        "engine.training.state:State.load",
        'self.ema.num_updates = state["ema_updates"]',
        "pass",
    ),
    Mutation(
        "resume takes the raw weights for the average",
        "training",
        "engine.training.state:State.load",
        "checkpoint.load_network(path, name, average)",
        "checkpoint.load_network(path, checkpoint.RAW, average)",
    ),
    Mutation(
        "resume starts the data anew",
        "training",
        "engine.training.start:find_start",
        'meta["step"], seen',
        "0, 0",
    ),
    Mutation(
        "checkpoint: digests not compared",
        "training",
        "engine.checkpoint:_content",
        "hashlib.sha256(content).hexdigest() != digest",
        "False",
    ),
    Mutation(
        "training without learning",
        "training",
        "engine.training.update:Update.__call__",
        "self.optimizer.step(found_inf=(~torch.isfinite(norm + loss)).float())",
        "pass",
    ),
    Mutation(
        "data order not a function of the position",
        "training",
        "engine.training.batches:Batches.inputs",
        "self.read(start)",
        "self.read(start + id(self) % 97)",
    ),
]
