"""Editing of examples with a trained run: inverse problems, image-to-image, latents and interpolation."""

import time
from functools import partial
from pathlib import Path

import torch

from score_sde.configs.default import Config
from score_sde.engine import checkpoint
from score_sde.engine.config import Options
from score_sde.engine.drawing import Counted
from score_sde.engine.editing import FLOW, GUIDED, TASKS, edit_examples
from score_sde.engine.files import write_json
from score_sde.engine.guidance import Guidance
from score_sde.engine.latents import report
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say
from score_sde.engine.results import question, result_folder, result_record
from score_sde.samplers.draw import remark
from score_sde.storage.naming import pick


def run(config: Config, workdir: Path, options: Options) -> None:
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
    if options.task in GUIDED and (note := remark(config.sample.sampler.name, denoiser, experiment.sde)):
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
