"""Evaluation: samples beside real examples of a split, in the space of a feature network.

A number says little by itself, so each has its floor, what real examples score in the place of the samples, and its
protocol: numbers of two evaluations are comparable where their protocols agree.
"""

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3
from torchmetrics.image.kid import KernelInceptionDistance

from score_sde.data import DataError, Dataset, order
from score_sde.data.dataset import SPLITS
from score_sde.engine import checkpoint, ranks
from score_sde.engine.build import check_form, fit_codec, load_model, make_device, read_dataset
from score_sde.engine.commands import training_command
from score_sde.engine.config import Options, flat
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.engine.files import read_npz, write_json, write_npz
from score_sde.engine.inference import usual
from score_sde.engine.log import say, versions
from score_sde.engine.related import recipe_of
from score_sde.engine.results import question, result_files
from score_sde.engine.sample import draw_run
from score_sde.sde_lib import OBJECTIVES
from score_sde.storage.naming import unknown
from score_sde.storage.reading import half_of_memory, obstacle, open_file, read_text

Metrics = dict[str, dict[str, float | None]]
"""Name -> {"samples": number, "floor": number}, and "spread" where the numbers are means."""


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Compare samples with a split; write <workdir>/evaluation/<sampler>-<steps>-<features>-<split>.json."""
    settings, split, start = config.evaluate, options.split or "test", time.perf_counter()
    if ranks.rank() > 0:  # shares in the drawing alone
        if not settings.samples:
            draw_run(config, workdir, options, settings.num_samples, settings.batch_size)
        ranks.leave_to_first()
        return
    datasets = {name: read_dataset(config, name) for name in SPLITS}
    features = make_features(config, datasets["train"])
    given = read_samples(Path(settings.samples), datasets[split]) if settings.samples else None
    num = len(given[0]) if given else settings.num_samples
    sizes = {name: min(settings.num_examples or len(dataset), len(dataset)) for name, dataset in datasets.items()}
    if settings.subset_size > min(num, *sizes.values()):
        raise ValueError(
            f"evaluate.subset_size {settings.subset_size}: need at most {min(num, *sizes.values())}, for there are "
            f"{num} samples, {sizes['train']} training and {sizes['test']} test examples"
        )
    folder = workdir / "evaluation"
    real, protocol = reference(config, datasets, sizes, features, folder)

    if given is None:
        drawn = draw_run(config, workdir, options, num, settings.batch_size)
        check_form(config, datasets[split], drawn.experiment.facts)
        given = drawn.experiment.codec.decode(drawn.x0).cpu(), drawn.manifest
    ranks.leave_to_first()
    samples, manifest = given
    size = settings.batch_size or usual(samples.shape[1:])
    vectors = features.of(samples.split(size))
    found = distances(vectors, real, split, settings.subsets, settings.subset_size, config.seed)
    found |= novelty(identity(config, datasets["train"]), samples, datasets, sizes, size)
    if features.classify:
        found |= classes(features.classify, vectors, real["test"], labels(datasets["test"], sizes["test"]))
    drawn_for = {key: manifest[key] for key in ("asked", "sha256") if key in manifest}
    more = {"split": split, "features_sha256": features.sha256, "samples": drawn_for}
    asked = flat(question(config, ("data", "evaluate"), options, **more))
    result = {
        "metrics": found,
        "protocol": {**protocol, "split": split, "num_samples": num, "seed": config.seed}
        | {key: settings[key] for key in ("subsets", "subset_size")},
        "samples": manifest,
        "asked": asked,
        "changes": options.changes,
        "seconds": time.perf_counter() - start,
        "versions": {**versions(), "torchmetrics": version("torchmetrics")},
    }
    name = f"{manifest['sampler']}-{manifest['steps']}-{features.name}-{split}.json"
    with result_files(folder, [name], result["asked"]) as partial:
        write_json(partial / name, result)
    say(*report(result).split("\n"))
    say(f"files are in {folder}")


# --- features ---------------------------------------------------------------------------------------------------------


class Features(NamedTuple):
    """A map from data, as they are stored, to vectors.

    Attributes:
        name: of its kind.
        sha256: of the weights, in hexadecimal; empty where there are none.
        extract: (B, *) -> (B, F).
        classify: vectors (B, F) -> probabilities (B, K), or None.
    """

    name: str
    sha256: str
    extract: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def of(self, batches: Iterable[Tensor]) -> Tensor:
        """The vectors of all batches, (N, F) float32 on the CPU."""
        return torch.cat([self.extract(batch).float().cpu() for batch in batches])


def make_features(config: ConfigDict, dataset: Dataset) -> Features:
    """What ``evaluate.features`` names: a key of ``FEATURES``, or the folder of a classifier's run.

    Args:
        dataset: the training data.
    Raises: ValueError for an unknown name, or a network that does not fit the data; CheckpointError or DataError for
    weights that are missing or damaged.
    """
    name = config.evaluate.features
    if name not in FEATURES and "/" not in name and not Path(name).is_dir():
        raise unknown("evaluate.features", name, [*FEATURES, "the folder of a classifier's run"])
    return FEATURES.get(name, classifier)(config, dataset)


def identity(config: ConfigDict, dataset: Dataset) -> Features:
    """The encoded data themselves, as vectors."""
    codec = fit_codec(config, "train", dataset)
    return Features("identity", "", lambda x: codec.encode(x).flatten(1))


def classifier(config: ConfigDict, dataset: Dataset) -> Features:
    """What the last layer of a classifier reads, of data at the earliest time of its process."""
    folder = Path(config.evaluate.features)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no classifier in {folder}{looked_at(folder)}: {remedy(config, dataset, folder)}")
    other = folder.with_name(f"{folder.name}-{config.data.name}")
    recipe = recipe_of(folder, config)
    if OBJECTIVES[recipe.loss.name].generates:
        raise ValueError(f"the run in {folder} is no classifier: {remedy(config, dataset, other)}")
    experiment, classify, found = load_model(recipe, folder, Options())
    try:
        check_form(recipe, dataset, experiment.facts)
    except ValueError as error:
        raise ValueError(f"evaluate.features {folder}: {error}: {remedy(config, dataset, other)}") from error
    meta = checkpoint.read_meta(found)

    def extract(x: Tensor) -> Tensor:
        return classify.features(experiment.codec.encode(x.to(experiment.device)), experiment.sde.t_min)

    def probabilities(vectors: Tensor) -> Tensor:
        return classify.network.output(vectors.to(experiment.device)).softmax(1).cpu()

    return Features("classifier", meta["sha256"][meta["ema"][0]], extract, probabilities)


def remedy(config: ConfigDict, dataset: Dataset, folder: Path) -> str:
    """What to do without a classifier of the data: the command that trains one into ``folder``, or other features."""
    identity = "use --config.evaluate.features=identity"
    if not dataset.num_classes or len(dataset.shape) not in (2, 3):
        return f"{identity}, since no classifier learns these data"
    command = training_command("classifier", config, folder, dataset.shape, dataset.num_classes)
    return f"train one with {command} and name it by --config.evaluate.features={folder}, or {identity}"


def inception(config: ConfigDict, dataset: Dataset) -> Features:
    """The 2,048 features of Inception v3 with the weights of the published distances, from a local file."""
    path, levels = Path(config.evaluate.inception_path), dataset.levels
    if not (levels and len(dataset.shape) == 3 and dataset.shape[0] in (1, 3)):
        raise ValueError(f"the features inception are of images, not of data of shape {dataset.shape}; use identity")
    if not config.evaluate.inception_path:
        raise ValueError(
            "evaluate.inception_path is empty: give pt_inception-2015-12-05-6726825d.pth, which torch-fidelity releases"
        )
    if find_spec("torch_fidelity") is None:
        raise DataError(
            "the features inception need torch-fidelity, which is not installed: pip install torch-fidelity"
        )
    device = make_device(config.device)
    try:
        with open_file(path, half_of_memory()) as file:  # torch-fidelity itself would run code from it
            torch.load(file, map_location="cpu", weights_only=True)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device).eval()
    except Exception as error:  # torch raises errors of many kinds on damaged files
        reason = obstacle(error) or "it does not hold the weights of Inception v3"
        raise DataError(f"evaluate.inception_path {path} cannot be used ({reason}): fetch it again") from error

    def extract(x: Tensor) -> Tensor:
        shades = (x.float() * (255 / (levels - 1))).round().to(torch.uint8)
        return network(shades.expand(-1, 3, -1, -1).to(device))

    return Features("inception", checkpoint.sha256(path), extract)


FEATURES: dict[str, Callable[[ConfigDict, Dataset], Features]] = {"identity": identity, "inception": inception}
"""What the user may name in ``evaluate.features`` beside the folder of a classifier's run."""


