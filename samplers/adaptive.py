"""Samplers that choose their step sizes for each example, by the difference of two estimates of the next state."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.samplers.brownian import RESOLUTION, brownian_path
from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE, NonFiniteError, NotConvergedError
from score_sde.sde_lib.denoiser import Denoise, for_examples
from score_sde.sde_lib.devices import put
from score_sde.sde_lib.process import Draw
from score_sde.sde_lib.runge_kutta import check_tolerances

Estimator = Callable[[Tensor, Tensor], Tensor]
Increment = Callable[[], Tensor]


class StepControl(Step):
    """Steps from t to s whose sizes follow from the difference of two estimates, separately for each example.

        error = rms((high - low) / max(atol, rtol |low|)),    size *= 0.9 error^(-power), at most 2

    A step is accepted with the result ``high`` if its error is at most 1, otherwise it is repeated with a smaller size.
    Sizes are in log(sigma / alpha), none above ``longest``. The result of an example does not depend on its batch. A
    grid of one step is the whole trajectory.

    Args:
        control_rtol: relative tolerance of a step, above 0; usually 0.01 to 0.1.
        control_atol: absolute tolerance of a step, above 0, in units of the encoded data; 0.0078 is one grey level.
    Raises: ValueError for a tolerance that is not positive; when called, NotConvergedError or NonFiniteError naming
        example and time.
    """

    num_steps = 1
    power: float
    longest = math.inf

    def __init__(self, sde: SDE, control_rtol: float = 0.05, control_atol: float = 0.0078) -> None:
        self.sde = sde
        self.rtol, self.atol = check_tolerances(control_rtol, control_atol)

    @abstractmethod
    def propose(
        self, estimate: Estimator, x: Tensor, t: Tensor, s: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        """Two estimates of the state at s, low and high.

        Args:
            estimate: (x, t) -> x0.
            increment: () -> increment of the noise from t to s, standard normal.
        Shapes: x (b, *) float64; t, s (b, 1, ..., 1); returns twice (b, *).
        """

    def keys(self, draw: Draw, x: Tensor) -> Tensor:
        """Keys of the Brownian paths between t and s, one per example; (B,) int64."""
        return torch.zeros(len(x), dtype=torch.int64)

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        interval, keys, result = Interval(self.sde, t, s), self.keys(draw, x), torch.empty_like(x)
        longest = max(1, int(RESOLUTION * min(1.0, self.longest / interval.length)))
        active = Active.all_of(x)
        for _ in range(_MAX_MOVES):
            active = active.limited(longest)
            low, high = self._estimates(denoise, active, interval, keys[active.indices], x.dtype)
            error = self._error(low, high)
            _check_finite(error, active, interval)
            active = active.moved(high, error, self.power)
            if (active.size == 0).any():
                break
            done, left = (
                there.nonzero()[:, 0] for there in (active.position == RESOLUTION, active.position < RESOLUTION)
            )
            if len(done):
                result[put(active.indices[done], x.device)] = active.x[put(done, x.device)].to(x.dtype)
                active = active.select(left)
            if len(left) == 0:
                return result
        raise self._stuck(active, interval)

    def _estimates(
        self, denoise: Denoise, active: "Active", interval: "Interval", keys: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Result of ``propose`` for the next step of the active examples; the denoiser receives states in ``dtype``."""
        t, s = (_per_example(interval.time(p), active.x) for p in (active.position, active.position + active.size))
        denoise = for_examples(denoise, put(active.indices, active.x.device))
        return self.propose(
            partial(_estimate, denoise, dtype), active.x, t, s, partial(_brownian_increment, keys, active)
        )

    def _error(self, low: Tensor, high: Tensor) -> Tensor:
        """Root mean square of the difference over the tolerance; (b,) on the CPU."""
        tolerance = (self.rtol * low.abs()).clamp_min(self.atol)
        return ((high - low) / tolerance).flatten(1).square().mean(1).sqrt().cpu()

    def _stuck(self, active: "Active", interval: "Interval") -> NotConvergedError:
        worst = int(active.size.argmin())
        step = interval.length * max(1, int(active.size[worst])) / RESOLUTION  # a size of 0 is below the resolution
        return NotConvergedError(
            f"the solver is stuck at t = {interval.time(active.position)[worst].item():.4g}, with a step of "
            f"{step:.1g} in log(sigma / alpha); raise the tolerances (rtol {self.rtol:g}, atol {self.atol:g})",
            int(active.indices[worst]),
        )


