"""Codec of a run, and moments of the encoded data."""

import math

from score_sde.configs.default import Config
from score_sde.configs.sections import Choice
from score_sde.data import CODECS, Codec, Dataset, examples
from score_sde.engine.datasets import read_dataset
from score_sde.engine.facts import DataFacts
from score_sde.sde_lib import Gaussian
from score_sde.storage.naming import options, pick


def make_codec(chosen: Choice, facts: DataFacts) -> Codec:
    """Returns the codec of a run.

    Raises: ValueError if the codec was measured on data of another shape, or needs measurements that the run lacks.
    """
    kind = pick(CODECS, "codec", chosen.name)
    if kind.measures and not facts.codec:
        raise ValueError(
            f"codec {chosen.name} needs measurements of the training data, and this run has none: keep the codec "
            "of its training, or train a new run"
        )
    if any(len(numbers) != facts.shape[0] for numbers in facts.codec.values()):
        raise ValueError(f"codec {chosen.name} was measured on data of another shape than {facts.shape}")
    return kind(**options(kind, {**chosen, **facts.codec, "levels": facts.levels}))


def fit_codec(config: Config, split: str, dataset: Dataset) -> Codec:
    """Returns the codec of a config for a split, with arguments measured on the training data if it has any."""
    kind = pick(CODECS, "codec", config.codec.name)
    if kind.measures and split != "train":
        dataset = read_dataset(config.data, "train")
    return kind(levels=dataset.levels, **options(kind, config.codec), **kind.measure(dataset))


def bin_width(codec: Codec) -> float:
    """Returns the width of a level in units of the encoded data; 0 for real-valued data."""
    return math.exp(codec.log_det((1,))) if codec.levels else 0.0


def moment_matched(dataset: Dataset, codec: Codec) -> Gaussian:
    """Returns the moment-matched Gaussian of an encoded dataset; levels are uniform in their bins."""
    return Gaussian.of(examples(dataset, codec), bin_width(codec) ** 2 / 12)
