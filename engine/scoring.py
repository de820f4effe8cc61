"""Log-densities of the examples of a split, batch by batch, resumed from an earlier command that was stopped."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_sde.configs.default import Config
from score_sde.data import Dataset
from score_sde.engine import ranks
from score_sde.engine.config import Options
from score_sde.engine.density import DensityEstimator
from score_sde.engine.inference import FittingBatches, filling
from score_sde.engine.log import Progress, say
from score_sde.engine.partial_results import PartialResults

WITHOUT_EFFECT = {"batch_size", "num_examples", "check_examples"}
"""Keys of the section ``likelihood`` that do not change the log-density of an example."""


def open_rows(
    folder: Path,
    name: str,
    config: Config,
    given: Options,
    meta: Mapping[str, Any],
    estimator: DensityEstimator,
    split: str,
    size: int,
) -> PartialResults:
    """Opens the results of the examples, with the results of earlier commands with the same inputs.

    The inputs are everything that a log-density depends on.

    Args:
        meta: as returned by ``checkpoint.read_meta``.
        size: number of examples in the split.
    """
    depends = {
        "settings": {key: value for key, value in config.likelihood.to_dict().items() if key not in WITHOUT_EFFECT},
        "model": [config[section].to_dict() for section in ("data", "codec", "sde", "network", "denoiser")],
        "checkpoint": meta["sha256"],
        "weights": given.weights,
        "split": [split, size],
        "seed": config.seed,
        "device": estimator.experiment.device.type,
        "solver": str(estimator.solver),
    }
    return PartialResults(folder, name, depends)


def score_split(estimator: DensityEstimator, dataset: Dataset, rows: PartialResults, num: int, batch_size: int) -> int:
    """Appends the missing rows of the first ``num`` examples; returns the number of rows from earlier commands.

    Several processes share the batches and meet at the end.

    Args:
        batch_size: examples in a batch; 0 for as many as fit on the device.
    """
    before = sum(i < num for i in rows.found)
    if before:
        say(f"{before} of {num} examples were scored by an earlier command: going on with the others")
    elif others := rows.others():
        say(f"{others[0]} is of other settings, seed, checkpoint, weights or data: starting anew")
    batch_size = batch_size or filling(
        num,
        estimator.experiment.facts.shape,
        estimator.experiment.device,
        lambda number: estimator.shortest().score(dataset, list(range(number))),
    )
    batches = rows.missing(num, batch_size)
    progress, parts = Progress(sum(map(len, batches)), "examples"), FittingBatches()
    for batch in batches:
        for examples, columns in parts(functools.partial(estimator.score, dataset), batch):
            rows.append(examples, columns)
            progress.advance(len(examples))
    progress.close()
    ranks.wait_for_all()
    return before
