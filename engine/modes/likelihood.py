"""Likelihood of a split: bits per dimension of whole numbers, nats of real-valued data."""

import functools
import math
import time
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.engine import checkpoint, ranks
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.density import DensityEstimator, check_copies, check_dequantization
from score_sde.engine.files import write_json, write_npz
from score_sde.engine.inference import Parts, filling
from score_sde.engine.likelihood_report import report, summary
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import Progress, say, versions
from score_sde.engine.results import question, result_files
from score_sde.engine.rows import Rows


def run(config: ConfigDict, workdir: Path, given: Options) -> None:
    """Score each example of a split; write <split>-<dequantization>.json, and .npz with a row for each."""
    settings, split = config.likelihood, given.split or "test"
    experiment, denoiser, found = load(config, workdir, given)
    check_flow(denoiser, workdir)
    check_dequantization(settings.dequantization, experiment.facts.levels)
    measurement = DensityEstimator.of(config, experiment, denoiser)
    check_copies(measurement)
    dataset = read_dataset(config, split)
    check_form(config, dataset, experiment.facts)
    num = min(settings.num_examples or len(dataset), len(dataset))

    folder, name, start = workdir / "likelihood", f"{split}-{settings.dequantization}", time.perf_counter()
    meta, free = checkpoint.read_meta(found), {"batch_size", "num_examples", "check_examples"}
    depends = {
        "settings": {key: value for key, value in settings.items() if key not in free},
        "model": [config[section].to_dict() for section in ("data", "codec", "sde", "network", "denoiser")],
        "checkpoint": meta["sha256"],
        "weights": given.weights,
        "split": [split, len(dataset)],
        "seed": config.seed,
        "device": experiment.device.type,
    }
    checks, speaks = min(settings.check_examples, num), ranks.rank() == 0
    measurement, checked = measurement.converged(dataset, checks) if checks else (measurement, None)
    rows = Rows(folder, name, {**depends, "solver": str(measurement.solver)})
    before = sum(i < num for i in rows.found)
    if speaks and before:
        say(f"{before} of {num} examples were scored by an earlier command: going on with the others")
    elif speaks and (others := rows.others()):
        say(f"{others[0]} is of other settings, seed, checkpoint, weights or data: starting anew")
    batch_size = settings.batch_size or filling(
        num,
        experiment.facts.shape,
        experiment.device,
        lambda number: measurement.shortest().score(dataset, list(range(number))),
    )
    batches = rows.missing(num, batch_size)
    progress, parts = Progress(sum(map(len, batches)), "examples"), Parts()
    for batch in batches:
        for examples, columns in parts(functools.partial(measurement.score, dataset), batch):
            rows.append(examples, columns)
            progress.advance(len(examples))
    progress.close()
    ranks.wait_for_all()
    if not speaks:
        return
    columns = rows.collect(num)
    result = {
        **summary(columns, experiment, settings, checked),
        "check": checked,
        "num_examples": num,
        "split": split,
        **measurement.record(),
        "settings": settings.to_dict(),
        "sde": config.sde.name,
        "changes": given.changes,
        "weights": given.weights,
        "seed": config.seed,
        "checkpoint_step": meta["step"],
        "scored_before": before,
        "seconds": time.perf_counter() - start,
        "asked": question(config, ("data", "likelihood"), given, found, split=split, likelihood__num_examples=num),
        "versions": versions(),
    }
    if experiment.facts.levels:
        columns["bits_per_dim"] = -columns["nats"] / (math.prod(experiment.facts.shape) * math.log(2))
    with result_files(folder, (f"{name}.json", f"{name}.npz"), result["asked"]) as partial:
        write_npz(partial / f"{name}.npz", **columns)
        write_json(partial / f"{name}.json", result)
    rows.forget()
    say(*report(result).split("\n"))
    say(f"files are {folder / name}.json and .npz")
