"""Feature networks: maps from stored data to vectors, for the comparison of samples with real examples."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.image.fid import NoTrainInceptionV3

from score_sde.configs.default import Config
from score_sde.data import DataError, Dataset
from score_sde.engine import checkpoint
from score_sde.engine.codecs import fit_codec
from score_sde.engine.commands import training_command
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form
from score_sde.engine.devices import make_device
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.engine.load import load_model
from score_sde.engine.related import recipe_of
from score_sde.sde_lib import OBJECTIVES, Classifier
from score_sde.storage.naming import unknown
from score_sde.storage.reading import half_of_memory, obstacle, open_file


class Features(NamedTuple):
    """A map from stored data to vectors.

    Attributes:
        name: kind of features.
        sha256: digest of the weights, in hexadecimal; empty without weights.
        extract: data (B, *) -> vectors (B, F).
        classify: vectors (B, F) -> class probabilities (B, K); None without a classifier.
    """

    name: str
    sha256: str
    extract: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None = None

    @torch.no_grad()
    def of(self, batches: Iterable[Tensor]) -> Tensor:
        """Vectors of all batches, (N, F) float32 on the CPU."""
        return torch.cat([self.extract(batch).float().cpu() for batch in batches])


def make_features(config: Config, dataset: Dataset) -> Features:
    """Features of ``evaluate.features``: a key of ``FEATURES``, or the folder of a classifier's run.

    Args:
        dataset: training data.
    Raises: ValueError for an unknown name, or a network that does not fit the data; CheckpointError or DataError for
        weights that are missing or damaged.
    """
    name = config.evaluate.features
    if name not in FEATURES and "/" not in name and not Path(name).is_dir():
        raise unknown("evaluate.features", name, [*FEATURES, "the folder of a classifier's run"])
    return FEATURES.get(name, classifier)(config, dataset)


def identity(config: Config, dataset: Dataset) -> Features:
    """Encoded data, flattened."""
    codec = fit_codec(config, "train", dataset)
    return Features("identity", "", lambda x: codec.encode(x).flatten(1))


def classifier(config: Config, dataset: Dataset) -> Features:
    """Inputs of the last layer of a classifier, for data at t_min of its SDE."""
    folder = Path(config.evaluate.features)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"no classifier in {folder}{looked_at(folder)}: {remedy(config, dataset, folder)}")
    other = folder.with_name(f"{folder.name}-{config.data.name}")
    recipe = recipe_of(folder, config)
    if OBJECTIVES[recipe.loss.objective.name].trains_denoiser():
        raise ValueError(f"the run in {folder} is not a classifier: {remedy(config, dataset, other)}")
    experiment, classify, found = load_model(recipe, folder, Options())
    try:
        check_form(recipe, dataset, experiment.facts)
    except ValueError as error:
        raise ValueError(f"evaluate.features {folder}: {error}: {remedy(config, dataset, other)}") from error
    meta = checkpoint.read_meta(found)
    assert isinstance(classify, Classifier)  # the model of an objective that does not generate

    def extract(x: Tensor) -> Tensor:
        return classify.features(experiment.codec.encode(x.to(experiment.device)), experiment.sde.t_min)

    def probabilities(vectors: Tensor) -> Tensor:
        return classify.network.output(vectors.to(experiment.device)).softmax(1).cpu()

    return Features("classifier", meta["sha256"][meta["ema"][0]], extract, probabilities)


def remedy(config: Config, dataset: Dataset, folder: Path) -> str:
    """Advice in an error message: the command that trains a classifier in ``folder``, or other features."""
    identity = "use --config.evaluate.features=identity"
    if not dataset.num_classes or len(dataset.shape) not in (2, 3):
        return f"{identity}, since classifiers do not support these data"
    command = training_command("classifier", config, folder, dataset.shape, dataset.num_classes)
    return f"train one with {command} and name it by --config.evaluate.features={folder}, or {identity}"


def inception(config: Config, dataset: Dataset) -> Features:
    """The 2,048 features of Inception v3, with the weights of published Frechet distances, from a local file."""
    path, levels = Path(config.evaluate.inception_path), dataset.levels
    if not (levels and len(dataset.shape) == 3 and dataset.shape[0] in (1, 3)):
        raise ValueError(f"the features inception need images, not data of shape {dataset.shape}; use identity")
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
        with open_file(path, half_of_memory()) as file:  # torch-fidelity itself would run code of the file
            torch.load(file, map_location="cpu", weights_only=True)
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device).eval()
    except Exception as error:  # torch raises many types of errors for damaged files
        reason = obstacle(error) or "it does not contain the weights of Inception v3"
        raise DataError(f"evaluate.inception_path {path} cannot be used ({reason}): fetch it again") from error

    def extract(x: Tensor) -> Tensor:
        shades = (x.float() * (255 / (levels - 1))).round().to(torch.uint8)
        return network(shades.expand(-1, 3, -1, -1).to(device))

    return Features("inception", checkpoint.sha256(path), extract)


FEATURES: dict[str, Callable[[Config, Dataset], Features]] = {"identity": identity, "inception": inception}
"""Values of ``evaluate.features``, in addition to the folder of a classifier's run."""
