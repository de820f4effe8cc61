"""Editing tasks by name: inverse problems, image-to-image, latents and interpolation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from score_sde.configs.default import Config
from score_sde.engine.build import Experiment
from score_sde.engine.drawing import write_samples
from score_sde.engine.examples import Denoisers, Edited, spaced
from score_sde.engine.image_to_image import IMAGE_TO_IMAGE
from score_sde.engine.inverse_problems import INVERSE_PROBLEMS
from score_sde.engine.latents import SHOWN, decode, encode, interpolate
from score_sde.engine.pictures import compared, num_shown, save


def edit_examples(
    task: Callable[..., Any],
    folder: Path,
    experiment: Experiment,
    denoisers: Denoisers,
    config: Config,
    split: str,
) -> dict[str, Any]:
    """Runs a task of ``GUIDED``; writes samples.npz, and grid.png with inputs and results; returns manifest entries."""
    result, shown, record = task(experiment, denoisers, config, split)
    facts = experiment.facts
    write_samples(folder, experiment.codec.decode(result).cpu(), facts)
    which = spaced(len(result), SHOWN if len(facts.shape) > 1 else num_shown(facts))
    decoded = {name: list(experiment.codec.decode(x[which]).cpu()) for name, x in shown.items()}
    save(folder / "grid.png", compared(decoded, [list(map(str, which))], facts))
    sampler = dict(config.sample.sampler)
    about = {"sampler": sampler.pop("name"), "sampler_options": sampler}
    about |= {key: config.sample[key] for key in ("steps", "grid", "t_min")}
    return {"options": {**dict(config.edit), **about}, "split": split, "num_examples": len(result), **record}


GUIDED: dict[str, Callable[..., Edited]] = {**INVERSE_PROBLEMS, **IMAGE_TO_IMAGE}
"""Tasks that take guidance: (experiment, denoisers, config, split) -> edited examples."""


FLOW = {"interpolate", "encode", "decode", "translate"}
"""Tasks that solve the probability flow."""


TASKS: dict[str, Callable[..., Any]] = {"interpolate": interpolate, "encode": encode, "decode": decode, **GUIDED}
"""Values of ``--task``. The first three map (folder, experiment, denoiser, config, split) to manifest entries."""
