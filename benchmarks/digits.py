"""Four figures for the quality of generated digits, each with the bound that a trained model must meet.

    python benchmarks/digits.py runs/vpsde/samples/pc-500/samples.npz

Frechet distance   between the samples and all 1,797 digits, in the space of their 24 leading principal components
confidence         mean largest class probability of a sample under a support vector machine fitted to all digits
rarest class       smallest fraction of the samples that it assigns to one class
novelty            mean distance of a sample to the nearest training image, relative to the same for test images

Pixels are scaled to [0, 1]. The last column contains the figures of real digits: the two halves of the data against
each other for the distance, test images for the rest (the classifier was fitted to them, too; without them, their
confidence is 0.95). Exit status 1 if a bound is missed.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import end, paths
from score_sde.data import DATASETS
from score_sde.engine.files import read_npz


class Figure(NamedTuple):
    """A measured number, its bound, and the number for real digits."""

    name: str
    value: float
    relation: str
    bound: float
    real: float

    @property
    def met(self) -> bool:
        return self.value <= self.bound if self.relation == "<=" else self.value >= self.bound


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels (N, 64) in [0, 1] and the labels (N,) of one split of the real digits."""
    dataset = DATASETS["digits"](split)
    batch = dataset.batch(np.arange(len(dataset)))
    return batch["x"].flatten(1).numpy() / (dataset.levels - 1), batch["label"].numpy()


def read(path: Path) -> np.ndarray:
    """Returns the samples of a file as pixels (N, 64) in [0, 1].

    The manifest next to the file contains the number of grey levels; without it, samples above 16 have 256 levels.
    """
    samples = read_npz(path, "samples")["samples"]
    manifest = path.with_name("manifest.json")
    levels = json.loads(manifest.read_text()).get("levels") if manifest.exists() else None
    return samples.reshape(len(samples), -1) / ((levels or (17 if samples.max() <= 16 else 256)) - 1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the squared 2-Wasserstein distance between the Gaussians with the moments of two sets of vectors.

        |mean_a - mean_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))

    Shapes: a (N, D), b (M, D).
    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, eq. 6. arXiv:1706.08500
    """
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def nearest(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the mean, over a, of the Euclidean distance to the nearest vector of b."""
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return float(np.sqrt(squared.min(1).clip(0)).mean())


def figures(samples: np.ndarray) -> list[Figure]:
    """Measure samples (N, 64) with pixels in [0, 1]."""
    (train, train_label), (test, test_label) = digits("train"), digits("test")
    real, label = np.concatenate([train, test]), np.concatenate([train_label, test_label])
    components = PCA(24, svd_solver="full").fit(real)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scikit-learn 1.9 deprecates probability=True
        classifier = SVC(kernel="rbf", C=10, probability=True, random_state=0).fit(real, label)
    half = np.random.default_rng(0).permutation(len(real)) < len(real) // 2

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(components.transform(a), components.transform(b))

    def confidence(x: np.ndarray) -> float:
        return float(classifier.predict_proba(x).max(1).mean())

    def rarest(x: np.ndarray) -> float:
        return float(np.bincount(classifier.predict(x), minlength=10).min() / len(x))

    novelty = nearest(samples, train) / nearest(test, train)
    return [
        Figure("Frechet distance", distance(samples, real), "<=", 0.09, distance(real[half], real[~half])),
        Figure("confidence", confidence(samples), ">=", 0.91, confidence(test)),
        Figure("rarest class", rarest(samples), ">=", 0.04, rarest(test)),
        Figure("novelty", novelty, ">=", 0.85, 1.0),
    ]


def main() -> int:
    """Print the four figures of a samples file; return 0 if all bounds are met, else 1."""
    samples = read(*paths("SAMPLES.npz"))
    if samples.shape[1:] != (64,):
        raise ValueError(f"samples of {samples.shape[1]} numbers: need digits of 8x8 pixels")
    table = figures(samples)
    print(f"{len(samples)} samples      measured   bound     real")
    for figure in table:
        verdict = "" if figure.met else "  missed"
        print(f"{figure.name:18}{figure.value:8.4f}   {figure.relation} {figure.bound:.2f}{figure.real:9.4f}{verdict}")
    return 0 if all(figure.met for figure in table) else 1


if __name__ == "__main__":
    end(main)
