"""Likelihood of a split: bits per dimension for whole numbers, nats for real-valued data."""

import math
import time
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.engine import checkpoint, ranks
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.density import DensityEstimator, check_copies, check_dequantization
from score_sde.engine.files import write_json, write_npz
from score_sde.engine.likelihood_report import report, summary
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say
from score_sde.engine.results import question, result_files, result_record
from score_sde.engine.scoring import open_rows, score_split


def run(config: Config, workdir: Path, given: Options) -> None:
    """Scores each example of a split; writes <split>-<dequantization>.json, and .npz with a row for each example."""
    settings, split = config.likelihood, given.split or "test"
    experiment, denoiser, found = load(config, workdir, given)
    check_flow(denoiser, workdir)
    check_dequantization(settings.dequantization, experiment.facts.levels)
    estimator = DensityEstimator.of(config, experiment, denoiser)
    check_copies(estimator)
    dataset = read_dataset(config.data, split)
    check_form(config, dataset, experiment.facts)
    num = min(settings.num_examples or len(dataset), len(dataset))

    folder, name, start = workdir / "likelihood", f"{split}-{settings.dequantization}", time.perf_counter()
    num_checks = min(settings.check_examples, num)
    estimator, check = estimator.converged(dataset, num_checks) if num_checks else (estimator, None)
    rows = open_rows(folder, name, config, given, checkpoint.read_meta(found), estimator, split, len(dataset))
    before = score_split(estimator, dataset, rows, num, settings.batch_size)
    if ranks.rank() > 0:
        return

    columns = rows.collect(num)
    asked = question(config, ("data", "likelihood"), given, found, split=split, likelihood__num_examples=num)
    result = {
        **summary(columns, experiment, settings, check),
        "check": check,
        "num_examples": num,
        "split": split,
        **estimator.record(),
        "settings": settings.to_dict(),
        "sde": config.sde.name,
        "scored_before": before,
        **result_record(config, given, asked, time.perf_counter() - start, found),
    }
    if experiment.facts.levels:
        columns["bits_per_dim"] = -columns["nats"] / (math.prod(experiment.facts.shape) * math.log(2))
    with result_files(folder, (f"{name}.json", f"{name}.npz"), asked) as partial:
        write_npz(partial / f"{name}.npz", **columns)
        write_json(partial / f"{name}.json", result)
    rows.forget()
    say(*report(result).split("\n"))
    say(f"files are {folder / name}.json and .npz")
