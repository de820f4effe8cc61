"""Editing of examples with a trained run: inverse problems, image-to-image, latents and interpolation."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from score_sde.engine import checkpoint
from score_sde.engine.build import Experiment
from score_sde.engine.config import Options
from score_sde.engine.drawing import Counted, write_samples
from score_sde.engine.examples import Denoisers, Edited, spaced
from score_sde.engine.files import write_json
from score_sde.engine.guidance import Guidance
from score_sde.engine.image_to_image import IMAGE_TO_IMAGE
from score_sde.engine.inverse_problems import INVERSE_PROBLEMS
from score_sde.engine.latents import SHOWN, decode, encode, interpolate, report
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say
from score_sde.engine.pictures import compared, num_shown, save
from score_sde.engine.results import question, result_folder, result_record
from score_sde.samplers.draw import remark
from score_sde.storage.naming import pick


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Runs an editing task; writes its pictures and manifest.json to ``workdir``/edit/<task>."""
    if not options.task:
        raise ValueError(f"give --task ({' | '.join(TASKS)})")
    task, split = pick(TASKS, "task", options.task), options.split or "test"
    experiment, denoiser, found = load(config, workdir, options)
    if options.task in FLOW:
        check_flow(denoiser, workdir)
    guidance = Guidance(config, workdir, experiment)
    if guidance.is_active and options.task not in GUIDED:
        raise ValueError(f"--task {options.task} takes no label and no guidance; leave them out")
    if options.task in GUIDED and (note := remark(config.sample.sampler, denoiser, experiment.sde)):
        say(f"note: {note}")

    target, counted, start = workdir / "edit" / options.task, Counted(denoiser), time.perf_counter()
    asked = question(config, ("data", "sample", "guidance", "edit"), options, found, split=split)
    with result_folder(target, "manifest.json", asked) as folder:
        if options.task in GUIDED:
            done = edit_examples(task, folder, experiment, partial(guidance, counted), config, split)
            done["guidance"] = guidance.record()
        else:
            with torch.no_grad():
                done = task(folder, experiment, counted, config, split)
        manifest = {
            "task": options.task,
            **done,
            "nfe": counted.calls,
            "levels": experiment.facts.levels,
            "config_sha256": checkpoint.sha256(workdir / "config.json"),
            **result_record(config, options, asked, time.perf_counter() - start, found),
        }
        write_json(folder / "manifest.json", manifest)
    cost = f"{manifest['seconds']:.1f} s, {counted.calls} evaluations"
    say(f"{options.task} in {cost}, from step {manifest['checkpoint_step']} ({options.weights})")
    if "round_trip" in done:
        say(*report(done["round_trip"]).split("\n"))
    say(f"files are in {target}")


def edit_examples(
    task: Callable[..., Any],
    folder: Path,
    experiment: Experiment,
    denoisers: Denoisers,
    config: ConfigDict,
    split: str,
) -> dict[str, Any]:
    """Runs a task of ``GUIDED``; writes samples.npz, and grid.png with inputs and results; returns manifest entries."""
    result, shown, record = task(experiment, denoisers, config, split)
    facts = experiment.facts
    write_samples(folder, experiment.codec.decode(result).cpu(), facts)
    which = spaced(len(result), SHOWN if len(facts.shape) > 1 else num_shown(facts))
    decoded = {name: list(experiment.codec.decode(x[which]).cpu()) for name, x in shown.items()}
    save(folder / "grid.png", compared(decoded, [list(map(str, which))], facts))
    about = {key: config.sample[key] for key in ("sampler", "steps", "grid", "t_min")}
    return {"options": {**dict(config.edit), **about}, "split": split, "num_examples": len(result), **record}


GUIDED: dict[str, Callable[..., Edited]] = {**INVERSE_PROBLEMS, **IMAGE_TO_IMAGE}
"""Tasks that take guidance: (experiment, denoisers, config, split) -> edited examples."""


FLOW = {"interpolate", "encode", "decode", "translate"}
"""Tasks that solve the probability flow."""


TASKS: dict[str, Callable[..., Any]] = {"interpolate": interpolate, "encode": encode, "decode": decode, **GUIDED}
"""Values of ``--task``. The first three map (folder, experiment, denoiser, config, split) to manifest entries."""
