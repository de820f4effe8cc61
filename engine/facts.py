"""Facts of the data of a run, kept in its checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from score_sde.data import Codec, Dataset, measure


@dataclass(frozen=True)
class DataFacts:
    """What a run has to know of its data once they are gone; kept in each checkpoint.

    Args:
        shape: of one example.
        levels: number of values an entry can take, 0 for real-valued data.
        std: standard deviation of the encoded training data.
        diameter: largest distance between two encoded training examples.
        classes: the name of each class, in the order of their numbers; empty if they have none. Runs trained before
            there was such a key have none either.
        codec: arguments of the codec that were measured on the training data.
    """

    shape: tuple[int, ...]
    levels: int
    std: float
    diameter: float
    classes: tuple[str, ...] = ()
    codec: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset, codec: Codec) -> "DataFacts":
        """Measured on a dataset."""
        measured = measure(dataset, codec)
        about = dataset.classes, codec.measured
        return cls(dataset.shape, dataset.levels, measured.std, measured.diameter, *about)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataFacts":
        """Inverse of ``dataclasses.asdict``, through JSON."""
        classes = tuple(map(str, values.get("classes", ())))
        codec = {key: tuple(numbers) for key, numbers in values.get("codec", {}).items()}
        return cls(**{**values, "shape": tuple(values["shape"]), "classes": classes, "codec": codec})
