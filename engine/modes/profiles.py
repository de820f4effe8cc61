"""Validation loss of every average of the weights that a checkpoint has or allows, to choose --weights."""

import time
from pathlib import Path

import numpy as np

from score_sde.configs.default import Config
from score_sde.engine import checkpoint
from score_sde.engine.config import Options
from score_sde.engine.datasets import check_form, read_dataset
from score_sde.engine.files import write_json
from score_sde.engine.load import load_model
from score_sde.engine.log import say
from score_sde.engine.results import question, result_folder, result_record
from score_sde.engine.training import posthoc
from score_sde.engine.training.validation import Validation
from score_sde.storage.writing import replace

WIDTHS = tuple(round(width, 3) for width in np.geomspace(0.01, 0.25, 13).tolist())
"""Widths of the profiles to compare, in addition to the tracked ones."""


def run(config: Config, workdir: Path, options: Options) -> None:
    """Prints the loss of each average; writes losses.json and profiles.png to ``workdir``/profiles.

    Without tracked profiles, these are the weights of the last step and the averages of ``ema.rates``.

    Raises: CheckpointError for a damaged file.
    """
    start, split = time.perf_counter(), options.split or "test"
    experiment, _, found = load_model(config, workdir, options)
    meta = checkpoint.read_meta(found)
    profiles, left_out = [], []
    for width in sorted({*WIDTHS, *meta["profiles"]}) if meta.get("profiles") else ():
        name = f"{posthoc.PROFILE}{width:g}"
        try:
            posthoc.combination(found, name)
        except ValueError:
            left_out.append(width)
        else:
            profiles.append(name)
    dataset, losses = read_dataset(config.data, split), {}
    check_form(config, dataset, experiment.facts)
    validation = Validation(config, experiment, dataset)
    for weights in ("raw", *(name.removesuffix(".safetensors") for name in meta["ema"]), *profiles):
        posthoc.load_weights(found, weights, experiment.network)
        losses[weights] = validation.losses(experiment.network)["validation_loss"]
        say(f"{weights:<12} {losses[weights]:.5f}")
    if not meta.get("profiles"):
        say("no profiles were tracked; train with --config.ema.profiles=(0.05,0.1) to compare other widths, too")
    if left_out:
        say(f"the snapshots do not determine the widths {', '.join(f'{width:g}' for width in left_out)}")
    best, target = min(losses, key=losses.__getitem__), workdir / "profiles"
    asked = question(config, ("data",), options, found, split=split)
    record = result_record(config, options, asked, time.perf_counter() - start)
    with result_folder(target, "losses.json", asked) as folder:
        write_json(folder / "losses.json", {"losses": losses, "checkpoint_step": meta["step"], **record})
        plot(folder / "profiles.png", losses)
    say(f"least: --weights {best}; files are in {target}")


def plot(path: Path, losses: dict[str, float]) -> None:
    """Plots the loss over the width of the profile; the losses of other averages are horizontal lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    points = {float(name.removeprefix(posthoc.PROFILE)): loss for name, loss in losses.items() if ":" in name}
    axes.semilogx(points.keys(), points.values(), "o-", label="profiles")
    others = [name for name in losses if ":" not in name]
    for k, name in enumerate(others, 1):
        axes.axhline(losses[name], color=f"C{k}", linestyle="--", label=name)
    axes.set(xlabel="width of the profile, relative to the length of training", ylabel="validation loss")
    axes.set_xticks(list(points), [f"{width:g}" for width in points], rotation=60)
    axes.set_xlim(*(() if points else (WIDTHS[0], WIDTHS[-1])))
    axes.minorticks_off()
    axes.legend()
    replace(path, lambda file: figure.savefig(file, format="png"))
