"""The variational bound of a chain: bits per dimension, rate and distortion, level by level."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from engine import checkpoint
from engine.build import check_at_least, check_form, read_dataset
from engine.config import Options
from engine.files import replace, write_json, write_npz
from engine.log import Progress, versions
from engine.randomness import BOUND, noise, positions
from engine.sample import Counted, load
from sde_lib import variational_bound
from sde_lib.bound import as_chain


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Bound each example of a split once; write <split>.json, .npz with a row for each, and rate_distortion.png."""
    settings, split = config.bound, options.split or "test"
    check_at_least(1, config, "bound.batch_size")
    check_at_least(0, config, "bound.num_examples")
    if not 0 <= settings.variance <= 1:
        raise ValueError(f"bound.variance {settings.variance}: need 0 (posterior) to 1 (forward)")
    experiment, denoiser, found = load(config, workdir, options)
    chain, facts, dataset = as_chain(experiment.sde), experiment.facts, read_dataset(config, split)
    check_form(dataset, facts)
    if not facts.levels:
        raise ValueError("the bound in bits is for data of whole numbers, and these never were; use --mode likelihood")
    num = min(settings.num_examples or len(dataset), len(dataset))
    chain.tabulate(torch.arange(1, int(chain.t_max) + 1, dtype=torch.float64))

    parts, counted, progress, start = [], Counted(denoiser), Progress(num, "examples"), time.perf_counter()
    for first in range(0, num, settings.batch_size):
        where = positions(first, min(settings.batch_size, num - first))
        x0 = experiment.codec.encode(dataset.batch(where.numpy())["x"].to(experiment.device))
        draw = noise(config.seed, BOUND, where)
        with torch.no_grad():
            parts.append(variational_bound(chain, counted, x0, draw, settings.variance, experiment.bin_width))
        progress.advance(len(x0))
    progress.close()
    prior, rate, distortion = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    bits = math.prod(facts.shape) * math.log(2)
    prior, rate, distortion = prior / bits, rate / bits, distortion / experiment.bin_width
    total = prior + rate.sum(1)
    result = {
        "bits_per_dim": float(total.mean()),
        "bits_per_dim_stderr": float(total.std(ddof=1) / math.sqrt(num)) if num > 1 else 0.0,
        "terms": {
            "prior": float(prior.mean()),
            "diffusion": float(rate[:, 1:].sum(1).mean()),
            "decoder": float(rate[:, 0].mean()),
        },
        "num_examples": num,
        "levels": rate.shape[1],
        "nfe": counted.calls / len(parts),
        "variance": "learned" if config.network.get("learned_variance") else settings.variance,
        "split": split,
        "sde": config.sde.name,
        "weights": options.weights,
        "seed": config.seed,
        "checkpoint_step": checkpoint.read_meta(found)["step"],
        "seconds": time.perf_counter() - start,
        "versions": versions(),
    }
    folder = workdir / "bound"
    write_npz(folder / f"{split}.npz", bits_per_dim=total, prior=prior, rate=rate, distortion=distortion)
    plot(folder / "rate_distortion.png", prior.mean(), rate.mean(0), np.sqrt((distortion**2).mean(0)))
    write_json(folder / f"{split}.json", result)
    print(report(result))
    print(f"files are {folder / split}.json and .npz, and {folder / 'rate_distortion.png'}")


def plot(path: Path, prior: float, rate: np.ndarray, distortion: np.ndarray) -> None:
    """Rate against distortion of a code that sends x_N, ..., x_1, x_0 one after the other, and both by level.

    Whoever has received x_t has paid for the prior and the levels above t, and decodes x0_hat(x_t).

    Shapes: rate (N,) of the levels 1, ..., N in bits/dim; distortion (N,), rms of x0_hat - x0 in levels of the data.
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 4.3, fig. 5. arXiv:2006.11239
    """
    from matplotlib.figure import Figure

    levels = np.arange(1, len(rate) + 1)
    paid = prior + rate[::-1].cumsum()[::-1] - rate
    figure = Figure(figsize=(12, 3.6), dpi=100, layout="constrained")
    curve, left, right = figure.subplots(1, 3)
    curve.plot(np.append(paid[::-1], prior + rate.sum()), np.append(distortion[::-1], 0))
    curve.set(title="progressive code", xlabel="rate, bits/dim", ylabel="distortion, rms in levels of the data")
    left.plot(levels, rate)
    left.set(title="rate by level", xlabel="level", ylabel="bits/dim", yscale="log", ylim=(rate[1:].min() / 2, None))
    right.plot(levels, distortion)
    right.set(title="distortion by level", xlabel="level", ylabel="rms in levels of the data")
    replace(path, lambda file: figure.savefig(file, format="png"))


def report(result: dict) -> str:
    """The result as a few lines of text."""
    terms = ", ".join(f"{key} {value:.4f}" for key, value in result["terms"].items())
    variance = "learned variance" if result["variance"] == "learned" else f"variance {result['variance']:g}"
    return (
        f"{result['split']}: at most {result['bits_per_dim']:.4f} +- {result['bits_per_dim_stderr']:.4f} bits/dim\n"
        f"  terms in bits/dim: {terms}\n"
        f"  {result['num_examples']} examples once each at all {result['levels']} levels, {variance}, "
        f"{result['seconds']:.1f} s"
    )
