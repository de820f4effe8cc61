"""Inspection of a dataset, read as in training."""

import math
from dataclasses import asdict
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.data import ImageFiles, measure, order
from score_sde.engine.codecs import fit_codec
from score_sde.engine.config import Options
from score_sde.engine.datasets import read_dataset
from score_sde.engine.facts import DataFacts
from score_sde.engine.files import write_json
from score_sde.engine.log import say
from score_sde.engine.pictures import num_shown, picture
from score_sde.engine.remarks import SHOWN_ENTRIES, remarks


def run(config: Config, workdir: Path, options: Options) -> None:
    """Prints statistics of a split; writes data/<split>.json and the contact sheet data/<split>.png to ``workdir``."""
    split = options.split or "train"
    dataset = read_dataset(config.data, split)
    codec = fit_codec(config, split, dataset)
    found = measure(dataset, codec)
    facts = DataFacts(dataset.shape, dataset.levels, found.std, found.diameter, dataset.classes)
    kind = f"whole numbers 0 to {dataset.levels - 1}" if dataset.levels else "real numbers"
    labels = f"{dataset.num_classes} classes" if dataset.num_classes else "no labels"
    say(f"{config.data.name}, {split}: {found.count} examples of shape {found.shape}, {kind}, {labels}")
    for line in [*remarks(dataset), f"test split: {dataset.validation}"]:
        say(f"  {line}")
    if config.data.size and isinstance(dataset.x, ImageFiles):
        say(f"  {dataset.x.describe_stored()}")
    say(f"encoded by {config.codec.name}, measured on {found.measured}:")
    say(f"  range [{found.low:.4f}, {found.high:.4f}], mean {found.mean:.4f}, standard deviation {found.std:.4f}")
    say(f"  suggested sigma_data {found.std:.3f} (taken where denoiser.sigma_data is 0)")
    say(f"  suggested sigma_max {found.diameter:.3g}, the largest distance found (taken where sde.sigma_max is 0)")
    folder = workdir / "data"
    about = {"levels": dataset.levels, "classes": dataset.num_classes, "class_names": dataset.classes}
    about |= {"test_split": dataset.validation, "notes": dataset.notes}
    write_json(folder / f"{split}.json", {**asdict(found), **about})
    shown = max(1, min(num_shown(facts), SHOWN_ENTRIES // math.prod(dataset.shape)))
    examples = dataset.batch(order(config.seed, 0, len(dataset))[:shown])["x"]
    picture(folder / f"{split}.png", codec.decode(codec.encode(examples)), facts)
    say(f"a contact sheet is in {folder}")
