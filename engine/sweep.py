"""Fidelity and diversity of samples with labels, relative to real examples.

Fidelity is the accuracy of a classifier on the requested labels, and the distance to the data. Diversity is the mean
distance between samples of a class, divided by the same mean for real examples of that class.
"""

from pathlib import Path

import torch
from torch import Tensor

from score_sde.engine.features import Features
from score_sde.engine.metrics import frechet_distance
from score_sde.storage.writing import replace


def fidelity_and_diversity(
    features: Features, vectors: Tensor, label: Tensor, real: Tensor, spread: dict[int, float]
) -> dict[str, float]:
    """Frechet distance of the samples to the real examples, their diversity, and the accuracy of a classifier.

    Diversity is the mean over the classes of the ratio of spreads. Without common classes, or without a classifier, the
    entry is missing.

    Args:
        vectors, real: features of samples (N, F) and real examples (M, F).
        label: requested class labels, int64 (N,).
        spread: ``spreads`` of the real examples.
    """
    found = {"frechet_distance": frechet_distance(vectors, real)}
    own = spreads(vectors, label)
    ratios = [own[k] / spread[k] for k in own if spread.get(k)]
    if ratios:
        found["diversity"] = sum(ratios) / len(ratios)
    if features.classify:
        found["accuracy"] = (features.classify(vectors).argmax(1) == label).double().mean().item()
    return found


def spreads(vectors: Tensor, label: Tensor) -> dict[int, float]:
    """Mean distance between two vectors (N, F) of a class, for every class with at least two."""
    groups = {int(k): vectors[label == k] for k in label.unique()}
    return {k: torch.pdist(group.double()).mean().item() for k, group in groups.items() if len(group) > 1}


def plot(path: Path, rows: list[dict[str, float]], key: str) -> None:
    """Plots fidelity over diversity, one point per scale, whose entry in a row is ``key``."""
    from matplotlib.figure import Figure

    if "diversity" not in rows[0]:
        return
    kinds = [kind for kind in ("accuracy", "frechet_distance") if kind in rows[0]]
    figure = Figure(figsize=(5 * len(kinds), 4), dpi=100, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds):
        axes.plot([row["diversity"] for row in rows], [row[kind] for row in rows], "o-")
        for row in rows:
            axes.annotate(f"{row[key]:g}", (row["diversity"], row[kind]), textcoords="offset points", xytext=(6, 4))
        axes.set(xlabel="diversity within classes, real data = 1", ylabel=kind.replace("_", " "), title=key)
    replace(path, lambda file: figure.savefig(file, format="png"))
