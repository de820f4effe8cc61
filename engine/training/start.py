"""The start of training: the newest checkpoint of a run, or a new network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from score_sde.configs.default import Config
from score_sde.data import Dataset
from score_sde.engine import checkpoint
from score_sde.engine.build import Experiment, build
from score_sde.engine.codecs import fit_codec, make_codec, moment_matched
from score_sde.engine.datasets import check_classes
from score_sde.engine.devices import set_threads
from score_sde.engine.facts import DataFacts
from score_sde.engine.load import check_there, load_average
from score_sde.engine.training.checks import note_attention
from score_sde.engine.training.fingerprint import check_same_data, fingerprint


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Args:
        path: the checkpoint; None for a new run.
        meta: values of its meta.json; empty for a new run.
        step: steps before the start.
        images_seen: examples before the start.
        data_sha256: fingerprint of the training data.
    """

    path: Path | None
    meta: Mapping[str, Any]
    step: int
    images_seen: int
    data_sha256: str


def find_start(config: Config, workdir: Path, dataset: Dataset) -> Start:
    """Returns the newest checkpoint of a run as the start, or a new start.

    An imported checkpoint has no count of examples; its steps count train.batch_size examples each.

    Raises: ValueError if the run was trained on other data; CheckpointError if all checkpoints are damaged.
    """
    path, own = checkpoint.newest(workdir / "checkpoints"), fingerprint(dataset)
    if path is None:
        note_attention(config, dataset.shape)
        return Start(None, {}, 0, 0, own)
    meta = checkpoint.read_meta(path)
    check_same_data(dataset, own, meta, workdir)
    check_classes(config, dataset, DataFacts.from_dict(meta["data"]))
    seen = meta.get("images_seen", meta["step"] * config.train.batch_size)
    return Start(path, meta, meta["step"], seen, own)


def make_experiment(config: Config, dataset: Dataset, start: Start) -> Experiment:
    """Returns the experiment of a config, with the raw weights of the checkpoint, of train.init, or new ones.

    Also sets the number of threads, the seed of PyTorch and its deterministic mode.

    Raises: ValueError for a config that does not fit; CheckpointError for damaged weights or another network.
    """
    set_threads(config, dataset.shape)
    if start.path:
        facts = DataFacts.from_dict(start.meta["data"])
        gaussian = checkpoint.load_gaussian(start.path, facts.shape)
    else:
        facts, gaussian = DataFacts.of(dataset, fit_codec(config, "train", dataset)), None
    torch.manual_seed(config.seed)
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
    experiment = build(config, facts, gaussian or moment_matched(dataset, make_codec(config.codec, facts)))
    if start.path:
        checkpoint.load_network(start.path, checkpoint.RAW, experiment.network)
    elif config.train.init:
        check_there("train.init", Path(config.train.init), config, facts.shape)
        load_average(Path(config.train.init), experiment.network)
    experiment.network.train()
    return experiment
