"""From a config to the objects it names."""

import functools
import inspect
import itertools
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn

from score_sde.data import CODECS, DATASETS, Codec, Dataset, examples, measure
from score_sde.engine import checkpoint, posthoc, prior, ranks
from score_sde.engine.commands import training_command
from score_sde.engine.config import Options, names, read_run, stored
from score_sde.engine.datasets import check_read
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.engine.inference import frozen
from score_sde.engine.precision import PRECISIONS, check_precision
from score_sde.engine.recipe import MODEL
from score_sde.models import CLASSIFIERS, NETWORKS
from score_sde.sde_lib import (
    CHAIN_PARAMETERIZATIONS,
    LEARNING_LAWS,
    OBJECTIVES,
    PARAMETERIZATIONS,
    SDE,
    SDES,
    TIME_LAWS,
    WEIGHTS,
    Denoiser,
    Gaussian,
    Objective,
    TimeLaw,
    transport,
)
from score_sde.sde_lib.consistency import ConsistencyModel
from score_sde.sde_lib.devices import put
from score_sde.sde_lib.discrete import ladder_size
from score_sde.sde_lib.laws import Fixed
from score_sde.storage.naming import options, pick

THREADS = torch.get_num_threads()
"""Of the CPU, that torch takes by itself: OMP_NUM_THREADS, or as many as there are cores."""

LARGE = 50_000_000
"""Parameters times positions of a network that gains by a second thread: see docs/scaling.md."""


def make(table: Mapping[str, Callable], what: str, spec: Mapping[str, Any], **extra: Any) -> Any:
    """Build the entry of ``table`` that ``spec["name"]`` names from the other items of ``spec``."""
    options = dict(spec)
    return pick(table, what, options.pop("name"))(**options, **extra)


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


@dataclass(frozen=True)
class Experiment:
    """The parts of a run, put together.

    Args:
        gaussian: first guess of the encoded training data, float64 on the CPU; ``gaussian.like(x)`` is made for use.
    """

    facts: DataFacts
    codec: Codec
    sde: SDE
    network: nn.Module
    device: torch.device
    gaussian: Gaussian

    def denoiser(self, network: nn.Module, config: ConfigDict) -> Denoiser:
        """A network as a denoiser of this experiment's SDE."""
        model = pick(OBJECTIVES, "objective", config.loss.name).model
        known = {**config.denoiser, "sigma_data": self.sigma_data(config)}
        return model(network, self.sde, **options(model, known))

    @property
    def bin_width(self) -> float:
        """Width of a level in units of the encoded data; 0 for real-valued data."""
        return bin_width(self.codec)

    @property
    def low(self) -> float:
        """Where encoded levels begin; of no meaning for real-valued data."""
        return self.codec.low if self.codec.levels else 0.0

    def sigma_data(self, config: ConfigDict) -> float:
        """The standard deviation that the denoiser takes the data to have."""
        if config.denoiser.sigma_data == 0 and self.facts.std == 0:
            raise ValueError("the training data are all alike, so sigma_data is 0; set denoiser.sigma_data")
        return config.denoiser.sigma_data or self.facts.std


def read_dataset(config: ConfigDict, split: str) -> Dataset:
    """The examples of a split.

    Raises: ValueError for a key of the section ``data`` that the dataset would ignore.
    """
    read = pick(DATASETS, "dataset", config.data.name)
    check_read(config.data, read)
    return read(split=split, **options(read, config.data))


def make_codec(config: ConfigDict, facts: DataFacts) -> Codec:
    """The codec of a run.

    Raises: ValueError if it does not fit the data, or lacks what it measured on them.
    """
    kind = pick(CODECS, "codec", config.codec.name)
    if any(len(numbers) != facts.shape[0] for numbers in facts.codec.values()):
        raise ValueError(f"codec {config.codec.name} was measured on other data than those of shape {facts.shape}")
    return kind(**options(kind, {**config.codec, **facts.codec, "levels": facts.levels}))


def fit_codec(config: ConfigDict, split: str, dataset: Dataset) -> Codec:
    """The codec of a config for a split, measured on the training data if it measures any."""
    kind = pick(CODECS, "codec", config.codec.name)
    if kind.measures and split != "train":
        dataset = read_dataset(config, "train")
    return kind(levels=dataset.levels, **options(kind, config.codec), **kind.measure(dataset))


def bin_width(codec: Codec) -> float:
    """Width of a level in units of the encoded data; 0 for real-valued data."""
    return math.exp(codec.log_det((1,))) if codec.levels else 0.0


def first_guess(dataset: Dataset, codec: Codec) -> Gaussian:
    """The Gaussian of encoded data, measured on a dataset; levels fill their bins."""
    return Gaussian.of(examples(dataset, codec), bin_width(codec) ** 2 / 12)


