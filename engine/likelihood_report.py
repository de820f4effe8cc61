"""Summary and report of the likelihood of a split: its terms, standard errors and intervals."""

import math
from typing import Any

import numpy as np
from scipy.special import stdtrit

from score_sde.configs.default import Likelihood
from score_sde.engine.build import Experiment
from score_sde.engine.convergence import MeanError


def summary(
    columns: dict[str, np.ndarray], experiment: Experiment, settings: Likelihood, check: dict[str, Any] | None
) -> dict[str, Any]:
    """Means over the examples, with standard errors and 95 % intervals.

    Standard errors and intervals are for the mean over the population that the split is a sample of. They include the
    noise of probes, dequantization and repeats, which is part of the spread of the examples. If the mean error of the
    solver was measured, the intervals include it, too.
    """
    nats, levels = columns["nats"], experiment.facts.levels
    bit = math.prod(experiment.facts.shape) * math.log(2)
    terms = {key: float(columns[key].mean()) for key in ("prior", "divergence", "dequantization", "importance")}
    mean, error = float(nats.mean()), stderr(nats)
    within = interval(nats, *((check["mean_error"], check["mean_error_margin"]) if check else ()))
    own = {source: columns.get(f"{source}_variance", np.full(1, math.nan)).mean() for source in ("probe", "repeat")}
    return {
        "bits_per_dim": -mean / bit if levels else None,
        "bits_per_dim_stderr": error / bit if levels else None,
        "bits_per_dim_interval": [-end / bit for end in reversed(within)] if levels and within else None,
        "nats": mean,
        "nats_stderr": error,
        "nats_interval": within,
        "terms": terms | {"scaling": experiment.codec.log_det(experiment.facts.shape)},
        **{f"{source}_stderr_nats": _measured(math.sqrt(v / len(nats))) for source, v in own.items()},
        "importance_inflation_nats": float(columns["inflation"].mean()),
        "prior_mismatch_nats": float(columns["mismatch"].mean()),
        "nfe": float(columns["calls"].mean()),
        "traces": float(columns["traced"].mean()),
        "dequantization": settings.dequantization,
    }


MEANINGS = {
    "prior": "density of the noise that the flow ends at",
    "divergence": "change of volume on the way there",
    "dequantization": "minus the density of the noise within bins",
    "scaling": "from units of the network to units of the data",
    "importance": "gain of averaging densities instead of their logarithms",
}
"""Descriptions of the terms of a log-likelihood."""


def report(result: dict) -> str:
    """Lines of text that print the result."""
    settings, levels = result["settings"], result["bits_per_dim"] is not None
    copies = f", {settings['samples']} copies weighted by importance" if settings["samples"] > 1 else ""
    how = f"({result['dequantization'] if levels else 'no'} dequantization{copies})"
    nats = f"{result['nats']:.3f} nats an example"
    if levels:
        bits = f"{result['bits_per_dim']:.4f} bits/dim {how}{_within(result['bits_per_dim_interval'], 4)}"
        lines = [f"{result['split']}: {bits}", f"{nats}{_within(result['nats_interval'], 3)}"]
    else:
        lines = [f"{result['split']}: {nats} {how}{_within(result['nats_interval'], 3)}"]
        lines.append("bits/dim are for data of whole numbers; these are real-valued")
    lines.append("densities may exceed 1, so nats may be positive; they are the sum of")
    for key, meaning in MEANINGS.items():
        if (value := result["terms"][key]) or key != "importance":
            lines.append(f"  {key:14} {value:10.3f}  {meaning}")
    parts = [("probes", result["probe_stderr_nats"]), (f"{settings['repeats']} repeats", result["repeat_stderr_nats"])]
    spread = "".join(f", {error:.2g} by {source} alone" for source, error in parts if error)
    lines.append(f"standard error {result['nats_stderr']:.2g} nats over the examples{spread}")
    if result["importance_inflation_nats"]:
        lines.append(
            f"about {result['importance_inflation_nats']:.2g} nats are noise of the probes, which importance counts as "
            "likelihood: use more probes, or the exact trace"
        )
    unit = f"{result['noise_levels']:.2g} levels" if levels else f"{result['noise']:.2g} {result['noise_unit']}"
    lines.append(f"the density is that of data with noise of standard deviation {unit} (time {result['t']:g})")
    lines.append(f"the prior misses the law that the flow ends at by at most {result['prior_mismatch_nats']:.2g} nats")
    lines += accuracy(result)
    lines.append(
        f"{result['num_examples']} examples once each, {result['nfe']:.0f} evaluations of the network for each, "
        f"{result['traces']:.0f} of them with the divergence ({result['trace']}); {result['seconds']:.1f} s"
    )
    return "\n  ".join(lines)


def accuracy(result: dict) -> list[str]:
    """Lines about the error of the solver, relative to the other errors."""
    check, adaptive = result["check"], result["settings"]["solver"]["name"] != "adams_pece"
    if not check:
        return ["the solver's error was not measured, for likelihood.check_examples is 0: it is not included"]
    found = (
        f"the solver is {check['solver_error']:.2g} nats off one of {check['against']} on {check['examples']} examples"
    )
    verdict = "and the trace is exact"
    if result["trace"] != "exact":
        below = "below" if check["solver_error"] < check["probe_error"] else "not below"
        verdict = f"{below} the {check['probe_error']:.2g} of its random probes"
    mean = MeanError(check["mean_error"], check["mean_error_margin"])
    if not result["nats_stderr"]:
        return [f"{found}, {verdict}"]
    if mean.bound < result["nats_stderr"]:
        included = "; the interval includes it" if "nats_interval" in result else ""
        own = f"its mean error is at most {mean.bound:.2g} nats, below the standard error{included}"
        return [f"{found}, {verdict}", own]
    which = "likely" if mean.mean > 0 else "unlikely"
    remedy = "lower the tolerances" if adaptive else "set likelihood.evaluations=0"
    if not adaptive and not result["settings"]["evaluations"]:
        remedy = "try likelihood.solver=dopri5"
    own = f"NOT CONVERGED: it is {abs(mean.mean):.2g} +- {mean.margin:.2g} nats too {which} on average, not below"
    return [f"{found}, {verdict}", f"{own} the standard error: {remedy}"]


def _within(ends: list[float] | None, digits: int) -> str:
    return f", 95 % interval {ends[0]:.{digits}f} to {ends[1]:.{digits}f}" if ends else ", from one example"


def interval(values: np.ndarray, bias: float = 0.0, margin: float = 0.0, level: float = 0.95) -> list[float] | None:
    """Ends of Student's confidence interval of the mean; None for a single value.

    Args:
        bias: mean error of the values; the interval extends by as much on the side of the true mean.
        margin: half width of the interval of the bias, independent of the spread of the values.
        level: confidence level.
    """
    if len(values) < 2:
        return None
    reach = math.hypot(stdtrit(len(values) - 1, 0.5 + 0.5 * level) * stderr(values), margin)
    return [float(values.mean() - reach - max(bias, 0.0)), float(values.mean() + reach - min(bias, 0.0))]


def stderr(values: np.ndarray) -> float:
    """Standard error of the mean; 0 for a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0


def _measured(value: float) -> float | None:
    return None if math.isnan(value) else value