class Interval:
    """Interval from time t to s in log(sigma / alpha), divided into ``RESOLUTION`` equal parts."""

    def __init__(self, sde: SDE, t: float, s: float) -> None:
        self.sde, self.t, self.s = sde, t, s
        self.start, self.end = (-0.5 * sde.marginal(time).log_snr for time in (t, s))
        self.length = abs(self.end - self.start)

    def time(self, position: Tensor) -> Tensor:
        """Time at each position, which is 0 at t and ``RESOLUTION`` at s; (b,) float64."""
        log_snr = -2 * (self.start + (self.end - self.start) * position.double() / RESOLUTION)
        return self.sde.time(log_snr).clamp(self.s, self.t)


class Active(NamedTuple):
    """Examples that have not reached the end of the interval.

    States are on the device; all else is on the CPU, where the errors are read.

    indices: numbers of the examples in the batch, (b,) int64.
    x: states (b, *), float64.
    position: position of each state in the interval, 0 to ``RESOLUTION``, (b,) int64.
    size: size of the next step, in the same units, (b,) int64.
    """

    indices: Tensor
    x: Tensor
    position: Tensor
    size: Tensor

    @classmethod
    def all_of(cls, x: Tensor) -> "Active":
        """The whole batch at the start of the interval, with a first step of 1 / 64 of it."""
        position = torch.zeros(len(x), dtype=torch.int64)
        return cls(torch.arange(len(x)), x.double(), position, torch.full_like(position, RESOLUTION // 64))

    def limited(self, longest: int) -> "Active":
        """The same examples with step sizes of at most ``longest`` that do not pass the end of the interval."""
        return self._replace(size=torch.minimum(self.size, (RESOLUTION - self.position).clamp(max=longest)))

    def moved(self, high: Tensor, error: Tensor, power: float) -> "Active":
        """The examples after a step to ``high`` where its error (b,) is at most 1, with the sizes of their next steps.

        A size of 0 means that the smallest step was rejected.
        """
        accepted = error <= 1
        factor = (0.9 * error.clamp_min(1e-10) ** -power).clamp(0.1, 2.0)
        return self._replace(
            x=torch.where(_per_example(accepted, self.x), high, self.x),
            position=torch.where(accepted, self.position + self.size, self.position),
            size=(self.size * factor).long().clamp_min(accepted.long()),
        )

    def select(self, chosen: Tensor) -> "Active":
        """The active examples with these numbers (c,) among the active ones."""
        x = self.x[put(chosen, self.x.device)]
        return Active(self.indices[chosen], x, self.position[chosen], self.size[chosen])


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """Values (b,) on the device of the states ``like`` (b, *); (b, 1, ..., 1)."""
    return put(values, like.device).reshape(-1, *[1] * (like.ndim - 1))


def _estimate(denoise: Denoise, dtype: torch.dtype, x: Tensor, t: Tensor) -> Tensor:
    """x0 in float64, from a denoiser that takes states in ``dtype``."""
    return denoise(x.to(dtype), t.to(dtype)).x0.double()


def _brownian_increment(keys: Tensor, active: Active) -> Tensor:
    """Increment over the next step of the Brownian path of each key (b,), scaled to unit variance; (b, *)."""
    ends = active.position + active.size, active.position
    later, now = (brownian_path(keys, position, active.x) for position in ends)
    return (later - now) * _per_example((RESOLUTION / active.size.double()).sqrt(), active.x)


def _check_finite(error: Tensor, active: Active, interval: Interval) -> None:
    """Raises: NonFiniteError naming example and time where an error (b,) is not finite."""
    finite = error.isfinite()
    if not finite.all():
        bad = int(finite.int().argmin())
        raise NonFiniteError(
            f"the network is not finite at t = {interval.time(active.position)[bad].item():.4g}; check the weights and "
            "the data",
            int(active.indices[bad]),
        )


class AdaptiveSDE(StepControl):
    """Reverse SDE with step-size control: an ancestral step, and another with the mean estimate of both ends.

        low = E[x_s | x, x0] + std z,    high = E[x_s | x, (x0 + x0(low, s)) / 2] + std z,    power = 0.9

    The solver of the paper in coordinates without drift. The noise of an example is one Brownian path, evaluated at the
    ends of its steps, so a repeated step follows the same path: new noise would be selected by its error, which biases
    the distribution. For the same reason the tolerance ignores the state before the step, which is large at high noise,
    and ``longest`` keeps a step from skipping the noise levels at which the data take shape. Two evaluations per
    attempt.

    Args:
        control_rtol: relative tolerance of a step, above 0; usually 0.01 to 0.1.
        control_atol: absolute tolerance of a step, above 0, in units of the encoded data; 0.0078 is one grey level.
    Raises: as ``StepControl``.
    Reference: Jolicoeur-Martineau et al., "Gotta Go Fast When Generating Data with Score-Based Models", 2021, algorithm
        1. arXiv:2105.14080
    """

    power, longest = 0.9, 0.25

    def propose(
        self, estimate: Estimator, x: Tensor, t: Tensor, s: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        x0, z = estimate(x, t), increment()
        mean, std = self.sde.bridge(x, x0, t, s, 1.0)
        low = mean + std * z
        return low, self.sde.bridge(x, 0.5 * (x0 + estimate(low, s)), t, s, 1.0)[0] + std * z

    def keys(self, draw: Draw, x: Tensor) -> Tensor:
        words = [draw(x.float()).flatten(1)[:, 0].cpu() for _ in range(2)]
        return torch.stack(words, 1).view(torch.int64)[:, 0]


class DPMAdaptive(StepControl):
    """DPM-Solver-12 or -23: the difference of two orders controls the step size. Evaluations per attempt: the order.

    Steps are bridges with a constant noise, where h = log(r_t / r_s) and eps_i is the noise at a fraction i of h:

        12: low by eps,                        high by eps_(1/2)
        23: low by eps + 3/2 (eps_(1/3) - eps),  high by eps + 3/2 w(h) (eps_(2/3) - eps),
            eps_(2/3) after eps + 2 w(2h / 3) (eps_(1/3) - eps),    w(h) = 1 / h - 1 / (exp(h) - 1)

    Args:
        control_rtol: relative tolerance of a step, above 0; usually 0.01 to 0.1.
        control_atol: absolute tolerance of a step, above 0, in units of the encoded data; 0.0078 is one grey level.
        order: order of ``high``, 2 or 3; 2 keeps the marginals better at large tolerances, 3 takes fewer evaluations at
            small ones.
    Raises: as ``StepControl``; ValueError for another order.
    Reference: Lu et al., "DPM-Solver", 2022, algorithms 1, 2 and appendix C. arXiv:2206.00927
    """

    def __init__(self, sde: SDE, control_rtol: float = 0.05, control_atol: float = 0.0078, order: int = 2) -> None:
        super().__init__(sde, control_rtol, control_atol)
        if order not in (2, 3):
            raise ValueError(f"order {order}: dpm_adaptive has orders 2 and 3")
        self.order, self.power = order, 1 / order

    def propose(
        self, estimate: Estimator, x: Tensor, t: Tensor, s: Tensor, increment: Increment
    ) -> tuple[Tensor, Tensor]:
        sde, (late, early) = self.sde, (self.sde.log_snr(time) for time in (t, s))
        eps = sde.eps(x, estimate(x, t), t)

        def state_at(noise: Tensor, time: Tensor) -> Tensor:
            return sde.bridge(x, sde.x0(x, noise, t), t, time)[0]

        def eps_at(noise: Tensor, fraction: float) -> Tensor:
            time = sde.time(torch.lerp(late, early, fraction))
            y = state_at(noise, time)
            return sde.eps(y, estimate(y, time), time)

        if self.order == 2:
            return state_at(eps, s), state_at(eps_at(eps, 1 / 2), s)
        h = 0.5 * (early - late)
        first = eps_at(eps, 1 / 3) - eps
        second = eps_at(eps + 2 * _slope_weight(2 * h / 3) * first, 2 / 3) - eps
        return state_at(eps + 1.5 * first, s), state_at(eps + 1.5 * _slope_weight(h) * second, s)


def _slope_weight(h: Tensor) -> Tensor:
    """w(h): mean fraction of the interval from 0 to h, under the weight with which the step integrates the noise."""
    return 1 / h - 1 / torch.expm1(h)


_MAX_MOVES = 10_000
