"""Sweep over guidance scales: fidelity and diversity of samples, relative to real examples."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from score_sde.configs.default import Config
from score_sde.engine.config import Options
from score_sde.engine.datasets import read_dataset
from score_sde.engine.drawing import draw_run
from score_sde.engine.features import make_features
from score_sde.engine.files import write_json
from score_sde.engine.guidance import ALL
from score_sde.engine.inference import usual
from score_sde.engine.log import say
from score_sde.engine.metrics import batches, labels
from score_sde.engine.pictures import compared, num_shown, save
from score_sde.engine.results import question, result_folder, result_record
from score_sde.engine.sweep import fidelity_and_diversity, plot, spreads

SHOWN = 10
"""Samples of each scale in the picture."""


def run(config: Config, workdir: Path, options: Options) -> None:
    """Draws with each of ``guidance.scales``; writes sweep.json, grid.png and curve.png to ``workdir``/sweep.

    The scale applies to the classifier, if the section ``guidance`` names one, else to autoguidance, else to the label.
    """
    settings, start = config.evaluate, time.perf_counter()
    if settings.num_samples < 2:
        raise ValueError(f"evaluate.num_samples {settings.num_samples}: a sweep needs at least 2")
    guidance = config.guidance
    key = "classifier_scale" if guidance.classifier else "autoguidance_scale" if guidance.autoguidance else "scale"
    dataset = read_dataset(config.data, options.split or "test")
    features = make_features(config, read_dataset(config.data, "train"))
    size = settings.batch_size or usual(dataset.shape)
    real = features.of(batch["x"] for batch in batches(dataset, len(dataset), size))
    classes = labels(dataset, len(dataset))
    spread = {} if classes is None else spreads(real, classes)

    rows, pictures, label_of = [], {}, config.sample.label or ALL
    for scale in config.guidance.scales:
        scaled: dict[str, Any] = {key: float(scale)}
        changed = replace(config, guidance=replace(guidance, **scaled), sample=replace(config.sample, label=label_of))
        drawn = draw_run(changed, workdir, options, settings.num_samples, settings.batch_size)
        samples = drawn.experiment.codec.decode(drawn.x0).cpu()
        assert drawn.label is not None  # sample.label is set
        vectors, label = features.of(samples.split(size)), drawn.label.cpu()
        rows.append({key: scale, **fidelity_and_diversity(features, vectors, label, real, spread)})
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
        plot(folder / "curve.png", rows, key)
    say(f"files are in {target}")