def set_threads(config: ConfigDict, shape: tuple[int, ...], network: nn.Module | None = None) -> None:
    """Compute on as many threads of the CPU as the config says; the last digits of a sum depend on it.

    By itself on one, and for a network whose parameters times positions are ``LARGE`` or more on all that torch takes.

    Args:
        shape: of an example.
        network: None before there is one.
    """
    parameters = sum(p.numel() for p in network.parameters()) if network else 0
    large = parameters * math.prod(shape[1:]) >= LARGE
    torch.set_num_threads(config.threads or (THREADS if large else 1))


def build(config: ConfigDict, facts: DataFacts, gaussian: Gaussian | None = None) -> Experiment:
    """The experiment of a config on data of which the facts are known.

    Args:
        gaussian: first guess of the data; None for N(0, std^2).
    Raises: ValueError for a name that is in no table, a device that is not there, a shape that the network refuses.
    """
    pick(PARAMETERIZATIONS | CHAIN_PARAMETERIZATIONS, "parameterization", config.denoiser.parameterization)
    device = make_device(config.device)
    sde_spec = config.sde.to_dict()
    if sde_spec.get("sigma_max") == 0:
        sde_spec["sigma_max"] = facts.diameter
    if sde_spec.get("num_levels") == 0 and "sigma_max" in sde_spec:
        sde_spec["num_levels"] = ladder_size(sde_spec["sigma_min"], sde_spec["sigma_max"], math.prod(facts.shape))
    try:
        network = make(NETWORKS, "network", config.network, shape=facts.shape).to(device)
    except RuntimeError as error:  # sizes that no memory holds, such as a stranger's config may give
        reason = str(error).splitlines()[0]
        raise ValueError(f"the network {config.network.name} cannot be made: {reason}; make it smaller") from error
    set_threads(config, facts.shape, network)
    objective = pick(OBJECTIVES, "objective", config.loss.name)
    if isinstance(network, CLASSIFIERS) == objective.generates or objective.reads > hasattr(network, "text"):
        raise ValueError(
            f"loss.name {config.loss.name!r} does not train the network {config.network.name!r}: "
            "classification and classifier belong together, and contrastive and captioned"
        )
    return Experiment(
        facts=facts,
        codec=make_codec(config, facts),
        sde=make(SDES, "sde", sde_spec),
        network=network,
        device=device,
        gaussian=gaussian or Gaussian(torch.zeros(facts.shape, dtype=torch.float64), facts.std**2 or 1.0),
    )


def load(config: ConfigDict, workdir: Path, options: Options) -> tuple[Experiment, Denoiser, Path]:
    """The experiment of a trained run, its denoiser with the weights that the options ask for, and their checkpoint.

    It warns of a process whose last level is not noise.

    Raises: CheckpointError if there is none, or it is damaged or of another network; ValueError for a classifier.
    """
    if not pick(OBJECTIVES, "objective", config.loss.name).generates:
        raise ValueError(
            f"{workdir} is a classifier, which draws nothing and has no density; another run is measured by it, with "
            f"--mode evaluate --config.evaluate.features={shlex.quote(str(workdir))}"
        )
    experiment, denoiser, found = load_model(config, workdir, options)
    prior.warn(config.sde.name, experiment.sde, experiment.gaussian)
    return experiment, denoiser, found


def load_model(config: ConfigDict, workdir: Path, options: Options) -> tuple[Experiment, nn.Module, Path]:
    """As ``load``, for classifiers too.

    Raises: CheckpointError if there is none, or it is damaged or of another network.
    """
    found = checkpoint.find(workdir / "checkpoints", options.checkpoint)
    meta = checkpoint.read_meta(found)
    facts = DataFacts.from_dict(meta["data"])
    experiment = build(config, facts, checkpoint.load_gaussian(found, facts.shape))
    posthoc.load_weights(found, options.weights, experiment.network)
    if not options.allow_changes and (workdir / "config.json").is_file():
        read_run(workdir).check_digest(meta.get("model_sha256"), MODEL, found)
    precision = pick(PRECISIONS, "precision", config.inference.precision)
    check_precision(precision, experiment.device, "inference")
    network = frozen(experiment.network, precision, config.inference.compile)
    return experiment, experiment.denoiser(network, config), found


def check_flow(denoiser: nn.Module, workdir: Path) -> None:
    """Raises: ValueError for a run that has no probability flow to follow."""
    if isinstance(denoiser, ConsistencyModel):
        raise ValueError(
            f"{workdir} knows where the flow ends, not how it gets there, and so no density and no latents; ask its "
            "teacher, or another run"
        )


def check_there(key: str, folder: Path, config: ConfigDict, shape: tuple[int, ...]) -> None:
    """Raises: CheckpointError if the run that ``key`` names is missing, with the command that trains it on our data."""
    if folder.name in names() and not (folder / "config.json").is_file():
        command = training_command(folder.name, config, folder, shape)
        raise CheckpointError(f"no run in {folder}{looked_at(folder)}, which {key} names: train one with {command}")


