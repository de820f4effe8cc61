"""Editing of examples with a trained run: inverse problems, image-to-image, latents and interpolation."""

import time
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.engine import checkpoint
from score_sde.engine.config import Options
from score_sde.engine.drawing import Counted
from score_sde.engine.editing import TASKS
from score_sde.engine.files import write_json
from score_sde.engine.guidance import Guidance
from score_sde.engine.latents import report
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say
from score_sde.engine.results import question, result_folder, result_record
from score_sde.samplers.draw import remark


def run(config: Config, workdir: Path, options: Options) -> None:
    """Runs an editing task; writes its pictures and manifest.json to ``workdir``/edit/<task>."""
    if not options.task:
        raise ValueError(f"give --task ({' | '.join(TASKS)})")
    chosen, split = config.edit.task, options.split or "test"
    task = TASKS[chosen.name](**chosen.options)
    experiment, denoiser, found = load(config, workdir, options)
    if task.uses_flow:
        check_flow(denoiser, workdir)
    guidance = Guidance(config, workdir, experiment)
    if guidance.is_active and not task.guided:
        raise ValueError(f"--task {chosen.name} takes no label and no guidance; leave them out")
    if task.guided and (note := remark(config.sample.sampler.name, denoiser, experiment.sde)):
        say(f"note: {note}")

    target, counted, start = workdir / "edit" / chosen.name, Counted(denoiser), time.perf_counter()
    asked = question(config, ("data", "sample", "guidance", "edit"), options, found, split=split)
    with result_folder(target, "manifest.json", asked) as folder:
        done = task.run(folder, experiment, counted, guidance, config, split)
        manifest = {
            "task": chosen.name,
            **done,
            "nfe": counted.calls,
            "levels": experiment.facts.levels,
            "config_sha256": checkpoint.sha256(workdir / "config.json"),
            **result_record(config, options, asked, time.perf_counter() - start, found),
        }
        write_json(folder / "manifest.json", manifest)
    cost = f"{manifest['seconds']:.1f} s, {counted.calls} evaluations"
    say(f"{chosen.name} in {cost}, from step {manifest['checkpoint_step']} ({options.weights})")
    if "round_trip" in done:
        say(*report(done["round_trip"]).split("\n"))
    say(f"files are in {target}")
