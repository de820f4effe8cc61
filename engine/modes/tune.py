"""Calibration of a sampler: times and coefficients fitted to the network of a run, for all later commands.

The fit targets are the ends of the network's own probability flow, from seeds that no sample has.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.engine import tuned
from score_sde.engine.config import Options
from score_sde.engine.drawing import first_normals
from score_sde.engine.files import write_json
from score_sde.engine.inference import usual
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say
from score_sde.engine.randomness import TUNING, noise, positions
from score_sde.engine.results import question, result_files, result_record
from score_sde.engine.sampler import chosen, make_step, make_times
from score_sde.samplers import ODE
from score_sde.samplers.calibration import calibrate

REFERENCES, ITERATIONS, BATCH_SIZE = 320, 150, 64
"""Trajectories, a fifth of them for validation; iterations of the optimizer; examples in each iteration."""


TOLERANCE = 1e-5
"""Tolerance of the reference solver: a hundredth of the error of 20 evaluations."""


def run(config: Config, workdir: Path, given: Options) -> None:
    """Fits the sampler of the section ``sample``; writes ``workdir``/tuned/<sampler>-<steps>.json.

    Raises: ValueError for a sampler that has no coefficients or adds noise, or a grid without moves.
    """
    if config.sample.grid == tuned.GRID:
        config = replace(config, sample=replace(config.sample, grid=""))
    experiment, denoiser, found = load(config, workdir, given)
    check_flow(denoiser, workdir)
    sde, sampler, step = experiment.sde, config.sample.sampler.name, tuned.tunable(make_step(config.sample, experiment))
    made_for = tuned.conditions(config.sample, step, found, given.weights)
    (grid, steps), whole = chosen(config.sample, sde), make_times(config.sample, experiment)
    times: list[float] = whole[sde.sigma(whole) > 0].tolist()
    if len(times) < 2:
        raise ValueError(f"{steps} steps on the grid {grid} leave nothing to tune; use more")

    start = time.perf_counter()
    x = sde.prior_std * first_normals(experiment, noise(config.seed, TUNING, positions(0, REFERENCES)))
    size = config.sample.batch_size or usual(experiment.facts.shape)
    flow = ODE(sde, rtol=TOLERANCE, atol=TOLERANCE, gaussian=experiment.gaussian.isotropic())
    with torch.no_grad():
        ends = [flow.follow(denoiser, part, times[0], times[-1]) for part in x.split(size)]
    plan, before, after = calibrate(step, denoiser, x, torch.cat(ends), times, ITERATIONS, BATCH_SIZE)
    seconds = time.perf_counter() - start

    path = tuned.plan_path(workdir, sampler, steps)
    asked = question(config, (), given, found, **made_for, grid=grid)
    result = {
        "made_for": made_for,
        "plan": {**plan._asdict(), "moves": [move._asdict() for move in plan.moves]},
        "grid": grid,
        "references": REFERENCES,
        "validation": {"num": len(before), "before": error_record(before), "after": error_record(after)},
        **result_record(config, given, asked, seconds, found),
    }
    with result_files(path.parent, [path.name], asked) as partial:
        write_json(partial / path.name, result)
    fall = f"{before.mean():.2g} to {after.mean():.2g}"
    say(f"{sampler} in {steps} steps: mean error {fall} on {len(before)} trajectories held out, {seconds:.0f} s")
    say(f"kept in {path}, which --mode sample takes from now on")


def error_record(errors: Tensor) -> dict[str, float]:
    """Statistics of errors, in units of the encoded data."""
    rms = errors.square().mean().sqrt()
    return {"mean": errors.mean().item(), "rms": rms.item(), "median": errors.median().item()}
