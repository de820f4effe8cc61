"""Deterministic solvers with several evaluations within each step and no history.

As in ``samplers/multistep.py``, one class covers most of them: an integrand, an integration variable, and stages, each
an intermediate state that depends on the values of earlier ones. All coefficients are computed when the grid is known.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from score_sde.samplers.integrands import Coordinates
from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE, Gaussian
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.flow import trapezoidal
from score_sde.sde_lib.process import Draw
from score_sde.sde_lib.runge_kutta import NODES, STAGES


class Heun(Step):
    """Heun's second-order step: the mean of the noise at the start and at the end of an Euler step.

        y = bridge(x, x0(x, t)),    x_s = bridge(x, x0 + (r_t / r_s) (x0(y, s) - x0) / 2),    r = sigma / alpha

    This is the trapezoidal rule in r, written as a change of the prediction; for the EDM process it is Karras's solver.
    Two evaluations.

    Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 1.
    """

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        x0 = trapezoidal(denoise, self.sde, x, denoise(x, t).x0, t, s)
        return self.sde.bridge(x, x0, t, s)[0]


class Stage(NamedTuple):
    """Coefficients in x of one evaluation and of the state that follows from it.

    time: time of the evaluation.
    value: (a, b) of the value a x + b x0.
    keep: coefficient of the state at the start of the step.
    weights: coefficients of the values so far.
    shift: coefficient of the mean of the data.
    """

    time: float
    value: tuple[float, float]
    keep: float
    weights: list[float]
    shift: float


class Singlestep(Step):
    """Step in stages; each stage integrates a polynomial through the values of earlier ones from the start of the step.

        u_i = u_t + sum_j w_ij value_j,    w_ij the integral of pace times the j-th Lagrange polynomial of stage i

    The last stage is the state at s. The number of evaluations is the number of stages.

    Args:
        integrand: a key of ``INTEGRANDS``.
        integration_variable: a key of ``INTEGRATION_VARIABLES``.
        stages: for each stage its fraction of the way from t to s in log(sigma / alpha), in (0, 1], and the numbers of
            the values that it interpolates, 0 at t and i at stage i; the last stage is at 1.
        gaussian: moment-matched Gaussian of the data, whose mean and standard deviation the integrand ``residual``
            uses; default N(0, I).
    Raises: ValueError for an unknown name.
    Reference: Hochbruck, Ostermann, "Exponential integrators", 2010, section 2.3.
    """

    def __init__(
        self,
        sde: SDE,
        integrand: str,
        integration_variable: str,
        stages: tuple[tuple[float, tuple[float, ...]], ...],
        gaussian: Gaussian | None = None,
    ) -> None:
        self.sde, self.stages, self.gaussian = sde, stages, gaussian
        self.coordinates = Coordinates(sde, integrand, integration_variable, gaussian.std if gaussian else 1.0)
        self.moves: dict[float, list[Stage]] = {}

    def reset(self, times: list[float]) -> None:
        self.moves = dict(zip(times[:-1], self.plan(times), strict=True))

    def plan(self, times: list[float]) -> list[list[Stage]]:
        """Stages of the steps from each time to the next; their times are added to the table of the SDE."""
        grid = torch.tensor(times, dtype=torch.float64)
        fractions = np.array([0.0, *(fraction for fraction, _ in self.stages)])
        ends = np.array([-0.5 * self.sde.marginal(t).log_snr for t in times])
        logs = ends[:-1, None] + np.diff(ends)[:, None] * fractions
        at = self.sde.time(torch.from_numpy(-2 * logs))
        at[:, fractions == 0], at[:, fractions == 1] = grid[:-1, None], grid[1:, None]
        self.sde.tabulate(at.flatten())
        alpha, ratio = self.sde.marginal(at).alpha.numpy(), np.exp(logs)
        a, b = self.coordinates.weights(ratio)
        scale = alpha * self.coordinates.scale(ratio)
        keep = scale[:, 1:] / scale[:, :1]
        weights = scale[:, 1:, None] * self.rule(ratio)
        shift = alpha[:, 1:] - keep * alpha[:, :1] - np.einsum("nij,nj->ni", weights, (a + b)[:, :-1])
        values = np.stack([a / alpha, b], -1)[:, :-1]
        columns = (v.tolist() for v in (at[:, :-1], values, keep, weights, shift))
        return [[Stage(*row) for row in zip(*move, strict=True)] for move in zip(*columns, strict=True)]

    def rule(self, ratio: np.ndarray) -> np.ndarray:
        """Weights of the values in u at each stage.

        Shapes: ratio (N, stages + 1) at the start and at the stages; returns (N, stages, stages).
        """
        found = np.zeros((len(ratio), len(self.stages), len(self.stages)))
        for i, (_, numbers) in enumerate(self.stages):
            nodes = [int(number) for number in numbers]
            found[:, i, nodes] = self.coordinates.integrals(ratio[:, nodes], ratio[:, 0], ratio[:, i + 1])
        return found

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        state, values = x, []
        for time, (a, b), keep, weights, shift in self.moves[t]:
            values.append((b * denoise(state, time).x0).add_(state, alpha=a))
            state = keep * x
            for weight, value in zip(weights, values):
                if weight:
                    state.add_(value, alpha=weight)
            if self.gaussian:
                state.add_(self.gaussian.mean.to(x), alpha=shift)
        return state


class DPM2S(Singlestep):
    """DPM-Solver-2, equal to Karras's DPM2: the noise at the middle of the step. Order 2 for two evaluations.

    Reference: Lu et al., "DPM-Solver", 2022, algorithm 1. arXiv:2206.00927
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde, "noise", "log_ratio", _MIDPOINT)