# --- data -------------------------------------------------------------------------------------------------------------


def batches(dataset: Dataset, num: int, size: int) -> Iterator[dict[str, Tensor]]:
    """The first ``num`` examples of a fixed shuffle, so that fewer of them are a fair sample too."""
    for numbers in np.array_split(order(0, 0, len(dataset))[:num], -(-num // size)):
        yield dataset.batch(numbers)


def labels(dataset: Dataset, num: int) -> Tensor | None:
    """Their classes, (num,) int64, where the data have any."""
    return torch.cat([batch["label"] for batch in batches(dataset, num, 256)]) if dataset.num_classes else None


def digest(dataset: Dataset, num: int) -> str:
    """SHA-256 of their numbers, in hexadecimal."""
    found = hashlib.sha256()
    for batch in batches(dataset, num, 256):
        found.update(batch["x"].numpy().tobytes())
    return found.hexdigest()


def reference(
    config: ConfigDict, datasets: Mapping[str, Dataset], sizes: Mapping[str, int], features: Features, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The vectors of both splits with their protocol: from the file of an earlier evaluation, or made and kept.

    Raises: DataError if the file is missing or damaged; ValueError if its protocol is another one.
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
    """The vectors of both splits, if they are those that the protocol asks for."""
    stored = read_npz(path, "protocol", *SPLITS)
    try:
        theirs = dict(json.loads(str(stored["protocol"])))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no reference of an evaluation; leave evaluate.reference empty") from error
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
    """The samples of a file that --mode sample wrote, as they are stored, and the manifest beside it.

    Raises: DataError if one of them is missing or damaged; ValueError if they are not of the form of the dataset.
    """
    samples = torch.from_numpy(read_npz(path, "samples")["samples"])
    try:
        manifest = json.loads(read_text(path.with_name("manifest.json")))
        levels, sampler, steps, *_ = (manifest[key] for key in ("levels", "sampler", "steps", "nfe", "seed"))
        if not re.fullmatch(r"\w+-\d+", f"{sampler}-{steps}"):  # it becomes the name of a file
            raise ValueError("sampler and steps are no name and number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.with_name('manifest.json')} is missing or no manifest: --mode sample writes one; "
            "for samples of another program write a JSON object with levels, sampler, steps, nfe and seed"
        ) from error
    if not samples.isfinite().all():
        raise DataError(f"{path} holds numbers that are not finite: sample again, with more --steps")
    if samples.ndim == 4:
        samples = samples.movedim(-1, 1)
    if (tuple(samples.shape[1:]), levels) != (dataset.shape, dataset.levels):
        theirs = f"samples of shape {tuple(samples.shape[1:])} and {levels} levels"
        raise ValueError(f"{path} holds {theirs}, the data have {dataset.shape}, {dataset.levels}")
    return samples, {**manifest, "sha256": checkpoint.sha256(path)}


# --- numbers ----------------------------------------------------------------------------------------------------------


def distances(
    samples: Tensor, real: Mapping[str, Tensor], split: str, subsets: int, subset_size: int, seed: int
) -> Metrics:
    """Of the samples from a split; for floor, of as many examples of the other split, or all of them if it has fewer.

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
    """Mean distance to the nearest training example, encoded as it is, over that of test examples: copies score 0."""

    def vectors(split: str) -> Tensor:
        return pixels.of(batch["x"] for batch in batches(datasets[split], sizes[split], size))

    train = vectors("train")
    held_out = nearest(vectors("test"), train)
    if held_out == 0:
        raise ValueError("each test example is a training example: give others by data.test_path")
    return {"novelty": {"samples": nearest(pixels.of([samples]), train) / held_out, "floor": 1.0}}


def classes(classify: Callable[[Tensor], Tensor], samples: Tensor, test: Tensor, label: Tensor | None) -> Metrics:
    """What the classifier makes of the samples, and of the test split: sure, of all classes, and how often right.

    Shapes: samples, test (N, F); label int64 (N,), of the test split, or None.
    """
    p = {"samples": classify(samples), "floor": classify(test)}
    rarest = {key: q.argmax(1).bincount(minlength=q.shape[1]).min().item() / len(q) for key, q in p.items()}
    found = {"confidence": {key: q.amax(1).mean().item() for key, q in p.items()}, "rarest_class": rarest}
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

    Without bias, so 0 on average where both sets are of one law; a subset may fall below.

    Shapes: x (N, F), y (M, F).
    Reference: Binkowski, Sutherland, Arbel, Gretton, "Demystifying MMD GANs", 2018, eq. 4. arXiv:1801.01401
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all vectors
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=_given(x), subsets=subsets, subset_size=subset_size)
        mean, deviation = _measured(metric, x, y)
    return mean.item(), deviation.item()


def nearest(x: Tensor, y: Tensor) -> float:
    """Mean over x of the Euclidean distance to the nearest of y."""
    return torch.cat([torch.cdist(part, y).amin(1) for part in x.split(256)]).mean().item()


def _given(x: Tensor) -> nn.Module:
    """A feature network for vectors that are features already."""
    passed = nn.Identity()
    passed.num_features = x.shape[1]
    return passed


def _measured(metric: nn.Module, x: Tensor, y: Tensor) -> Any:
    metric.update(x.double(), real=False)
    metric.update(y.double(), real=True)
    return metric.compute()


def report(result: Mapping[str, Any]) -> str:
    """The result as a small table."""
    protocol, drawn = result["protocol"], result["samples"]
    lines = [f"{protocol['num_samples']} samples against {protocol['split']} data      samples       real"]
    for name, row in result["metrics"].items():
        value, floor = ("" if row[key] is None else f"{row[key]:.4f}" for key in ("samples", "floor"))
        spread = f"   the samples' spread over subsets is {row['spread']:.4f}" if "spread" in row else ""
        lines.append(f"  {name.replace('_', ' '):<18}{value:>23} {floor:>10}{spread}")
    how = f"{drawn['sampler']} in {drawn['steps']} steps, {drawn['nfe']:g} evaluations, seed {drawn['seed']}"
    return "\n".join([*lines, f"  {how}; features {protocol['features']}, {result['seconds']:.1f} s"])
