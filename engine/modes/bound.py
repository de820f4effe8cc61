"""Bound on the likelihood of a split."""

import math
import time
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.engine.bound import bound_split, make_estimator, plot, report, summary
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.drawing import Counted
from score_sde.engine.files import write_json, write_npz
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say
from score_sde.engine.results import question, result_files, result_record


def run(config: Config, workdir: Path, options: Options) -> None:
    """Bounds each example of a split; writes <split>.json, .npz with a row per example, and rate_distortion.png."""
    settings, split = config.bound, options.split or "test"
    experiment, denoiser, found = load(config, workdir, options)
    check_flow(denoiser, workdir)
    dataset = read_dataset(config.data, split)
    check_form(config, dataset, experiment.facts)
    num, batch_size = min(settings.num_examples or len(dataset), len(dataset)), settings.batch_size
    counted = Counted(denoiser)
    estimate, record = make_estimator(config, experiment, counted)

    start = time.perf_counter()
    columns = bound_split(estimate, experiment, dataset, config.seed, num, batch_size)
    asked = question(config, ("data", "bound"), options, found, split=split, bound__num_examples=num)
    result = {
        **summary(columns, experiment),
        **record,
        "num_examples": num,
        "nfe": counted.calls / math.ceil(num / batch_size),
        "split": split,
        "sde": config.sde.name,
        **result_record(config, options, asked, time.perf_counter() - start, found),
    }
    folder, picture = workdir / "bound", "rate_distortion.png" if split == "test" else f"rate_distortion-{split}.png"
    with result_files(folder, (f"{split}.json", f"{split}.npz", picture), asked) as partial:
        write_npz(partial / f"{split}.npz", **columns)
        plot(partial / picture, result, columns)
        write_json(partial / f"{split}.json", result)
    say(*report(result).split("\n"))
    say(f"files are {folder / split}.json and .npz, and {folder / picture}")
