"""Facts of the training data, stored in the checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from score_sde.data import Codec, Dataset, measure


@dataclass(frozen=True)
class DataFacts:
    """Facts of the training data that a run needs without the data; stored in each checkpoint.

    Args:
        shape: shape of an example.
        levels: number of values of an entry, 0 for real-valued data.
        std: standard deviation of the encoded training data.
        diameter: largest distance between two encoded training examples.
        classes: names of the classes by number; empty without names, as in runs of earlier versions.
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
        """Measures the facts of a dataset."""
        measured = measure(dataset, codec)
        about = dataset.classes, codec.measured
        return cls(dataset.shape, dataset.levels, measured.std, measured.diameter, *about)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DataFacts":
        """Inverse of ``dataclasses.asdict``, for values read from JSON."""
        classes = tuple(map(str, values.get("classes", ())))
        codec = {key: tuple(numbers) for key, numbers in values.get("codec", {}).items()}
        return cls(**{**values, "shape": tuple(values["shape"]), "classes": classes, "codec": codec})
