"""Evaluation: samples compared with a split."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from score_sde.configs.default import Config
from score_sde.data.dataset import SPLITS
from score_sde.engine import ranks
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.drawing import draw_run
from score_sde.engine.features import identity, make_features
from score_sde.engine.files import write_json
from score_sde.engine.inference import usual
from score_sde.engine.log import say
from score_sde.engine.metrics import check_subsets, classes, distances, labels, novelty, read_samples, reference, report
from score_sde.engine.recipe import flat
from score_sde.engine.results import question, result_files, result_record


def run(config: Config, workdir: Path, options: Options) -> None:
    """Compares samples with a split; writes <workdir>/evaluation/<sampler>-<steps>-<features>-<split>.json."""
    settings, split, start = config.evaluate, options.split or "test", time.perf_counter()
    if ranks.rank() > 0:  # takes part in drawing only
        if not settings.samples:
            draw_run(config, workdir, options, settings.num_samples, settings.batch_size)
        ranks.leave_to_first()
        return
    datasets = {name: read_dataset(config.data, name) for name in SPLITS}
    features = make_features(config, datasets["train"])
    given = read_samples(Path(settings.samples), datasets[split]) if settings.samples else None
    num = len(given[0]) if given else settings.num_samples
    sizes = {name: min(settings.num_examples or len(dataset), len(dataset)) for name, dataset in datasets.items()}
    check_subsets(settings.subset_size, num, sizes)
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
    metrics = distances(vectors, real, split, settings.subsets, settings.subset_size, config.seed)
    metrics |= novelty(identity(config, datasets["train"]), samples, datasets, sizes, size)
    if features.classify:
        metrics |= classes(features.classify, vectors, real["test"], labels(datasets["test"], sizes["test"]))

    protocol |= {"split": split, "num_samples": num, "seed": config.seed}
    protocol |= {key: settings[key] for key in ("subsets", "subset_size")}
    drawn_for = {key: manifest[key] for key in ("asked", "sha256") if key in manifest}
    more: dict[str, Any] = {"split": split, "features_sha256": features.sha256, "samples": drawn_for}
    asked = flat(question(config, ("data", "evaluate"), options, **more))
    record = result_record(config, options, asked, time.perf_counter() - start)
    record["versions"]["torchmetrics"] = version("torchmetrics")
    result = {"metrics": metrics, "protocol": protocol, "samples": manifest, **record}
    name = f"{manifest['sampler']}-{manifest['steps']}-{features.name}-{split}.json"
    with result_files(folder, [name], asked) as partial:
        write_json(partial / name, result)
    say(*report(result).split("\n"))
    say(f"files are in {folder}")
