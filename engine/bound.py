"""Variational bounds of a split: a sum over the levels of a discrete-time process, or an integral over the log-SNR."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.data import Dataset
from score_sde.engine.build import Experiment
from score_sde.engine.likelihood_report import stderr
from score_sde.engine.log import Progress
from score_sde.engine.randomness import BOUND, noise, positions
from score_sde.samplers import Noise
from score_sde.sde_lib import Denoise, Discrete, NonFiniteError, VariationalBound, diffusion_bound, variational_bound
from score_sde.sde_lib.bound import as_chain, decoder_time
from score_sde.storage.writing import replace

Estimator = Callable[[Tensor, Noise], VariationalBound]
"""(encoded data (B, *), noise of these examples) -> their bounds."""

Columns = dict[str, np.ndarray]
"""Arrays of the examples: nats (N,), prior (N,), rate (N, M + 1), distortion (N, M'), bits_per_dim (N,); and log_snr
(M + 1,)."""


def make_estimator(config: Config, experiment: Experiment, denoise: Denoise) -> tuple[Estimator, dict[str, Any]]:
    """Returns the estimator of the bound on the experiment's SDE, by the section ``bound``, and its record."""
    return (chain if isinstance(experiment.sde, Discrete) else continuous)(config, experiment, denoise)


def chain(config: Config, experiment: Experiment, denoise: Denoise) -> tuple[Estimator, dict[str, Any]]:
    """The bound of a discrete-time process as the sum over all levels, and its record."""
    sde, v, width = as_chain(experiment.sde), config.bound.v, experiment.bin_width
    levels = int(sde.t_max)
    sde.tabulate(torch.arange(1, levels + 1, dtype=torch.float64))

    def estimate(x0: Tensor, draw: Noise) -> VariationalBound:
        return variational_bound(sde, denoise, x0, draw, v, width, experiment.low)

    variance = "learned" if config.network.get("learned_variance") else v
    return estimate, {"estimator": "chain", "levels": levels, "v": variance, "t_min": sde.t_min}


def continuous(config: Config, experiment: Experiment, denoise: Denoise) -> tuple[Estimator, dict[str, Any]]:
    """The bound as an integral over the log-SNR, and its record."""
    sde, num, width = experiment.sde, config.bound.evaluations, experiment.bin_width
    t = config.bound.t_min or decoder_time(sde, width)

    def estimate(x0: Tensor, draw: Noise) -> VariationalBound:
        within = torch.special.ndtr(draw(x0.new_empty(len(x0), num)).cpu().double())
        u = (torch.arange(num) + within) / num
        return diffusion_bound(sde, denoise, x0, experiment.gaussian.like(x0), u, draw, width, t, experiment.low)

    return estimate, {"estimator": "continuous", "levels": None, "v": None, "t_min": t}


def bound_split(
    estimate: Estimator, experiment: Experiment, dataset: Dataset, seed: int, num: int, batch_size: int
) -> Columns:
    """The bounds of the first ``num`` examples: nats in units of the data, the other columns as below.

    ``prior`` and ``rate`` are in bits/dim, or in nats for real-valued data; ``rate`` holds the decoder, then the
    diffusion term of each level or piece. ``distortion`` is the root mean square of x0_hat - x0, in levels, or in units
    of the encoded real-valued data.

    Raises: NonFiniteError naming the example.
    """
    parts, progress = [], Progress(num, "examples")
    for first in range(0, num, batch_size):
        where = positions(first, min(batch_size, num - first))
        x0 = experiment.codec.encode(dataset.batch(where.numpy())["x"].to(experiment.device))
        with torch.no_grad():
            part = estimate(x0, noise(seed, BOUND, where))
        finite = torch.isfinite(part.nats).cpu()
        if not finite.all():
            bad = where[~finite][0]
            raise NonFiniteError(f"the bound of example {bad} is not finite; check the network and the data")
        parts.append(part)
        progress.advance(len(x0))
    progress.close()
    columns = ((part.prior, part.levels, part.distortion) for part in parts)
    prior, rate, distortion = (torch.cat(column).double().cpu().numpy() for column in zip(*columns, strict=True))

    nats, log_snr = scaling(experiment) - (prior + rate.sum(1)), parts[0].log_snr.numpy()
    levels, shape = experiment.facts.levels, experiment.facts.shape
    unit = math.prod(shape) * math.log(2) if levels else 1.0
    prior, rate, distortion = prior / unit, rate / unit, distortion / (experiment.bin_width or 1.0)
    found = {"nats": nats, "prior": prior, "rate": rate, "distortion": distortion, "log_snr": log_snr}
    return found | ({"bits_per_dim": prior + rate.sum(1)} if levels else {})


def scaling(experiment: Experiment) -> float:
    """Log-determinant of the codec for real-valued data; 0 for levels, whose bound is on a probability."""
    return 0.0 if experiment.facts.levels else experiment.codec.log_det(experiment.facts.shape)


def summary(columns: Columns, experiment: Experiment) -> dict[str, Any]:
    """Means of the bounds with standard errors, and their terms in ``unit``."""
    bits, nats, rate = columns.get("bits_per_dim"), columns["nats"], columns["rate"]
    return {
        "bits_per_dim": None if bits is None else float(bits.mean()),
        "bits_per_dim_stderr": None if bits is None else stderr(bits),
        "nats": float(nats.mean()),
        "nats_stderr": stderr(nats),
        "terms": {
            "prior": float(columns["prior"].mean()),
            "diffusion": float(rate[:, 1:].sum(1).mean()),
            "decoder": float(rate[:, 0].mean()),
            **({} if experiment.facts.levels else {"scaling": -scaling(experiment)}),
        },
        "unit": "bits/dim" if experiment.facts.levels else "nats",
    }


def plot(path: Path, result: dict, columns: Columns) -> None:
    """Plots rate and distortion of a progressive code, against each other and along the process.

    The code sends x_t at decreasing noise, and finally x_0. A receiver of x_t has paid for the prior and all terms
    above t, and decodes x0_hat(x_t).

    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 4.3, fig. 5. arXiv:2006.11239
    """
    from matplotlib.figure import Figure

    prior, rate, log_snr = columns["prior"].mean(), columns["rate"].mean(0), columns["log_snr"]
    distortion = np.sqrt((columns["distortion"] ** 2).mean(0))
    unit, error = result["unit"], "rms in levels of the data" if result["unit"] == "bits/dim" else "rms"
    paid = prior + np.append(rate[:0:-1].cumsum()[::-1], 0)
    places: np.ndarray
    if result["estimator"] == "chain":
        along, places, height = "level", np.arange(1, len(rate) + 1), rate
        scale = {"ylabel": unit, "yscale": "log", "ylim": (rate[1:].min() / 2, None)}
    else:
        along, places, height = "log-SNR", (log_snr[1:] + log_snr[:-1]) / 2, -rate[1:] / np.diff(log_snr)
        scale, paid = {"ylabel": f"{unit} a unit of log-SNR"}, (paid[1:] + paid[:-1]) / 2
    figure = Figure(figsize=(12, 3.6), dpi=100, layout="constrained")
    curve, left, right = figure.subplots(1, 3)
    curve.plot(np.append(paid[::-1], prior + rate.sum()), np.append(distortion[::-1], 0))
    curve.set(title="progressive code", xlabel=f"rate, {unit}", ylabel=f"distortion, {error}")
    left.plot(places, height)
    left.set(title=f"rate by {along}", xlabel=along, **scale)
    right.plot(places, distortion)
    right.set(title=f"distortion by {along}", xlabel=along, ylabel=error)
    replace(path, lambda file: figure.savefig(file, format="png"))


def report(result: dict) -> str:
    """Lines of text that print the result."""
    found = f"log-likelihood at least {result['nats']:.3f} +- {result['nats_stderr']:.3f} nats"
    if result["bits_per_dim"] is None:
        found += "; bits/dim are for data of whole numbers; these are real-valued"
    else:
        found = f"at most {result['bits_per_dim']:.4f} +- {result['bits_per_dim_stderr']:.4f} bits/dim, {found}"
    terms = ", ".join(f"{key} {value:.4f}" for key, value in result["terms"].items())
    where = f"with {result['nfe']:.0f} evaluations, decoded at t = {result['t_min']:.3g}"
    if result["estimator"] == "chain":
        v = "learned variance" if result["v"] == "learned" else f"v {result['v']:g}"
        where = f"at all {result['levels']} levels, {v}"
    return (
        f"{result['split']}: {found}\n"
        f"  terms in {result['unit']}: {terms}\n"
        f"  {result['num_examples']} examples once each {where}, {result['seconds']:.1f} s; "
        "compare with --mode likelihood"
    )
