"""Remarks on a dataset before training on it."""

from score_sde.data import Dataset

SHOWN_ENTRIES = 2**26
"""Largest number of entries in a contact sheet: 64 images of 3 x 512 x 512, or fewer larger ones."""


NAMED_CLASSES = 20


def remarks(dataset: Dataset) -> list[str]:
    """Returns lines on a dataset: the names of its classes by number, and notes of its reader."""
    names = [f"{number} {name}" for number, name in enumerate(dataset.classes)]
    more = f", ... {names[-1]}" if len(names) > NAMED_CLASSES else ""
    classes = [f"classes: {', '.join(names[: NAMED_CLASSES - 1 if more else NAMED_CLASSES])}{more}"] if names else []
    return [*classes, *dataset.notes]
