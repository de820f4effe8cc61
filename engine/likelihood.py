"""Likelihood of a dataset: bits per dimension of whole numbers, nats of real-valued data, every term by itself."""

import math
import time
from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor

from engine import checkpoint
from engine.build import check_at_least, check_form, pick, read_dataset
from engine.config import Options
from engine.files import write_json, write_npz
from engine.log import Progress, versions
from engine.randomness import DEQUANTIZATION, PROBES, noise, positions, uniform
from engine.sample import load
from sde_lib import PROBES as PROBE_KINDS
from sde_lib import SOLVERS, exact_trace, log_prob, prior_term
from sde_lib.consistency import ConsistencyModel

DEQUANTIZATIONS = ("uniform", "none")


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Score each example of a split once; write <split>-<dequantization>.json, and .npz with a row for each."""
    settings, split = config.likelihood, options.split or "test"
    solver = pick(SOLVERS, "solver", settings.solver)
    probe = pick(PROBE_KINDS, "probe", settings.probe)
    check_at_least(1, config, "likelihood.probes", "likelihood.batch_size")
    check_at_least(0, config, "likelihood.num_examples")
    experiment, denoiser, found = load(config, workdir, options)
    if isinstance(denoiser, ConsistencyModel):
        raise ValueError(f"{workdir} knows where the flow ends and so no density; ask its teacher, or another run")
    dataset = read_dataset(config, split)
    levels, shape = experiment.facts.levels, experiment.facts.shape
    check_form(dataset, experiment.facts)
    check_dequantization(settings.dequantization, levels)
    num = min(settings.num_examples or len(dataset), len(dataset))
    dimensions, exact = math.prod(shape), math.prod(shape) < settings.exact_trace_below
    scaling = experiment.codec.log_det(shape)

    rows: dict[str, list[Tensor]] = {key: [] for key in ("nats", "prior", "divergence", "probe_stderr", "mismatch")}
    calls, progress, start = [], Progress(num, "examples"), time.perf_counter()
    for first in range(0, num, settings.batch_size):
        where = positions(first, min(settings.batch_size, num - first))
        values = dataset.batch(where.numpy())["x"].to(experiment.device)
        if settings.dequantization == "uniform":
            values = values + uniform(config.seed, DEQUANTIZATION, where, values) - 0.5
        x = experiment.codec.encode(values)
        draw = noise(config.seed, PROBES, where)
        probes = exact_trace(x) if exact else probe(torch.stack([draw(x) for _ in range(settings.probes)]))
        result = log_prob(
            experiment.sde,
            denoiser,
            x,
            probes,
            t=settings.t_min or None,
            solver=solver,
            rtol=settings.rtol,
            atol=settings.atol,
        )
        calls.append(result.nfe)
        spread = result.estimates.std(1) / math.sqrt(probes.shape[0]) if len(probes) > 1 else torch.zeros(len(x))
        rows["nats"].append(result.nats + scaling)
        rows["prior"].append(result.prior)
        rows["divergence"].append(result.divergence)
        rows["probe_stderr"].append(spread)
        rows["mismatch"].append(prior_term(experiment.sde, x))
        progress.advance(len(x))
    progress.close()
    columns = {key: torch.cat([part.double().cpu() for part in parts]).numpy() for key, parts in rows.items()}
    bits = -columns["nats"] / (dimensions * math.log(2)) if levels else None
    meta = checkpoint.read_meta(found)
    result = {
        "bits_per_dim": float(bits.mean()) if levels else None,
        "bits_per_dim_stderr": _stderr(bits) if levels else None,
        "nats": float(columns["nats"].mean()),
        "nats_stderr": _stderr(columns["nats"]),
        "terms": {
            "prior": float(columns["prior"].mean()),
            "divergence": float(columns["divergence"].mean()),
            "dequantization": 0.0,  # minus the log-density of the noise, uniform on one bin
            "scaling": scaling,
        },
        "prior_mismatch_nats": float(columns["mismatch"].mean()),
        "probe_stderr_nats": float(columns["probe_stderr"].mean()) if settings.probes > 1 and not exact else None,
        "nfe": float(np.mean(calls)),
        "divergence": "exact" if exact else settings.probe,
        "probes": 0 if exact else settings.probes,
        "solver": settings.solver,
        "rtol": settings.rtol,
        "atol": settings.atol,
        "t_min": settings.t_min or experiment.sde.t_min,
        "num_examples": num,
        "split": split,
        "dequantization": settings.dequantization,
        "sde": config.sde.name,
        "weights": options.weights,
        "seed": config.seed,
        "checkpoint_step": meta["step"],
        "seconds": time.perf_counter() - start,
        "versions": versions(),
    }
    folder = workdir / "likelihood"
    name = f"{split}-{settings.dequantization}"
    write_npz(folder / f"{name}.npz", **columns, **({"bits_per_dim": bits} if levels else {}))
    write_json(folder / f"{name}.json", result)
    print(report(result))
    print(f"files are {folder / name}.json and .npz")


def check_dequantization(name: str, levels: int) -> None:
    """Raises: ValueError for an unknown name, or one that does not fit data with this number of levels."""
    if name not in DEQUANTIZATIONS:
        raise ValueError(f"unknown likelihood.dequantization {name!r}; known: {', '.join(DEQUANTIZATIONS)}")
    if (name == "uniform") != (levels > 0):
        fits, kind = ("uniform", "whole numbers") if levels else ("none", "real-valued")
        raise ValueError(f"likelihood.dequantization {name!r}, but the data are {kind}: use {fits!r}")


def report(result: dict) -> str:
    """The result as a few lines of text."""
    terms = ", ".join(f"{key} {value:.2f}" for key, value in result["terms"].items())
    found = f"{result['nats']:.3f} +- {result['nats_stderr']:.3f} nats"
    if result["bits_per_dim"] is not None:
        bits = f"{result['bits_per_dim']:.4f} +- {result['bits_per_dim_stderr']:.4f} bits/dim"
        found = f"{bits} ({result['dequantization']} dequantization), {found}"
    else:
        found += "; bits/dim are for data of whole numbers, and these never were"
    return (
        f"{result['split']}: {found}\n"
        f"  mean terms in nats: {terms}; densities may exceed 1, so nats may be positive\n"
        f"  {result['num_examples']} examples once each, {result['nfe']:.0f} evaluations, {result['seconds']:.1f} s; "
        f"prior mismatch at most {result['prior_mismatch_nats']:.4f} nats"
    )


def _stderr(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
