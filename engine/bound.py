"""Variational bounds of a dataset: level by level of a chain, or over the log-SNR of any other process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.engine.build import Experiment
from score_sde.samplers import Noise
from score_sde.sde_lib import Denoise, VariationalBound, diffusion_bound, variational_bound
from score_sde.sde_lib.bound import as_chain, decoder_time
from score_sde.storage.writing import replace

Estimator = Callable[[Tensor, Noise], VariationalBound]
"""From data (B, *) and the noise of these examples to their bounds."""


def chain(config: ConfigDict, experiment: Experiment, denoise: Denoise) -> tuple[Estimator, dict[str, Any]]:
    """The bound by all levels of a chain, and what there is to tell of it."""
    sde, v, width = as_chain(experiment.sde), config.bound.v, experiment.bin_width
    levels = int(sde.t_max)
    sde.tabulate(torch.arange(1, levels + 1, dtype=torch.float64))

    def evaluate(x0: Tensor, draw: Noise) -> VariationalBound:
        return variational_bound(sde, denoise, x0, draw, v, width, experiment.low)

    told = "learned" if config.network.get("learned_variance") else v
    return evaluate, {"estimator": "chain", "levels": levels, "v": told, "t_min": sde.t_min}


def continuous(config: ConfigDict, experiment: Experiment, denoise: Denoise) -> tuple[Estimator, dict[str, Any]]:
    """The bound as an integral over the log-SNR, and what there is to tell of it."""
    sde, num, width = experiment.sde, config.bound.evaluations, experiment.bin_width
    t = config.bound.t_min or decoder_time(sde, width)

    def evaluate(x0: Tensor, draw: Noise) -> VariationalBound:
        within = torch.special.ndtr(draw(x0.new_empty(len(x0), num)).cpu().double())
        u = (torch.arange(num) + within) / num
        return diffusion_bound(sde, denoise, x0, experiment.gaussian.like(x0), u, draw, width, t, experiment.low)

    return evaluate, {"estimator": "continuous", "levels": None, "v": None, "t_min": t}


def plot(path: Path, result: dict, prior: float, rate: np.ndarray, distortion: np.ndarray, log_snr: np.ndarray) -> None:
    """Rate against distortion of a code that sends x_t with less and less noise and x_0 at last, and both on the way.

    Whoever has received x_t has paid for the prior and for all that lies above t, and decodes x0_hat(x_t).

    Shapes: rate (M + 1,), of the decoder and M levels or pieces; distortion (N,), rms of x0_hat - x0; log_snr (M + 1,).
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 4.3, fig. 5. arXiv:2006.11239
    """
    from matplotlib.figure import Figure

    unit, error = result["unit"], "rms in levels of the data" if result["unit"] == "bits/dim" else "rms"
    paid = prior + np.append(rate[:0:-1].cumsum()[::-1], 0)
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
    """The result as a few lines of text."""
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
