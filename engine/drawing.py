"""Samples of a run, batch by batch: sample i of a command depends on the seed ``seed + i`` alone."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ml_collections import ConfigDict
from torch import Tensor

from score_sde.engine import checkpoint, ranks
from score_sde.engine.build import Experiment
from score_sde.engine.config import Options
from score_sde.engine.density import DensityEstimator
from score_sde.engine.facts import DataFacts
from score_sde.engine.files import write_npz
from score_sde.engine.guidance import Guidance
from score_sde.engine.inference import Parts, filling
from score_sde.engine.likelihood_report import stderr
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import Progress, say, versions
from score_sde.engine.pictures import is_image, num_shown, picture
from score_sde.engine.results import question
from score_sde.engine.sampler import chosen, make_step, make_times, planned
from score_sde.samplers import GRIDS, NOISES, STEPS, Heun, Noise, Step
from score_sde.samplers.draw import from_seeds, remark
from score_sde.sde_lib import SOLVERS, Denoise, Denoiser, Each, Prediction, of_rows
from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.process import Time
from score_sde.storage.naming import options, pick
from score_sde.storage.reading import half_of_memory


class Drawn(NamedTuple):
    """Samples of a run and their manifest.

    latents: the normals that they began with.
    x0: the data that they ended at, encoded; with log_prob, the states at t_min of the section ``likelihood``.
    label: that they were drawn with, int64 (N,); None for none.
    log_prob: of these states, in nats and in units of the data, (N,) float64; None where nobody asked.
    """

    experiment: Experiment
    denoiser: Denoiser
    checkpoint: Path
    latents: Tensor
    x0: Tensor
    manifest: dict[str, Any]
    label: Tensor | None = None
    log_prob: Tensor | None = None


def draw_run(config: ConfigDict, workdir: Path, given: Options, num: int, batch_size: int) -> Drawn:
    """The samples of the seeds ``seed`` to ``seed + num - 1``, by the sampler of the section ``sample``.

    So many at a time, or for 0 as many as fill the device.
    With log_prob by one solve of the probability flow, as the section ``likelihood`` says. Several processes share the
    batches, and each returns all samples.

    Raises: ValueError for log_prob with another sampler than the flow, a run that has none, or samples that do not fit
        into memory.
    """
    settings = config.sample
    kind = pick(STEPS, "sampler", settings.sampler)
    if given.log_prob and settings.sampler != "ode":
        raise ValueError("--log_prob needs the probability flow: add --sampler ode")
    experiment, denoiser, found = load(config, workdir, given)
    check_room(num, experiment.facts.shape)
    counted, guidance = Counted(denoiser), Guidance(config, workdir, experiment)
    if given.log_prob:
        check_flow(denoiser, workdir)
        if guidance.is_active:
            raise ValueError("--log_prob is of the run's own density: leave --label and guidance out")
        measurement = DensityEstimator.of(config, experiment, counted)
        draw_batch: Callable[[Tensor], tuple[Tensor, ...]]
        draw_batch, steps, grid = partial(draw_scored, measurement), 1, ""
        solver = config.likelihood.solver
        taken = {"solver": solver, **options(SOLVERS[solver], config.likelihood)}
        if isinstance(measurement.solver, AdamsPECE):
            taken["evaluations"] = measurement.solver.evaluations
    else:
        if note := remark(settings.sampler, denoiser, experiment.sde):
            say(f"note: {note}")
        step, times, grid = planned(config, workdir, experiment, found, given.weights, guidance)
        steps = chosen(config, experiment.sde)[1]
        source = pick(NOISES, "noise", settings.noise)

        def draw_guided(seeds: Tensor) -> tuple[Tensor, Tensor]:
            return draw_pairs(experiment, guidance(counted, seeds - config.seed), step, times, seeds, source)

        draw_batch = draw_guided
        taken = {"noise": settings.noise, **options(kind, settings)}

    def evaluate(number: int) -> None:
        seeds = config.seed + torch.arange(number)
        if given.log_prob:
            draw_scored(measurement.shortest(), seeds)
        else:
            with torch.no_grad():
                x = experiment.sde.prior_std * first_normals(experiment, Noise(seeds))
                guidance(denoiser, seeds - config.seed)(x, experiment.sde.t_max)

    batch_size = batch_size or filling(num, experiment.facts.shape, experiment.device, evaluate)
    firsts, start = range(0, num, batch_size), time.perf_counter()
    mine = firsts[ranks.rank() :: ranks.size()]
    progress, drawn, parts = Progress(sum(min(batch_size, num - first) for first in mine), "samples"), {}, Parts()
    calls, number = 0, 0

    def draw_part(seeds: Tensor) -> tuple[Tensor, ...]:
        counted.calls = 0
        return draw_batch(seeds)

    for first in mine:
        columns = []
        for seeds, part in parts(draw_part, config.seed + torch.arange(first, min(first + batch_size, num))):
            columns.append(part)
            calls, number = calls + counted.calls, number + 1
            progress.advance(len(seeds))
        drawn[first] = tuple(map(torch.cat, zip(*columns, strict=True)))
    progress.close()
    latents, x0, *scores = ranks.all_rows(drawn, num)
    calls, number = ranks.sum_over(torch.tensor([float(calls), number])).tolist()
    seconds = time.perf_counter() - start
    manifest = {
        "sampler": settings.sampler,
        "steps": steps,
        "grid": grid,
        "options": taken,
        "guidance": guidance.record(),
        "nfe": calls / number,
        "seconds": seconds,
        "num_samples": num,
        "seed": config.seed,
        "levels": experiment.facts.levels,
        "weights": given.weights,
        "checkpoint_step": checkpoint.read_meta(found)["step"],
        "config_sha256": checkpoint.sha256(workdir / "config.json"),
        "asked": asked_of(config, given, found, num),
        "changes": given.changes,
        "versions": versions(),
    }
    if given.log_prob:
        nats = {"nats": scores[0].mean().item(), "nats_stderr": stderr(scores[0].numpy())}
        manifest["log_prob"] = nats | {"prior": config.likelihood.prior, **measurement.told()}
        manifest["log_prob"]["check"] = check_densities(config, measurement, num)
    return Drawn(experiment, denoiser, found, latents, x0, manifest, guidance.labels(torch.arange(num)), *scores)


def check_room(num: int, shape: tuple[int, ...]) -> None:
    """Raises: ValueError where so many samples and their latents, in float32, do not fit into half of the memory."""
    each = 2 * 4 * math.prod(shape)
    if num * each > half_of_memory():
        raise ValueError(
            f"num_samples {num}: with {each} bytes each they do not fit into memory; draw at most "
            f"{int(half_of_memory() // each)} at a time, the next ones by --seed"
        )


def asked_of(config: ConfigDict, given: Options, found: Path, num: int) -> dict[str, Any]:
    """The question that so many samples of a checkpoint answer."""
    sections = ("sample", "guidance", *(["likelihood"] if given.log_prob else []))
    return question(config, sections, given, found, log_prob=given.log_prob, sample__num_samples=num)


def check_densities(config: ConfigDict, measurement: DensityEstimator, num: int) -> dict[str, Any] | None:
    """The error of the solver on the densities of the first ``likelihood.check_examples`` of ``num`` samples."""
    checks = min(config.likelihood.check_examples, num)
    if not checks or ranks.rank() > 0:
        return None
    seeds, experiment = config.seed + torch.arange(checks), measurement.experiment
    latents = experiment.sde.prior_std * first_normals(experiment, Noise(seeds))
    return measurement.check_samples(latents, seeds, num)


def draw(experiment: Experiment, denoise: Denoise, step: Step, times: Tensor, seeds: Tensor) -> Tensor:
    """One decoded sample for each seed (B,), on the CPU; images (B, C, H, W) uint8.

    Raises: NonFiniteError naming the seed.
    """
    return experiment.codec.decode(draw_pairs(experiment, denoise, step, times, seeds)[1]).cpu()


def draw_pairs(
    experiment: Experiment,
    denoise: Denoise,
    step: Step,
    times: Tensor,
    seeds: Tensor,
    source: Callable[[Tensor], Noise] = Noise,
) -> tuple[Tensor, Tensor]:
    """The normals that a sample begins with and the data it ends at, encoded, for each seed (B,).

    Raises: NonFiniteError or NotConvergedError naming the seed.
    """
    shape, device = experiment.facts.shape, experiment.device
    return from_seeds(step, denoise, shape, times, seeds, source, device)


def draw_scored(measurement: DensityEstimator, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``draw_pairs``, by one solve of the flow down to t_min of the section ``likelihood``; and log-densities (B,).

    What is returned are the states there, for it is these whose density is known; no denoising follows.
    """
    experiment = measurement.experiment
    z = first_normals(experiment, Noise(seeds))
    found = measurement.sample(experiment.sde.prior_std * z, seeds)
    return z, found.x, found.nats.cpu().double() + experiment.codec.log_det(experiment.facts.shape)


