"""Drawing the samples of a run, batch by batch: sample i depends on the seed ``seed + i`` alone."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from score_sde.configs.default import Config
from score_sde.engine import checkpoint, ranks
from score_sde.engine.build import Experiment
from score_sde.engine.config import Options
from score_sde.engine.density import DensityEstimator
from score_sde.engine.facts import DataFacts
from score_sde.engine.files import write_npz
from score_sde.engine.guidance import Guidance
from score_sde.engine.inference import FittingBatches, filling
from score_sde.engine.likelihood_report import stderr
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import Progress, say
from score_sde.engine.pictures import is_image, num_shown, picture
from score_sde.engine.results import question, result_record
from score_sde.engine.sampler import chosen, make_step, make_times, planned
from score_sde.samplers import GRIDS, NOISES, STEPS, Heun, Noise, Step
from score_sde.samplers.draw import from_seeds, remark
from score_sde.sde_lib import Denoise, Denoiser, PerExample, Prediction, for_examples
from score_sde.sde_lib.process import Time
from score_sde.storage.naming import options, pick
from score_sde.storage.reading import half_of_memory


class Drawn(NamedTuple):
    """Samples of a run and their manifest.

    checkpoint: folder of the checkpoint.
    latents: initial normals z (N, *), with x_T = prior_std z.
    x0: encoded samples (N, *); with log_prob, states at t_min of the section ``likelihood``.
    label: class labels, int64 (N,); None without labels.
    log_prob: log-densities of the samples, in nats and in units of the data, float64 (N,); None unless requested.
    """

    experiment: Experiment
    denoiser: Denoiser
    checkpoint: Path
    latents: Tensor
    x0: Tensor
    manifest: dict[str, Any]
    label: Tensor | None = None
    log_prob: Tensor | None = None


def draw_run(config: Config, workdir: Path, given: Options, num: int, batch_size: int) -> Drawn:
    """Draws the samples of the seeds ``seed`` to ``seed + num - 1`` by the sampler of the section ``sample``.

    With log_prob, one solve of the probability flow yields samples and log-densities, by the section ``likelihood``.
    Several processes share the batches, and each returns all samples.

    Args:
        batch_size: samples in a batch; 0 for as many as fit on the device.
    Raises: ValueError for log_prob with a sampler other than ``ode``, with guidance or with a run that has no
        probability flow, and for samples that exceed the memory.
    """
    name = config.sample.sampler.name
    pick(STEPS, "sampler", name)
    if given.log_prob and name != "ode":
        raise ValueError("--log_prob needs the probability flow: add --sampler ode")
    make_sampling = FlowSampling if given.log_prob else StepSampling
    experiment, denoiser, found = load(config, workdir, given)
    check_room(num, experiment.facts.shape)
    guidance = Guidance(config, workdir, experiment)
    sampling: Sampling = make_sampling(config, workdir, given, found, experiment, denoiser, guidance)

    batch_size = batch_size or filling(num, experiment.facts.shape, experiment.device, sampling.evaluate)
    start = time.perf_counter()
    (latents, x0, *scores), nfe = draw_batches(sampling, config.seed, num, batch_size)
    seconds = time.perf_counter() - start

    asked = question(config, sampling.sections, given, found, log_prob=given.log_prob, sample__num_samples=num)
    manifest = {
        "sampler": name,
        "steps": sampling.steps,
        "grid": sampling.grid,
        "options": sampling.options,
        "guidance": guidance.record(),
        "nfe": nfe,
        "num_samples": num,
        "levels": experiment.facts.levels,
        "config_sha256": checkpoint.sha256(workdir / "config.json"),
        **result_record(config, given, asked, seconds, found),
        **sampling.record(num, *scores),
    }
    return Drawn(experiment, denoiser, found, latents, x0, manifest, guidance.labels(torch.arange(num)), *scores)


def draw_batches(sampling: "Sampling", seed: int, num: int, batch_size: int) -> tuple[list[Tensor], float]:
    """Returns the columns (num, *) that ``sampling.draw`` yields for all seeds, and the mean evaluations of a batch."""
    firsts = range(0, num, batch_size)[ranks.rank() :: ranks.size()]
    progress = Progress(sum(min(batch_size, num - first) for first in firsts), "samples")
    drawn, parts, calls, batches = {}, FittingBatches(), 0, 0

    def draw_part(seeds: Tensor) -> tuple[Tensor, ...]:
        sampling.denoiser.calls = 0
        return sampling.draw(seeds)

    for first in firsts:
        columns = []
        for seeds, part in parts(draw_part, seed + torch.arange(first, min(first + batch_size, num))):
            columns.append(part)
            calls, batches = calls + sampling.denoiser.calls, batches + 1
            progress.advance(len(seeds))
        drawn[first] = tuple(map(torch.cat, zip(*columns, strict=True)))
    progress.close()
    total, number = ranks.sum_over(torch.tensor([float(calls), batches])).tolist()
    return ranks.all_rows(drawn, num), total / number


class Sampling(Protocol):
    """How a command draws the samples of a batch of seeds.

    denoiser: counts its evaluations.
    steps, grid, options: entries of the manifest.
    sections: sections of the config that the samples depend on.
    """

    denoiser: "Counted"
    steps: int
    grid: str
    options: dict[str, Any]
    sections: tuple[str, ...]

    def draw(self, seeds: Tensor) -> tuple[Tensor, ...]:
        """Returns latents and encoded samples (B, *) of the seeds (B,), and further columns (B,)."""

    def evaluate(self, num: int) -> None:
        """Evaluates ``num`` samples once, to measure the memory."""

    def record(self, num: int, *columns: Tensor) -> dict[str, Any]:
        """Entries of the manifest about the further columns of ``num`` samples."""


class StepSampling:
    """Sampling by the step and grid of the section ``sample``, with guidance.

    Args:
        workdir: folder of the run, for its calibrations.
        found: folder of the checkpoint.
    """

    sections: tuple[str, ...] = ("sample", "guidance")

    def __init__(
        self,
        config: Config,
        workdir: Path,
        given: Options,
        found: Path,
        experiment: Experiment,
        denoiser: Denoiser,
        guidance: Guidance,
    ) -> None:
        settings = config.sample
        kind = pick(STEPS, "sampler", settings.sampler.name)
        if note := remark(settings.sampler.name, denoiser, experiment.sde):
            say(f"note: {note}")
        self.seed, self.experiment, self.guidance, self.denoiser = config.seed, experiment, guidance, Counted(denoiser)
        self.step, self.times, self.grid = planned(config.sample, workdir, experiment, found, given.weights, guidance)
        self.steps = chosen(config.sample, experiment.sde)[1]
        self.source = pick(NOISES, "noise", settings.noise)
        self.options = {"noise": settings.noise, **options(kind, settings.sampler)}

    def draw(self, seeds: Tensor) -> tuple[Tensor, ...]:
        return draw_pairs(self.experiment, self._denoiser_of(seeds), self.step, self.times, seeds, self.source)

    def evaluate(self, num: int) -> None:
        seeds, sde = self.seed + torch.arange(num), self.experiment.sde
        with torch.no_grad():
            x = sde.prior_std * first_normals(self.experiment, Noise(seeds))
            self._denoiser_of(seeds)(x, sde.t_max)

    def record(self, num: int, *columns: Tensor) -> dict[str, Any]:
        return {}

    def _denoiser_of(self, seeds: Tensor) -> Denoise:
        return self.guidance(self.denoiser, seeds - self.seed)


class FlowSampling:
    """Sampling with log-densities: one solve of the probability flow, by the section ``likelihood``.

    Args: as ``StepSampling``.
    Raises: ValueError for guidance, or a run that has no probability flow.
    """

    sections: tuple[str, ...] = ("sample", "guidance", "likelihood")
    steps, grid = 1, ""

    def __init__(
        self,
        config: Config,
        workdir: Path,
        given: Options,
        found: Path,
        experiment: Experiment,
        denoiser: Denoiser,
        guidance: Guidance,
    ) -> None:
        check_flow(denoiser, workdir)
        if guidance.is_active:
            raise ValueError("--log_prob is of the run's own density: leave --label and guidance out")
        self.seed, self.experiment, self.denoiser = config.seed, experiment, Counted(denoiser)
        self.estimator = DensityEstimator.of(config, experiment, self.denoiser)
        self.options = self.estimator.solver_options

    def draw(self, seeds: Tensor) -> tuple[Tensor, ...]:
        return draw_scored(self.estimator, seeds)

    def evaluate(self, num: int) -> None:
        draw_scored(self.estimator.shortest(), self.seed + torch.arange(num))

    def record(self, num: int, *columns: Tensor) -> dict[str, Any]:
        """Mean log-density of the samples, and the error of the solver on the first ``likelihood.check_examples``."""
        (nats,) = columns
        settings = self.estimator.settings
        means = {"nats": nats.mean().item(), "nats_stderr": stderr(nats.numpy()), "prior": settings.prior}
        check, seeds = None, self.seed + torch.arange(min(settings.check_examples, num))
        if len(seeds) and ranks.rank() == 0:
            latents = self.experiment.sde.prior_std * first_normals(self.experiment, Noise(seeds))
            check = self.estimator.check_samples(latents, seeds, num)
        return {"log_prob": {**means, **self.estimator.record(), "check": check}}


def check_room(num: int, shape: tuple[int, ...]) -> None:
    """Raises: ValueError if ``num`` samples and their latents, in float32, exceed half of the memory."""
    each = 2 * 4 * math.prod(shape)
    if num * each > half_of_memory():
        raise ValueError(
            f"num_samples {num}: with {each} bytes each they do not fit into memory; draw at most "
            f"{int(half_of_memory() // each)} at a time, the next ones by --seed"
        )


def draw(experiment: Experiment, denoise: Denoise, step: Step, times: Tensor, seeds: Tensor) -> Tensor:
    """Returns a decoded sample for each seed (B,), on the CPU; images are (B, C, H, W) uint8.

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
    """Returns the initial normals and the encoded sample (B, *) of each seed (B,).

    Raises: NonFiniteError or NotConvergedError naming the seed.
    """
    shape, device = experiment.facts.shape, experiment.device
    return from_seeds(step, denoise, shape, times, seeds, source, device)


