"""Tuning: times and coefficients of a sampler fitted to the network of a run, kept for every later command.

What they are fitted to are trajectories of the network itself, from seeds that no sample has.
"""

import time
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.engine import tuned
from score_sde.engine.config import Options
from score_sde.engine.drawing import first_normals
from score_sde.engine.files import write_json
from score_sde.engine.inference import usual
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say, versions
from score_sde.engine.randomness import TUNING, noise, positions
from score_sde.engine.results import question, result_files
from score_sde.engine.sampler import chosen, make_step, make_times
from score_sde.samplers import ODE, Multistep
from score_sde.samplers.calibration import calibrate

REFERENCES, ITERATIONS, BATCH_SIZE = 320, 150, 64
"""Trajectories, of which a fifth is held out; moves of the optimiser, and examples that each of them sees."""


TOLERANCE = 1e-5
"""Of the trajectories: a hundredth of the errors that there are at 20 evaluations."""


def run(config: ConfigDict, workdir: Path, given: Options) -> None:
    """Fit the sampler of the section ``sample`` and write ``workdir``/tuned/<sampler>-<steps>.json.

    The section then names what was fitted, for a mode that samples next.


    Raises: ValueError for a sampler that has no coefficients or adds noise, or a grid without moves.
    """
    if config.sample.grid == tuned.GRID:
        config.sample.grid = ""
    experiment, denoiser, found = load(config, workdir, given)
    check_flow(denoiser, workdir)
    sde, sampler, step = experiment.sde, config.sample.sampler, make_step(config, experiment)
    made_for = tuned.asked(config, step, found, given.weights)
    (grid, steps), whole = chosen(config, sde), make_times(config, experiment)
    times: list[float] = whole[sde.sigma(whole) > 0].tolist()
    if len(times) < 2:
        raise ValueError(f"{steps} steps on the grid {grid} are one look at the noise, with nothing to tune; use more")

    start = time.perf_counter()
    x = sde.prior_std * first_normals(experiment, noise(config.seed, TUNING, positions(0, REFERENCES)))
    size = config.sample.batch_size or usual(experiment.facts.shape)
    flow = ODE(sde, rtol=TOLERANCE, atol=TOLERANCE, gaussian=experiment.gaussian.isotropic())
    with torch.no_grad():
        ends = [flow.follow(denoiser, part, times[0], times[-1]) for part in x.split(size)]
    assert isinstance(step, Multistep)  # as ``tuned.asked`` checked
    plan, before, after = calibrate(step, denoiser, x, torch.cat(ends), times, ITERATIONS, BATCH_SIZE)
    seconds = time.perf_counter() - start

    path = tuned.place(workdir, sampler, steps)
    asked = question(config, (), given, found, **made_for, grid=grid)
    kept = {
        "made_for": made_for,
        "asked": asked,
        "plan": {**plan._asdict(), "moves": [move._asdict() for move in plan.moves]},
        "grid": grid,
        "seed": config.seed,
        "changes": given.changes,
        "references": REFERENCES,
        "validation": {"num": len(before), "before": _told(before), "after": _told(after)},
        "seconds": seconds,
        "versions": versions(),
    }
    with result_files(path.parent, [path.name], asked) as partial:
        write_json(partial / path.name, kept)
    fall = f"{before.mean():.2g} to {after.mean():.2g}"
    say(f"{sampler} in {steps} steps: mean error {fall} on {len(before)} trajectories held out, {seconds:.0f} s")
    say(f"kept in {path}, which --mode sample takes from now on")
    config.sample.grid, config.sample.steps = tuned.GRID, steps


def _told(errors: Tensor) -> dict[str, float]:
    """Errors in units of the encoded data."""
    rms = errors.square().mean().sqrt()
    return {"mean": errors.mean().item(), "rms": rms.item(), "median": errors.median().item()}
