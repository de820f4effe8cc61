"""Sweep over guidance scales: fidelity and diversity of samples, relative to real examples.

Fidelity is the accuracy of a classifier on the requested labels, and the distance to the data. Diversity is the mean
distance between samples of a class, divided by the same mean for real examples of that class.
"""

import copy
import time
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.engine.config import Options
from score_sde.engine.datasets import read_dataset
from score_sde.engine.drawing import draw_run
from score_sde.engine.features import make_features
from score_sde.engine.files import write_json
from score_sde.engine.guidance import ALL
from score_sde.engine.inference import usual
from score_sde.engine.log import say
from score_sde.engine.metrics import batches, frechet_distance, labels
from score_sde.engine.pictures import compared, num_shown, save
from score_sde.engine.results import question, result_folder, result_record
from score_sde.storage.writing import replace

SHOWN = 10
"""Samples of each scale in the picture."""


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Draws with each of ``guidance.scales``; writes sweep.json, grid.png and curve.png to ``workdir``/sweep.

    The scale applies to the classifier, if the section ``guidance`` names one, else to autoguidance, else to the label.
    """
    settings, start = config.evaluate, time.perf_counter()
    if settings.num_samples < 2:
        raise ValueError(f"evaluate.num_samples {settings.num_samples}: a sweep needs at least 2")
    guidance = config.guidance
    key = "classifier_scale" if guidance.classifier else "autoguidance_scale" if guidance.autoguidance else "scale"
    dataset = read_dataset(config, options.split or "test")
    features = make_features(config, read_dataset(config, "train"))
    size = settings.batch_size or usual(dataset.shape)
    real = features.of(batch["x"] for batch in batches(dataset, len(dataset), size))
    classes = labels(dataset, len(dataset))
    spread = {} if classes is None else spreads(real, classes)

    rows, pictures = [], {}
    for scale in config.guidance.scales:
        changed = copy.deepcopy(config)
        changed.guidance[key] = float(scale)
        changed.sample.label = config.sample.label or ALL
        drawn = draw_run(changed, workdir, options, settings.num_samples, settings.batch_size)
        samples = drawn.experiment.codec.decode(drawn.x0).cpu()
        assert drawn.label is not None  # sample.label is set
        vectors, label = features.of(samples.split(size)), drawn.label.cpu()
        rows.append({key: scale, **measured(vectors, real, spread, label)})
        if features.classify:
            rows[-1]["accuracy"] = (features.classify(vectors).argmax(1) == label).double().mean().item()
        say("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()))
        shown = SHOWN if len(dataset.shape) > 1 else num_shown(drawn.experiment.facts)
        pictures[f"{key} {scale:g}"] = list(samples[:shown])
    target, facts = workdir / "sweep", drawn.experiment.facts
    asked = {**drawn.manifest["asked"], **question(config, ("data", "guidance", "evaluate"), options)}
    result = {
        "sweep": rows,
        "num_samples": settings.num_samples,
        "samples": drawn.manifest,
        "features": features.name,
        **result_record(config, options, asked, time.perf_counter() - start),
    }
    with result_folder(target, "sweep.json", asked) as folder:
        write_json(folder / "sweep.json", result)
        save(folder / "grid.png", compared(pictures, [[str(each) for each in label[:shown].tolist()]], facts))
        curve(folder / "curve.png", rows, key)
    say(f"files are in {target}")


def measured(samples: Tensor, real: Tensor, spread: dict[int, float], label: Tensor) -> dict[str, float]:
    """Frechet distance to the real examples, and diversity: mean over the classes of the ratio of spreads."""
    found = spreads(samples, label)
    ratios = [found[k] / spread[k] for k in found if spread.get(k)]
    diversity = {"diversity": sum(ratios) / len(ratios)} if ratios else {}
    return {"frechet_distance": frechet_distance(samples, real), **diversity}


def spreads(vectors: Tensor, label: Tensor) -> dict[int, float]:
    """Mean distance between two vectors (N, F) of a class, for every class with at least two."""
    groups = {int(k): vectors[label == k] for k in label.unique()}
    return {k: torch.pdist(group.double()).mean().item() for k, group in groups.items() if len(group) > 1}


def curve(path: Path, rows: list[dict[str, float]], key: str) -> None:
    """Plots fidelity over diversity, one point per scale."""
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