def first_normals(experiment: Experiment, noise: Noise) -> Tensor:
    """x_T / prior_std of the samples that the noise is for."""
    return noise(torch.empty(len(noise.seeds), *experiment.facts.shape, device=experiment.device))


def preview(experiment: Experiment, denoiser: Denoiser, config: ConfigDict, path: Path) -> None:
    """A quick look during training: as many samples as a picture shows, always of the same seeds.

    By the run's own sampler if that takes at most 18 steps, else by Heun's method in as many.
    """
    sde = experiment.sde
    step: Step = Heun(sde)
    times = GRIDS["karras"](sde, 18)
    if chosen(config, sde)[1] <= 18:
        step, times = make_step(config, experiment), make_times(config, experiment)
    samples = draw(experiment, denoiser, step, times, torch.arange(num_shown(experiment.facts)))
    picture(path, samples, experiment.facts)


def write_samples(folder: Path, samples: Tensor, facts: DataFacts, **beside: Tensor) -> None:
    """Write decoded samples and what belongs to them as samples.npz, and grid.png.

    Images of levels are stored as (N, H, W, C), real-valued data as (N, *) with channels first.
    """
    arrays = {"samples": samples.movedim(1, -1) if is_image(facts) else samples, **beside}
    write_npz(folder / "samples.npz", **{key: value.cpu().numpy() for key, value in arrays.items()})
    label = beside.get("label")
    classes = len(label.unique()) if label is not None else 0  # that are drawn in turn, a column each
    picture(folder / "grid.png", samples, facts, classes)


class Counted(Each):
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Denoise) -> None:
        self.calls = 0
        super().__init__(lambda rows: partial(self._count, of_rows(denoiser, rows)))

    def _count(self, denoiser: Callable[..., Prediction], x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        self.calls += 1
        return denoiser(x, t, **cond)
