"""A look at a dataset before training: count, shape, range, suggested scales of noise, and a contact sheet."""

from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from data import measure, order
from engine.build import DataFacts, make_codec, read_dataset
from engine.config import Options
from engine.files import write_json
from engine.sample import GRID_SAMPLES, picture


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Print what the data look like, and write data/<split>.json and data/<split>.png below ``workdir``."""
    split = options.split or "train"
    dataset = read_dataset(config, split)
    codec = make_codec(config, dataset.levels)
    found = measure(dataset, codec)
    facts = DataFacts(dataset.shape, dataset.levels, found.std, found.diameter)
    kind = f"whole numbers 0 to {dataset.levels - 1}" if dataset.levels else "real numbers"
    labels = f"{dataset.num_classes} classes" if dataset.num_classes else "no labels"
    print(f"{config.data.name}, {split}: {found.count} examples of shape {found.shape}, {kind}, {labels}")
    print(f"encoded by {config.codec.name}, measured on {found.measured}:")
    print(f"  range [{found.low:.4f}, {found.high:.4f}], mean {found.mean:.4f}, standard deviation {found.std:.4f}")
    print(f"  suggested sigma_data {found.std:.3f} (taken where denoiser.sigma_data is 0)")
    print(f"  suggested sigma_max {found.diameter:.3g}, the largest distance found (taken where sde.sigma_max is 0)")
    folder = workdir / "data"
    write_json(folder / f"{split}.json", {**asdict(found), "levels": dataset.levels, "classes": dataset.num_classes})
    shown = GRID_SAMPLES if len(dataset.shape) == 3 else 2_000
    examples = dataset.batch(order(config.seed, 0, len(dataset))[:shown])["x"]
    picture(folder / f"{split}.png", codec.decode(codec.encode(examples)), facts)
    print(f"a contact sheet is in {folder}")