def draw_scored(estimator: DensityEstimator, seeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``draw_pairs``, by one solve of the flow down to t_min of the section ``likelihood``, with log-densities (B,).

    The samples are the states at t_min, without a final denoising: the log-density belongs to these states.
    """
    experiment = estimator.experiment
    z = first_normals(experiment, Noise(seeds))
    found = estimator.sample(experiment.sde.prior_std * z, seeds)
    return z, found.x, found.nats.cpu().double() + experiment.codec.log_det(experiment.facts.shape)


def first_normals(experiment: Experiment, noise: Noise) -> Tensor:
    """Initial normals z = x_T / prior_std of the samples, for the seeds of the noise."""
    return noise(torch.empty(len(noise.seeds), *experiment.facts.shape, device=experiment.device))


def preview(experiment: Experiment, denoiser: Denoiser, config: Config, path: Path) -> None:
    """Writes a picture of samples during training, always of the same seeds, as many as a picture shows.

    The run's own sampler draws them if it takes at most 18 steps, else Heun's method in 18 steps.
    """
    sde = experiment.sde
    step: Step = Heun(sde)
    times = GRIDS["karras"](sde, 18)
    if chosen(config.sample, sde)[1] <= 18:
        step, times = make_step(config.sample, experiment), make_times(config.sample, experiment)
    samples = draw(experiment, denoiser, step, times, torch.arange(num_shown(experiment.facts)))
    picture(path, samples, experiment.facts)


def write_samples(folder: Path, samples: Tensor, facts: DataFacts, **columns: Tensor) -> None:
    """Writes decoded samples and further columns to samples.npz, and grid.png.

    Images with levels are stored as (N, H, W, C), real-valued data as (N, *) with channels first.
    """
    arrays = {"samples": samples.movedim(1, -1) if is_image(facts) else samples, **columns}
    write_npz(folder / "samples.npz", **{key: value.cpu().numpy() for key, value in arrays.items()})
    label = columns.get("label")
    classes = len(label.unique()) if label is not None else 0  # drawn in turn: a column of the grid for each
    picture(folder / "grid.png", samples, facts, classes)


class Counted(PerExample):
    """A denoiser that counts its evaluations in ``calls``."""

    def __init__(self, denoiser: Denoise) -> None:
        self.calls = 0
        super().__init__(lambda rows: partial(self._count, for_examples(denoiser, rows)))

    def _count(self, denoiser: Callable[..., Prediction], x: Tensor, t: Time, **cond: Tensor) -> Prediction:
        self.calls += 1
        return denoiser(x, t, **cond)
