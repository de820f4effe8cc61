"""Compare samples with a split."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde.data.dataset import SPLITS
from score_sde.engine import ranks
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.drawing import draw_run
from score_sde.engine.features import identity, make_features
from score_sde.engine.files import write_json
from score_sde.engine.inference import usual
from score_sde.engine.log import say, versions
from score_sde.engine.metrics import classes, distances, labels, novelty, read_samples, reference, report
from score_sde.engine.recipe import flat
from score_sde.engine.results import question, result_files


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
    more: dict[str, Any] = {"split": split, "features_sha256": features.sha256, "samples": drawn_for}
    asked = flat(question(config, ("data", "evaluate"), options, **more))
    result: dict[str, Any] = {
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
