"""Log-densities of examples by the probability flow: dequantization, solver, trace, and the error of the solver."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.configs.default import Config, Likelihood
from score_sde.data import Dataset
from score_sde.engine import ranks
from score_sde.engine.build import Experiment
from score_sde.engine.convergence import MeanError, refine
from score_sde.engine.randomness import DEQUANTIZATION, PROBES, noise, uniform
from score_sde.sde_lib import (
    DEQUANTIZATIONS,
    PRIORS,
    SOLVERS,
    Denoise,
    Exact,
    Hutchinson,
    LogProb,
    log_prob,
    prior_term,
    sample_log_prob,
)
from score_sde.sde_lib import PROBES as PROBE_KINDS
from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.dequantization import data_time, edge
from score_sde.sde_lib.likelihood import check_time
from score_sde.sde_lib.velocity import ExampleError, Solver
from score_sde.storage.naming import options, pick

CHECK_PROBES = 4
"""Least number of random probes for the estimate of their error."""


COPY = 1 << 40
"""Distance between the positions of an example's dequantized copies, which key their random numbers."""


class DensityEstimator(NamedTuple):
    """Estimator of the log-density of examples under a denoiser.

    t: time of the data.
    exact: whether the trace is exact.
    """

    experiment: Experiment
    denoiser: Denoise
    settings: Likelihood
    seed: int
    solver: Solver
    t: float
    exact: bool

    @classmethod
    def of(cls, config: Config, experiment: Experiment, denoiser: Denoise) -> "DensityEstimator":
        """The estimator of the section ``likelihood``.

        Raises: ValueError for settings that contradict each other or do not fit the data.
        """
        settings = config.likelihood
        pick(PRIORS, "prior", settings.prior)
        if experiment.codec.log_det(experiment.facts.shape) is None:
            raise ValueError(
                f"codec {config.codec.name!r} has no log-determinant, so the density of the data is unknown; use "
                "--mode bound, or a run on the data themselves"
            )
        pick(PROBE_KINDS, "probe", settings.probe)
        shape = experiment.facts.shape
        exact = math.prod(shape) < max(settings.exact_trace_below, 2)  # free of charge in one dimension
        solver = pick(SOLVERS, "solver", settings.solver.name)
        values = {**settings.solver, "evaluations": settings.evaluations or start(math.prod(shape), exact)}
        solver = solver(**options(solver, {**values, "edge": edge(settings.dequantization)}))
        t = settings.t_min or data_time(settings.dequantization, experiment.sde, experiment.bin_width)
        check_time(experiment.sde, t)
        estimator = cls(experiment, denoiser, settings, config.seed, solver, t, exact)
        like = torch.zeros(1, *shape)
        estimator._trace(torch.tensor([0]), settings.probes, False).start(like)  # raises for too many probes
        return estimator

    def shortest(self) -> "DensityEstimator":
        """The same estimator with two evaluations, to measure the memory."""
        return self._replace(solver=AdamsPECE(2))

    @property
    def solver_options(self) -> dict[str, Any]:
        """Name and options of the solver, with the initial number of evaluations."""
        settings, shape = self.settings, self.experiment.facts.shape
        values = {**settings.solver, "evaluations": settings.evaluations or start(math.prod(shape), self.exact)}
        return {"solver": settings.solver.name, **options(SOLVERS[settings.solver.name], values)}

    def record(self) -> dict[str, Any]:
        """Entries of a result: the time of the data, its noise relative to the signal, the trace and the solver."""
        noise = self.experiment.sde.marginal(self.t).ratio
        trace = "exact" if self.exact else f"{self.settings.probes} {self.settings.probe}"
        solver = f"{self.settings.solver.name}, {self.solver}"
        width = self.experiment.bin_width
        levels = {"noise_unit": self.experiment.codec.unit, "noise_levels": noise / width if width else None}
        return {"t": self.t, "noise": noise, **levels, "trace": trace, "solver": solver}

    def sample(self, latents: Tensor, seeds: Tensor) -> LogProb:
        """Samples of the flow from latents x_T (B, *), with log-densities; the seeds (B,) key the random probes."""
        trace = self._replace(seed=0)._trace(seeds, self.settings.probes, not self.solver.adaptive)
        return self._solve(latents, seeds, trace, self.solver, sample_log_prob)

    def score(self, dataset: Dataset, examples: list[int]) -> dict[str, np.ndarray]:
        """Columns of the examples, name -> (B,), each the mean over ``repeats`` independent estimates."""
        repeats = [self._once(dataset, examples, repeat) for repeat in range(self.settings.repeats)]
        columns = {key: torch.stack([columns[key] for columns in repeats]) for key in repeats[0]}
        means = {key: column.double().mean(0).cpu().numpy() for key, column in columns.items()}
        num = len(repeats)
        means["probe_variance"] /= num
        if num > 1:
            means["repeat_variance"] = columns["nats"].double().var(0).cpu().numpy() / num
        return means

    def _once(self, dataset: Dataset, examples: list[int], repeat: int) -> dict[str, Tensor]:
        """One estimate for each example: the logarithm of the mean density over its dequantized copies.

        Probes add noise of variance v_k to the log-density of copy k, whose softmax weight is w_k. To second order,
        this noise raises the logarithm of the mean by sum_k w_k (1 - w_k) v_k / 2: the inflation.
        """
        samples = self.settings.samples
        centres = self._encode(dataset, examples)
        copies = torch.arange(repeat * samples, (repeat + 1) * samples)
        where = (torch.tensor(examples)[:, None] + COPY * copies).flatten()
        x, log_q = self._dequantize(centres.repeat_interleave(samples, 0), where)
        found = self._solve(x, where, self._trace(where, self.settings.probes, not self.solver.adaptive), self.solver)
        nats = (found.nats.double() - log_q.double()).unflatten(0, (-1, samples))
        weights = torch.softmax(nats, 1)
        total = torch.logsumexp(nats, 1) - math.log(samples)
        variance = found.variance.double().unflatten(0, (-1, samples))

        def mean(values: Tensor) -> Tensor:
            return values.double().unflatten(0, (-1, samples)).mean(1)

        sde, scaling = self.experiment.sde, self.experiment.codec.log_det(self.experiment.facts.shape)
        return {
            "nats": total,
            "prior": mean(found.prior),
            "divergence": mean(found.divergence),
            "dequantization": mean(-log_q.double() - scaling),
            "importance": total - nats.mean(1),
            "probe_variance": (weights.square() * variance).sum(1),
            "inflation": 0.5 * (weights * (1 - weights) * variance).sum(1) if samples > 1 else torch.zeros_like(total),
            "mismatch": mean(prior_term(sde, x / sde.alpha(self.t))),
            "calls": mean(found.calls) * samples,
            "traced": mean(found.traced) * samples,
        }

    @property
    def automatic(self) -> bool:
        """Whether ``converged`` chooses the number of evaluations."""
        return not self.solver.adaptive and not self.settings.evaluations

    def converged(self, dataset: Dataset, num: int) -> tuple["DensityEstimator", dict[str, Any] | None]:
        """Returns the estimator with its final solver, and the error of that solver on the first ``num`` examples.

        With automatic evaluations, the solver is the coarsest one whose mean error is small relative to the standard
        error over the split. The first of several processes measures and chooses; the others return None as error.
        """
        chosen, found = 0, None
        if ranks.rank() == 0:
            where = torch.arange(num)
            x, log_q = self._dequantize(self._encode(dataset, where.tolist()), where)
            chosen, found = self._check(x, where, len(dataset), log_q, log_prob, self.automatic)
        if self.automatic:
            chosen = int(ranks.sum_over(torch.tensor(chosen)))
        solver = self.solver
        for _ in range(chosen):
            solver = solver.refined()
        return self._replace(solver=solver), found

    def check_samples(self, latents: Tensor, seeds: Tensor, num: int) -> dict[str, Any]:
        """The error of the solver on some of ``num`` samples, as in ``converged``."""
        log_q = torch.zeros(len(seeds), dtype=torch.float64, device=latents.device)
        return self._replace(seed=0)._check(latents, seeds, num, log_q, sample_log_prob, False)[1]

    def _check(
        self, x: Tensor, where: Tensor, num: int, log_q: Tensor, measure: Callable[..., LogProb], choose: bool
    ) -> tuple[int, dict[str, Any]]:
        """Returns the number of refinements of the solver, and the refined solver's error against a finer one.

        Both solvers use the same probes. The errors are in nats: ``solver_error``, root mean square over the examples;
        ``mean_error`` with the half width of its 95 % interval; ``probe_error``, root mean square error of one estimate
        due to random probes.

        Args:
            x, where: some of ``num`` examples, and their positions or seeds.
            log_q: (B,) log-density of their dequantization noise.
            choose: whether to refine the solver.
        """
        probed, error = self._probed(x, where, self.solver, measure)

        def solve(solver: Solver) -> np.ndarray:
            found = self._solve(x, where, self._trace(where, 1, False), solver, measure)
            return (found.nats.double() - log_q).cpu().numpy()

        spread = math.inf if self.exact or len(x) < 2 else float((probed - log_q).std())
        refined = refine(solve, self.solver, spread, num, x[0].numel())
        chosen = refined.converged if choose else 0
        if chosen:
            _, error = self._probed(x, where, refined.solvers[chosen], measure)
        differences = refined.differences(chosen)
        mean = MeanError.of(differences)
        return chosen, {
            "examples": len(x),
            "against": str(refined.solvers[-1]),
            "solver_error": float(np.sqrt(np.square(differences).mean())),
            "probe_error": error,
            "mean_error": mean.mean,
            "mean_error_margin": mean.margin,
        }

    def _probed(
        self, x: Tensor, where: Tensor, solver: Solver, measure: Callable[..., LogProb]
    ) -> tuple[Tensor, float]:
        """Log-densities (B,) by a few random probes, and the error of one estimate due to its probes; in nats."""
        if self.exact:
            return x.new_zeros(len(x)), 0.0
        probes = max(self.settings.probes, min(CHECK_PROBES, x[0].numel()))
        trace = self._trace(where, probes, not solver.adaptive)
        assert isinstance(trace, Hutchinson)
        found = self._solve(x, where, trace, solver, measure)
        spread = found.estimates.double().var(1).mean().item()
        return found.nats.double(), math.sqrt(spread * trace.kind.variance(self.settings.probes, x[0].numel()))

    def _encode(self, dataset: Dataset, examples: list[int]) -> Tensor:
        values = dataset.batch(np.array(examples))["x"].to(self.experiment.device)
        return self.experiment.codec.encode(values)

    def _dequantize(self, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        u = uniform(self.seed, DEQUANTIZATION, where, x)
        add_noise = DEQUANTIZATIONS[self.settings.dequantization]
        x, log_q = add_noise(self.experiment.sde, self.t, x, u, self.experiment.bin_width)
        if not self.experiment.facts.levels:  # no noise: log q is 0 in units of the data
            log_q = log_q - self.experiment.codec.log_det(self.experiment.facts.shape)
        return x, log_q

    def _trace(self, where: Tensor, probes: int, fresh: bool) -> Exact | Hutchinson:
        """The trace for the examples at these positions."""
        if self.exact:
            return Exact()
        return Hutchinson(noise(self.seed, PROBES, where), probes, self.settings.probe, fresh)

    def _solve(
        self,
        x: Tensor,
        where: Tensor,
        trace: Exact | Hutchinson,
        solver: Solver,
        measure: Callable[..., LogProb] = log_prob,
    ) -> LogProb:
        """Log-densities by the flow.

        Raises: ExampleError with the number of the example in the split.
        """
        sde, gaussian = self.experiment.sde, self.experiment.gaussian
        prior = functools.partial(PRIORS[self.settings.prior], sde, gaussian)
        try:
            return measure(sde, self.denoiser, x, gaussian.isotropic(), trace, self.t, solver, prior)
        except ExampleError as error:
            raise error.renumbered((where % COPY).tolist()) from error


def start(dimensions: int, exact: bool) -> int:
    """Initial number of evaluations, if it is automatic.

    With random probes 32, whose error is below the noise of the probes. With the exact trace, as many as cost 2,048
    products with the Jacobian, between 32 and 128; at 128 the error vanishes on mixtures of up to 16 dimensions.
    """
    return min(max(2048 // dimensions, 32), 128) if exact else 32


def check_dequantization(name: str, levels: int) -> None:
    """Raises: ValueError for an unknown name, or one that does not fit data with ``levels`` levels."""
    pick(DEQUANTIZATIONS, "dequantization", name)
    if (name == "none") == (levels > 0):
        fits, kind = ("uniform", "whole numbers") if levels else ("none", "real-valued")
        raise ValueError(f"likelihood.dequantization {name!r}, but the data are {kind}: use {fits!r}")


def check_copies(estimator: DensityEstimator) -> None:
    """Raises: ValueError for copies or repeats that are identical, and importance weights dominated by probe noise."""
    settings = estimator.settings
    bare = settings.dequantization == "none"
    if settings.samples > 1 and bare:
        raise ValueError(f"likelihood.samples {settings.samples}: without dequantization all copies are equal; use 1")
    if settings.repeats > 1 and bare and estimator.exact:
        raise ValueError(f"likelihood.repeats {settings.repeats}: nothing is random with the exact trace; use 1")
    if settings.samples > 1 and not estimator.exact and settings.probes < 2:
        raise ValueError(
            f"likelihood.samples {settings.samples}: importance weights turn the noise of the probes into likelihood; "
            "set likelihood.probes to 2 or more, or exact_trace_below above the "
            f"{math.prod(estimator.experiment.facts.shape)} dimensions"
        )
