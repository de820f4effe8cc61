"""Edit images with a trained run: inverse problems, image-to-image, latents and paths between them."""

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
from score_sde.engine.examples import Denoisers, spaced
from score_sde.engine.files import write_json
from score_sde.engine.guidance import Guidance
from score_sde.engine.image_to_image import REMAKES
from score_sde.engine.inverse_problems import RESTORATIONS
from score_sde.engine.latents import SHOWN, decode, encode, interpolate, report
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say, versions
from score_sde.engine.pictures import compared, num_shown, save
from score_sde.engine.results import question, result_folder
from score_sde.samplers.draw import remark
from score_sde.storage.naming import pick


def run(config: ConfigDict, workdir: Path, options: Options) -> None:
    """Do a task; write its pictures and manifest.json below ``workdir``/edit/<task>."""
    if not options.task:
        raise ValueError(f"give --task ({' | '.join(TASKS)})")
    task, split = pick(TASKS, "task", options.task), options.split or "test"
    experiment, denoiser, found = load(config, workdir, options)
    if options.task in FLOWING:
        check_flow(denoiser, workdir)

    guidance = Guidance(config, workdir, experiment)
    if guidance.is_active and options.task not in GUIDED:
        raise ValueError(f"--task {options.task} knows no label and no guidance; leave them out")
    if options.task in GUIDED and (note := remark(config.sample.sampler, denoiser, experiment.sde)):
        say(f"note: {note}")

    target, counted, start = workdir / "edit" / options.task, Counted(denoiser), time.perf_counter()
    asked = question(config, ("data", "sample", "guidance", "edit"), options, found, split=split)
    with result_folder(target, "manifest.json", asked) as folder:
        if options.task in GUIDED:
            done = remake(task, folder, experiment, partial(guidance, counted), config, split)
            done["guidance"] = guidance.record()
        else:
            with torch.no_grad():
                done = task(folder, experiment, counted, config, split)
        seconds, meta = time.perf_counter() - start, checkpoint.read_meta(found)
        manifest = {
            "task": options.task,
            **done,
            "nfe": counted.calls,
            "seconds": seconds,
            "seed": config.seed,
            "levels": experiment.facts.levels,
            "weights": options.weights,
            "checkpoint_step": meta["step"],
            "config_sha256": checkpoint.sha256(workdir / "config.json"),
            "asked": asked,
            "changes": options.changes,
            "versions": versions(),
        }
        write_json(folder / "manifest.json", manifest)
    say(f"{options.task} in {seconds:.1f} s, {counted.calls} evaluations, from step {meta['step']} ({options.weights})")
    if "round_trip" in done:
        say(*report(done["round_trip"]).split("\n"))
    say(f"files are in {target}")


def remake(
    task: Callable[..., Any],
    folder: Path,
    experiment: Experiment,
    denoisers: Denoisers,
    config: ConfigDict,
    split: str,
) -> dict[str, Any]:
    """Make examples anew; samples.npz with what they became, grid.png with that beside what was given."""
    result, rows, told = task(experiment, denoisers, config, split)
    facts = experiment.facts
    write_samples(folder, experiment.codec.decode(result).cpu(), facts)
    which = spaced(len(result), SHOWN if len(facts.shape) > 1 else num_shown(facts))
    seen = {name: list(experiment.codec.decode(x[which]).cpu()) for name, x in rows.items()}
    save(folder / "grid.png", compared(seen, [list(map(str, which))], facts))
    about = {key: config.sample[key] for key in ("sampler", "steps", "grid", "t_min")}
    return {"options": {**dict(config.edit), **about}, "split": split, "num_examples": len(result), **told}


GUIDED: dict[str, Callable[..., Any]] = {**RESTORATIONS, **REMAKES}
"""Tasks on examples that come as they are or are guided: see ``engine.image_to_image.REMAKES``."""


FLOWING = {"interpolate", "encode", "decode", "translate"}
"""Tasks that follow the probability flow."""


TASKS: dict[str, Callable[..., Any]] = {"interpolate": interpolate, "encode": encode, "decode": decode, **GUIDED}
"""What the user types after ``--task``; the first three: (folder, experiment, denoise, config, split) -> manifest."""