def load_average(folder: Path, network: nn.Module) -> None:
    """Give a network the averaged weights of the run in ``folder``.

    Raises: CheckpointError if there is none, or it is damaged or of another network.
    """
    stored(folder)
    found = checkpoint.find(folder / "checkpoints")
    checkpoint.load_network(found, checkpoint.read_meta(found)["ema"][0], network)


def make_teacher(config: ConfigDict, experiment: Experiment) -> Callable:
    """The averaged weights of the run ``loss.teacher``, frozen, as a denoiser on the SDE of the experiment.

    Raises: CheckpointError if there is none, or it is damaged; ValueError if none is named, or its data are others.
    """
    if not config.loss.teacher:
        raise ValueError("loss.teacher is empty: give the folder of a trained run, such as runs/edm")
    folder, facts = Path(config.loss.teacher), experiment.facts
    check_there("loss.teacher", folder, config, facts.shape)
    recipe = stored(folder)
    recipe.device, recipe.threads = config.device, torch.get_num_threads()
    theirs, denoiser, _ = load(recipe, folder, Options())
    if type(denoiser) is not Denoiser:
        raise ValueError(f"loss.teacher {folder} is no denoiser but {recipe.loss.name}; give a run such as runs/edm")
    if (theirs.facts.shape, theirs.facts.levels) != (facts.shape, facts.levels):
        raise ValueError(
            f"loss.teacher {folder} knows data of shape {theirs.facts.shape} and {theirs.facts.levels} levels, not of "
            f"{facts.shape} and {facts.levels}; train one on these data"
        )
    return transport(denoiser, theirs.sde, experiment.sde)


def make_weight(config: ConfigDict, sigma_data: float) -> Callable:
    """The weight of the loss, ``(sde, t) -> weight``."""
    weight = pick(WEIGHTS, "weight", config.loss.weight)
    return functools.partial(weight, **options(weight, {"sigma_data": sigma_data}))


def make_time_law(config: ConfigDict) -> TimeLaw:
    """The law of time, ``(sde, u) -> (t, correction)``."""
    values = {**config.loss, "mean": config.loss.time_mean, "std": config.loss.time_std, "tail": config.loss.time_tail}
    law = pick({**TIME_LAWS, **LEARNING_LAWS}, "time law", config.loss.time_law)
    if config.loss.time_law in LEARNING_LAWS:
        return law(**options(law, values))
    return Fixed(functools.partial(law, **options(law, values)))


def make_objective(config: ConfigDict, experiment: Experiment) -> Objective:
    """What the run minimises."""
    kind = pick(OBJECTIVES, "objective", config.loss.name)
    sigma_data = experiment.sigma_data(config)
    known = {
        "weight": make_weight(config, sigma_data),
        "sigma_data": sigma_data,
        "bin_width": experiment.bin_width,
        "low": experiment.low,
    }
    if "teacher" in inspect.signature(kind).parameters:
        known["teacher"] = make_teacher(config, experiment)
    return kind(experiment.sde, **options(kind, {**config.loss, **known}))


def conditions(config: ConfigDict, batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """What the network is told of a batch beside x and the noise level: the label, if it knows classes."""
    return {"label": put(batch["label"], device)} if config.network.get("num_classes") else {}


def check_form(config: ConfigDict, dataset: Dataset, facts: DataFacts) -> None:
    """Raises: ValueError if examples of the dataset are not of the form, or classes, that the run was trained on."""
    check_classes(config, dataset, facts)
    if (dataset.shape, dataset.levels) != (facts.shape, facts.levels):
        given = f"the data have shape {dataset.shape} and {dataset.levels} levels"
        raise ValueError(f"{given}, the run {facts.shape}, {facts.levels}")


def check_classes(config: ConfigDict, dataset: Dataset, facts: DataFacts) -> None:
    """Raises: ValueError if a run with classes would take the numbers of the dataset's classes for others.

    A run without names was trained when class folders were numbered in the order of their text, 10 before 2.
    """
    if not config.network.get("num_classes") or not dataset.classes:
        return
    known = facts.classes or tuple(sorted(dataset.classes))
    if known != dataset.classes:
        k = next(k for k, pair in enumerate(itertools.zip_longest(known, dataset.classes)) if pair[0] != pair[1])
        ours, theirs = ((*names, None)[min(k, len(names))] for names in (known, dataset.classes))
        raise ValueError(
            f"class {k} is {ours!r} in the run and {theirs!r} in the data: give data with the same class folders, or a "
            "dataset.json with the numbers of the run"
        )


def make_device(name: str) -> torch.device:
    """The device of that name; auto is an accelerator, or else the CPU.

    Several processes on a machine share out the accelerators of a name without a number, such as cuda.

    Raises: ValueError for a name that torch does not know or a device that this machine does not have.
    """
    accelerator = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        device = accelerator if name == "auto" else torch.device(name)
        if ranks.size() > 1 and device.type == accelerator.type != "cpu" and device.index is None:
            device = torch.device(device.type, ranks.local_rank() % torch.accelerator.device_count())
        torch.empty(1, device=device).tolist()  # tensors on meta hold no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; try --device cpu or auto") from None
    return device