class DPM3S(Singlestep):
    """DPM-Solver-3: the noise at one third and two thirds of the step. Order 3 for three evaluations.

    Reference: Lu et al., "DPM-Solver", 2022, algorithm 2. arXiv:2206.00927
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde, "noise", "log_ratio", ((1 / 3, (0,)), (2 / 3, (0, 1)), (1.0, (0, 2))))


class DPMPP2S(Singlestep):
    """DPM-Solver++(2S): the data at the middle of the step. Order 2 for two evaluations.

    Reference: Lu et al., "DPM-Solver++", 2022, algorithm 1. arXiv:2211.01095
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde, "data", "log_ratio", _MIDPOINT)


class RungeKutta(Singlestep):
    """Explicit Runge-Kutta method for du / dlog r = pace value, r = sigma / alpha, with the step sizes of the grid.

    Args:
        integrand: a key of ``INTEGRANDS``.
        stages: node and row of each stage of the tableau; the last one is the result.
        gaussian: moment-matched Gaussian of the data; default N(0, I).
    """

    def __init__(
        self,
        sde: SDE,
        integrand: str,
        stages: tuple[tuple[float, tuple[float, ...]], ...],
        gaussian: Gaussian | None = None,
    ) -> None:
        super().__init__(sde, integrand, "log_ratio", stages, gaussian)

    def rule(self, ratio: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(self.stages), len(self.stages)))
        for i, (_, row) in enumerate(self.stages):
            rows[i, : len(row)] = row
        width = np.log(ratio[:, -1] / ratio[:, 0])
        weights: np.ndarray = width[:, None, None] * rows * self.coordinates.pace(ratio)[:, None, :-1]
        return weights


class RK4(RungeKutta):
    """The classical Runge-Kutta method. Order 4 for four evaluations.

    Args:
        gaussian: moment-matched Gaussian of the data; default N(0, I).
    Reference: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 1993, table II.1.2.
    """

    def __init__(self, sde: SDE, gaussian: Gaussian | None = None) -> None:
        super().__init__(sde, "residual", _CLASSICAL, gaussian)


class RK45(RungeKutta):
    """The fifth-order formula of Dormand and Prince's pair. Order 5 for six evaluations; ``ode`` uses both of the pair.

    Args:
        gaussian: moment-matched Gaussian of the data; default N(0, I).
    Reference: Dormand, Prince, "A Family of Embedded Runge-Kutta Formulae", 1980.
    """

    def __init__(self, sde: SDE, gaussian: Gaussian | None = None) -> None:
        super().__init__(sde, "residual", tuple(zip(NODES, STAGES, strict=True)), gaussian)


_MIDPOINT = ((0.5, (0,)), (1.0, (1,)))
_CLASSICAL = ((0.5, (0.5,)), (0.5, (0.0, 0.5)), (1.0, (0.0, 0.0, 1.0)), (1.0, (1 / 6, 1 / 3, 1 / 3, 1 / 6)))
