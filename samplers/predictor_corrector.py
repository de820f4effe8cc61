"""Predictor-corrector samplers: Langevin dynamics between the steps of another sampler.

The corrector moves each state towards the marginal at time t, by steps that would preserve it if they were infinitely
small; the predictor then goes on to s.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from score_sde.samplers.ddim import DDIM, Ancestral
from score_sde.samplers.langevin import langevin
from score_sde.samplers.loop import Constraint, Step
from score_sde.samplers.stochastic import EulerMaruyama, ReverseDiffusion, Stay
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw

StepSize = Callable[[Tensor, Tensor, float], Tensor | float]
"""(score, z, sigma) -> squared ratio of the noise to the score; a number or (B, 1, ..., 1)."""


def by_norm(score: Tensor, z: Tensor, sigma: float) -> Tensor:
    """Ratio |z|^2 / |score|^2 of each example, regularised towards sigma^2 with the weight of a few dimensions.

    The rule of the paper, which averages over the batch, for single examples. In few dimensions a small score gives a
    huge step, and a step size that depends on the state changes the distribution that it should preserve. There the
    expected norm of the score of pure noise, sqrt(D) / sigma, dominates; in many dimensions the norm of the state's own
    score.

        (D + m) / (|score|^2 + m / sigma^2),    m = 64

    It preserves p(x) (|score|^2 + m / sigma^2) in place of p(x), which widens the distribution by a fraction of its
    variance of the order of 2 / (D + m): a few per cent in one dimension, a negligible amount for images.
    """
    dimensions = score.shape[1:].numel()
    square = score.flatten(1).square().sum(1).reshape(-1, *[1] * (score.ndim - 1))
    return (dimensions + _PRIOR_DIMENSIONS) / (square + _PRIOR_DIMENSIONS / sigma**2)


def by_batch_norm(score: Tensor, z: Tensor, sigma: float) -> Tensor:
    """Ratio of the mean norms over the batch, squared, as published; a sample then depends on its batch."""
    ratio: Tensor = z.flatten(1).norm(dim=1).mean() / score.flatten(1).norm(dim=1).mean()
    return ratio**2


def by_sigma(score: Tensor, z: Tensor, sigma: float) -> float:
    """sigma^2: annealed Langevin dynamics. Song, Ermon, 2019, algorithm 1. arXiv:1907.05600"""
    return sigma**2


_PRIOR_DIMENSIONS = 64

STEP_SIZES: dict[str, StepSize] = {"langevin": by_norm, "ald": by_sigma, "langevin_batch": by_batch_norm}


class Corrector:
    """Steps of ``langevin`` at a fixed time t, with a size set by a signal-to-noise ratio.

        h = 2 a^2 snr^2 step_size(score, z, sigma),    a = alpha_t / alpha_s

    Args:
        step_size: a key of ``STEP_SIZES``.
        snr: ratio of the score term to the noise term, positive, usually 0.05 to 0.2; acts like a temperature.
        num_steps: evaluations at each time, at least 0.
        constrain: applied to the state after the steps, at time t.
    Raises: ValueError for a value out of range.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, algorithms 4, 5. arXiv:2011.13456
    """

    def __init__(
        self, sde: SDE, step_size: str, snr: float, num_steps: int, constrain: Constraint | None = None
    ) -> None:
        if step_size not in STEP_SIZES:
            raise ValueError(f"unknown corrector {step_size!r}; known: {', '.join(sorted(STEP_SIZES))}")
        if not snr > 0:
            raise ValueError(f"snr {snr}: need a ratio above 0, usually 0.05 to 0.2")
        if num_steps < 0:
            raise ValueError(f"corrector_steps {num_steps}: need 0 or more")
        self.sde, self.step_size, self.snr, self.num_steps = sde, STEP_SIZES[step_size], snr, num_steps
        self.constrain = constrain

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        """State at the same time t; s is the time of the predictor's next state."""
        a, sigma = self.sde.transition(s, t)[0], self.sde.marginal(t).sigma

        def size(score: Tensor, z: Tensor) -> Tensor | float:
            return 2 * (a * self.snr) ** 2 * self.step_size(score, z, sigma)

        x = langevin(self.sde, denoise, x, t, draw, self.num_steps, size)
        return x if self.constrain is None else self.constrain(x, *self.sde.marginal(t)[:2])


PREDICTORS: dict[str, Callable[[SDE], Step]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "ancestral_forward": partial(Ancestral, v=1.0),
    "ddim": DDIM,
    "none": Stay,
}


class PredictorCorrector(Step):
    """Langevin steps at time t, then a predictor step to s, in the order of the released code.

    With ``corrector_steps = 0`` it is the predictor alone. 1 + corrector_steps evaluations.

    Args:
        predictor: sampler of the steps, a key of ``PREDICTORS``.
        corrector: step size rule of the Langevin steps, a key of ``STEP_SIZES``.
        snr: signal-to-noise ratio of a Langevin step, above 0; usually 0.05 to 0.2.
        corrector_steps: number of Langevin steps at each time, 0 or more.
        constrain: constraint applied after the Langevin steps; the loop applies its own after the predictor.
    Raises: ValueError for an unknown name or a value out of range.
    Reference: Song et al., 2021, algorithm 1. arXiv:2011.13456
    """

    def __init__(
        self,
        sde: SDE,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        snr: float = 0.16,
        corrector_steps: int = 1,
        constrain: Constraint | None = None,
    ) -> None:
        if predictor not in PREDICTORS:
            raise ValueError(f"unknown predictor {predictor!r}; known: {', '.join(sorted(PREDICTORS))}")
        self.sde = sde
        self.predict = PREDICTORS[predictor](sde)
        self.correct = Corrector(sde, corrector, snr, corrector_steps, constrain)

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.predict(denoise, self.correct(denoise, x, t, s, draw), t, s, draw)
