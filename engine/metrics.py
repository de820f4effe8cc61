"""Metrics of samples against real examples of a split, in the space of a feature network.

Each metric has a floor, its value for real examples in place of the samples, and a protocol. Metrics of two
evaluations are comparable if their protocols agree.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from score_sde.configs.default import Config
from score_sde.data import DataError, Dataset, order
from score_sde.data.dataset import SPLITS
from score_sde.engine import checkpoint
from score_sde.engine.features import Features
from score_sde.engine.files import read_npz, write_npz
from score_sde.engine.inference import usual
from score_sde.storage.reading import read_text

Metrics = dict[str, Mapping[str, float | None]]
"""Name -> {"samples": value, "floor": value}, and "spread", the standard deviation, if the values are means."""


def batches(dataset: Dataset, num: int, size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the first ``num`` examples of a fixed shuffle, so that any number is a fair sample of the split."""
    for numbers in np.array_split(order(0, 0, len(dataset))[:num], -(-num // size)):
        yield dataset.batch(numbers)


def labels(dataset: Dataset, num: int) -> Tensor | None:
    """Class labels of the examples of ``batches``, int64 (num,); None without classes."""
    return torch.cat([batch["label"] for batch in batches(dataset, num, 256)]) if dataset.num_classes else None


def digest(dataset: Dataset, num: int) -> str:
    """SHA-256 of the examples of ``batches``, in hexadecimal."""
    found = hashlib.sha256()
    for batch in batches(dataset, num, 256):
        found.update(batch["x"].numpy().tobytes())
    return found.hexdigest()


def check_subsets(subset_size: int, num: int, sizes: Mapping[str, int]) -> None:
    """Raises: ValueError for a subset larger than the ``num`` samples or the examples of a split."""
    least = min(num, *sizes.values())
    if subset_size > least:
        raise ValueError(
            f"evaluate.subset_size {subset_size}: need at most {least}, for there are {num} samples, {sizes['train']} "
            f"training and {sizes['test']} test examples"
        )


def reference(
    config: Config, datasets: Mapping[str, Dataset], sizes: Mapping[str, int], features: Features, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Feature vectors of both splits, and the protocol; read from the file of an earlier evaluation, or written.

    Raises: DataError if the file is missing or damaged; ValueError if its protocol differs.
    """
    protocol = {"features": features.name, "features_sha256": features.sha256, "levels": datasets["test"].levels}
    for split in SPLITS:
        protocol |= {f"{split}_n": sizes[split], f"{split}_sha256": digest(datasets[split], sizes[split])}
    tag = hashlib.sha256(json.dumps(protocol).encode()).hexdigest()[:12]
    path = Path(config.evaluate.reference or folder / f"reference-{tag}.npz")
    if config.evaluate.reference or path.is_file():
        return read_reference(path, protocol), protocol
    size = config.evaluate.batch_size or usual(datasets["test"].shape)
    real = {s: features.of(batch["x"] for batch in batches(datasets[s], sizes[s], size)) for s in SPLITS}
    write_npz(path, protocol=np.array(json.dumps(protocol)), **{split: real[split].numpy() for split in SPLITS})
    return real, protocol


def read_reference(path: Path, protocol: Mapping[str, Any]) -> dict[str, Tensor]:
    """Feature vectors of both splits from a file whose protocol agrees."""
    stored = read_npz(path, "protocol", *SPLITS)
    try:
        theirs = dict(json.loads(str(stored["protocol"])))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is not a reference of an evaluation; leave evaluate.reference empty") from error
    odd = [
        f"{key} is {theirs.get(key)!r} there and {protocol[key]!r} here"
        for key in protocol
        if theirs.get(key) != protocol[key]
    ]
    if odd:
        raise ValueError(
            f"{path} is a reference of another protocol: {'; '.join(odd)}; leave evaluate.reference empty to make one"
        )
    return {split: torch.from_numpy(stored[split]) for split in SPLITS}


def read_samples(path: Path, dataset: Dataset) -> tuple[Tensor, dict[str, Any]]:
    """Samples from a file of --mode sample, as stored, with the manifest in its folder.

    Raises: DataError if one of the files is missing or damaged; ValueError if the shape or levels of the samples differ
        from those of the dataset.
    """
    samples = torch.from_numpy(read_npz(path, "samples")["samples"])
    try:
        manifest = json.loads(read_text(path.with_name("manifest.json")))
        levels, sampler, steps, *_ = (manifest[key] for key in ("levels", "sampler", "steps", "nfe", "seed"))
        if not re.fullmatch(r"\w+-\d+", f"{sampler}-{steps}"):  # part of a file name
            raise ValueError("sampler or steps is invalid")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.with_name('manifest.json')} is missing or not a manifest: --mode sample writes one; "
            "for samples of another program write a JSON object with levels, sampler, steps, nfe and seed"
        ) from error
    if not samples.isfinite().all():
        raise DataError(f"{path} contains non-finite numbers: sample again, with more --steps")
    if samples.ndim == 4:
        samples = samples.movedim(-1, 1)
    if (tuple(samples.shape[1:]), levels) != (dataset.shape, dataset.levels):
        theirs = f"samples of shape {tuple(samples.shape[1:])} and {levels} levels"
        raise ValueError(f"{path} contains {theirs}, the data have {dataset.shape}, {dataset.levels}")
    return samples, {**manifest, "sha256": checkpoint.sha256(path)}


def distances(
    samples: Tensor, real: Mapping[str, Tensor], split: str, subsets: int, subset_size: int, seed: int
) -> Metrics:
    """Frechet and kernel distance of the samples from a split.

    The floor is the distance of as many examples of the other split, or all if it has fewer.

    Shapes: samples and both entries of real (N, F).
    """
    (other,) = set(SPLITS) - {split}
    pairs = {"samples": (samples, real[split]), "floor": (real[other][: len(samples)], real[split])}
    frechet = {key: frechet_distance(*pair) for key, pair in pairs.items()}
    kernel = {key: kernel_distance(*pair, subsets, subset_size, seed) for key, pair in pairs.items()}
    return {
        "frechet_distance": frechet,
        "kernel_distance": {key: mean for key, (mean, _) in kernel.items()} | {"spread": kernel["samples"][1]},
    }


def novelty(
    pixels: Features, samples: Tensor, datasets: Mapping[str, Dataset], sizes: Mapping[str, int], size: int
) -> Metrics:
    """Mean distance of the encoded samples to the nearest training example, divided by the same for test examples.

    Copies of training examples have novelty 0.
    """

    def vectors(split: str) -> Tensor:
        return pixels.of(batch["x"] for batch in batches(datasets[split], sizes[split], size))

    train = vectors("train")
    validation = nearest(vectors("test"), train)
    if validation == 0:
        raise ValueError("each test example is a training example: give others by data.test_path")
    return {"novelty": {"samples": nearest(pixels.of([samples]), train) / validation, "floor": 1.0}}


def classes(classify: Callable[[Tensor], Tensor], samples: Tensor, test: Tensor, label: Tensor | None) -> Metrics:
    """Statistics of a classifier: mean confidence, fraction of the rarest class, accuracy on the test split.

    Shapes: samples, test (N, F); label int64 (N,), of the test split, or None.
    """
    p = {"samples": classify(samples), "floor": classify(test)}
    rarest = {key: q.argmax(1).bincount(minlength=q.shape[1]).min().item() / len(q) for key, q in p.items()}
    found: Metrics = {"confidence": {key: q.amax(1).mean().item() for key, q in p.items()}, "rarest_class": rarest}
    if label is not None:
        found["accuracy"] = {"samples": None, "floor": (p["floor"].argmax(1) == label).double().mean().item()}
    return found


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """Squared 2-Wasserstein distance between the Gaussians with the moments of two sets of vectors.

        |m_x - m_y|^2 + tr(A + B - 2 (A B)^(1/2))

    Shapes: x (N, F), y (M, F).
    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, eq. 6. arXiv:1706.08500
    """
    return _measured(FrechetInceptionDistance(feature=_given(x)), x, y).item()


def kernel_distance(x: Tensor, y: Tensor, subsets: int, subset_size: int, seed: int) -> tuple[float, float]:
    """Squared maximum mean discrepancy under the kernel (a.b / F + 1)^3: mean and deviation over random subsets.

    The estimator is unbiased: its mean is 0 for two sets of the same distribution, so a subset may have a negative
    value.

    Shapes: x (N, F), y (M, F).
    Reference: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", 2018, eq. 4. arXiv:1801.01401
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # about the memory for all vectors
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_given(x), subsets=subsets, subset_size=subset_size)
        mean, deviation = _measured(metric, x, y)
    return mean.item(), deviation.item()


def nearest(x: Tensor, y: Tensor) -> float:
    """Mean over x (N, F) of the Euclidean distance to the nearest vector of y (M, F)."""
    return torch.cat([torch.cdist(part, y).amin(1) for part in x.split(256)]).mean().item()


class _Given(nn.Identity):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _given(x: Tensor) -> nn.Module:
    """Identity as the feature network of torchmetrics, for vectors that are features."""
    return _Given(x.shape[1])


def _measured(metric: FrechetInceptionDistance | KernelInceptionDistance, x: Tensor, y: Tensor) -> Any:
    metric.update(x.double(), real=False)
    metric.update(y.double(), real=True)
    return metric.compute()


def report(result: Mapping[str, Any]) -> str:
    """Table of the result as text."""
    protocol, drawn = result["protocol"], result["samples"]
    lines = [f"{protocol['num_samples']} samples against {protocol['split']} data      samples       real"]
    for name, row in result["metrics"].items():
        value, floor = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("samples", "floor"))
        spread = f"   the samples' spread over subsets is {row['spread']:.4f}" if "spread" in row else ""
        lines.append(f"  {name.replace('_', ' '):<18}{value:>23} {floor:>10}{spread}")
    how = f"{drawn['sampler']} in {drawn['steps']} steps, {drawn['nfe']:g} evaluations, seed {drawn['seed']}"
    return "\n".join([*lines, f"  {how}; features {protocol['features']}, {result['seconds']:.1f} s"])
