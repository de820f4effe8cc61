"""The probability flow: the ODE with the marginals of the SDE, in coordinates suited to its solution.

With y = x / alpha and r = sigma / alpha it is dy/dr = (y - x0) / r for every SDE. The flow of Gaussian data N(mean, C)
is known and scaled out:

    u = (C + r^2)^(-1/2) (y - mean),    theta = atan(r / s),    s^2 = tr C / D,

    du/dtheta = -(C + r^2)^(-1/2) (x0 - x0_gaussian) / (sin theta cos theta).

For Gaussian data u is constant. For all data of this mean and covariance u has unit variance at all times. theta is
bounded, from 0 (data) to pi / 2 (noise), and the velocity is small near both ends. In x and t the ODE is dx/dt = f x -
g^2 score / 2.

Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, eq. 13. arXiv:2011.13456
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, overload

import torch
from torch import Tensor

from score_sde.sde_lib.denoiser import Denoise, Estimate, as_denoiser, for_examples
from score_sde.sde_lib.gaussian import Gaussian, Noised
from score_sde.sde_lib.process import SDE, Time, check_state, in_dtype
from score_sde.sde_lib.velocity import Indices, NonFiniteError, Rate


class Coefficients(NamedTuple):
    """Coefficients of the ODE at one angle: numbers, or tensors with one value for each example.

    angle, time: theta and t, numbers or (b, 1, ..., 1).
    alpha, slowness: signal scale, and sin theta cos theta; numbers or (b, 1, ..., 1).
    noised: distribution of y = x / alpha for data of the moment-matched Gaussian.
    """

    angle: Time
    time: Time
    alpha: Time
    slowness: Time
    noised: Noised


class Flow:
    """The probability flow of a denoiser as an ordinary differential equation for u in theta.

    Args:
        gaussian: moment-matched Gaussian of the data, in their dtype and on their device. It changes the coordinates,
            not the flow.
    """

    def __init__(self, sde: SDE, denoise: Estimate, gaussian: Gaussian, **cond: Tensor) -> None:
        self.sde, self.denoise, self.gaussian, self.cond = sde, as_denoiser(denoise, sde), gaussian, cond
        self._unread: list[tuple[Time, Indices, Tensor]] = []  # angle, examples and sums of their velocities

    def angle(self, t: float) -> float:
        """Angle theta at time t."""
        return math.atan(self.sde.ratio(t) / self.gaussian.std)

    @overload
    def time(self, angle: float) -> float: ...
    @overload
    def time(self, angle: Tensor) -> Tensor: ...
    def time(self, angle: Time) -> Time:
        """Time at the angle theta: a number for a number, a tensor for a tensor."""
        if not isinstance(angle, Tensor):
            return self.time(torch.tensor(angle, dtype=torch.float64)).item()
        return self.sde.time_of_ratio(self.ratio(angle)).clamp(self.sde.t_min, self.sde.t_max)

    @overload
    def ratio(self, angle: float) -> float: ...
    @overload
    def ratio(self, angle: Tensor) -> Tensor: ...
    def ratio(self, angle: Time) -> Time:
        """Noise-to-signal ratio r = sigma / alpha at the angle theta."""
        return self.gaussian.std * (torch.tan(angle) if isinstance(angle, Tensor) else math.tan(angle))

    def enter(self, x: Tensor, t: float) -> Tensor:
        """Transforms a state x (B, *) at time t into the coordinates u."""
        check_state(x)
        marginal = self.sde.marginal(t)
        return self.gaussian.whiten(x / marginal.alpha, marginal.ratio)

    def leave(self, u: Tensor, t: float) -> Tensor:
        """Transforms u back into x; inverse of ``enter``."""
        marginal = self.sde.marginal(t)
        return marginal.alpha * self.gaussian.colour(u, marginal.ratio)

    def log_volume(self, t: float) -> float:
        """log |det dx/du| at time t."""
        marginal = self.sde.marginal(t)
        return self.gaussian.mean.numel() * math.log(marginal.alpha) + self.gaussian.log_volume(marginal.ratio)

    def __call__(
        self, angle: Time, u: Tensor, indices: Indices = slice(None), traced: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Velocity du/dtheta, and estimates of its divergence, here none.

        Args:
            angle: a number, or (b, 1, ..., 1) with one value for each example.
            indices: indices of the b examples in the batch, to select their conditions.
            traced: whether the divergence is needed here.
        Shapes: u (b, *); returns (b, *) and (b, K), here K = 0.
        """
        return self.move(self.coefficients(angle, u), u, indices, traced)

    def ahead(self, angles: Tensor, u: Tensor) -> Sequence[Rate]:
        """Velocities at the angles (N, b, 1, ..., 1) for states like u (b, *), with precomputed coefficients."""
        return [functools.partial(self.move, coefficients) for coefficients in _unbound(self.coefficients(angles, u))]

    def move(
        self, coefficients: Coefficients, u: Tensor, indices: Indices = slice(None), traced: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Velocity and divergence as from ``__call__``, from precomputed coefficients."""
        residual = self.residual(self.position(u, coefficients), coefficients, indices)
        return self.velocity(residual, coefficients, indices), u.new_zeros(len(u), 0)

    def coefficients(self, angle: Time, like: Tensor) -> Coefficients:
        """Coefficients at an angle, or at angles (N, b, 1, ..., 1), in the dtype of ``like`` (b, *)."""
        t, ratio, slowness = in_dtype(self.time(angle), like), self.ratio(angle), in_dtype(_sin_cos(angle), like)
        if isinstance(ratio, Tensor):
            ratio = ratio.flatten(ratio.ndim - like.ndim + 1).to(like.dtype)
        return Coefficients(angle, t, self.sde.alpha(t), slowness, self.gaussian.noised(ratio))

    def position(self, u: Tensor, coefficients: Coefficients) -> Tensor:
        """Computes y = x / alpha from u."""
        return self.gaussian.scale(coefficients.noised.spread, u).add_(self.gaussian.mean)

    def residual(self, y: Tensor, coefficients: Coefficients, indices: Indices) -> Tensor:
        """(x0_gaussian - x0) / (sin theta cos theta) at y; its Jacobian and the velocity's have the same trace."""
        cond = {key: value[indices] for key, value in self.cond.items()}
        x0 = for_examples(self.denoise, indices)(coefficients.alpha * y, coefficients.time, **cond).x0
        mean = self.gaussian.mean
        return self.gaussian.scale(coefficients.noised.kept, y - mean).add_(mean).sub_(x0).div_(coefficients.slowness)

    def velocity(self, residual: Tensor, coefficients: Coefficients, indices: Indices) -> Tensor:
        """Computes du/dtheta from the residual."""
        velocity = self.gaussian.scale(coefficients.noised.narrow, residual)
        self._unread.append((coefficients.angle, indices, velocity.flatten(1).sum(1)))  # cheaper than isfinite
        return velocity

    def read(self, flags: Tensor) -> Tensor:
        """Copies flags of a solver to the CPU, in one transfer with the checks of the velocity since the last call.

        Raises: NonFiniteError with example, time and log-SNR.
        """
        unread, self._unread = self._unread, []
        finite = torch.isfinite(torch.cat([flags.new_zeros(0, dtype=torch.float32), *(sums for _, _, sums in unread)]))
        both = torch.cat([flags.flatten(), finite]).cpu()
        own, finite = both[: flags.numel()], both[flags.numel() :]
        if not finite.all():
            self._name_first(unread, finite)
        return own.view(flags.shape)

    def _name_first(self, unread: list[tuple[Time, Indices, Tensor]], finite: Tensor) -> NoReturn:
        """Raises the error of the first non-finite velocity in the order of evaluation."""
        for (angle, indices, _), good in zip(unread, finite.split([len(sums) for _, _, sums in unread]), strict=True):
            if not good.all():
                bad = int(good.int().argmin())
                example = bad if isinstance(indices, slice) else int(indices[bad])
                where = self.locate(angle[bad].item() if isinstance(angle, Tensor) else angle)
                raise NonFiniteError(f"the network is not finite {where}; check the weights and the data", example)
        raise AssertionError("all are finite")

    def locate(self, angle: float) -> str:
        """Describes theta by time and log-SNR."""
        return f"at t = {self.time(angle):.4g}, log-SNR {-2 * math.log(self.ratio(angle)):.4g}"


def trapezoidal(denoise: Denoise, sde: SDE, x: Tensor, x0: Tensor, t: Time, s: Time, **cond: Tensor) -> Tensor:
    """Prediction for which the bridge from t to the earlier s is the trapezoidal rule in r = sigma / alpha.

        x0 + (r_t / r_s) (x0(y, s) - x0) / 2,    y = bridge(x, x0),    x0 = x0(x, t)

    If r_s > 1 and r falls more than a hundredfold in the step, the prediction is x0(y, s). The first step of iDDPM is
    such a case: r falls by a factor of thousands, and the rule multiplies the change of the estimate by half of it.

    Shapes: x, x0 (B, *); returns (B, *).
    """
    y, _ = sde.bridge(x, x0, t, s)
    late, early = sde.marginal(t), sde.marginal(s)
    ratio = late.ratio * (early.alpha / early.sigma)
    steep = (ratio > _LONGEST_FALL) & (early.sigma > early.alpha)
    weight = 0.5 * ratio * (steep ^ True) + steep
    return torch.lerp(x0, denoise(y, s, **cond).x0, weight)


_LONGEST_FALL = 100.0


def _unbound(value: Any) -> Sequence[Any]:
    """Splits nested tuples of tensors along their first dimension into N tuples of the same structure."""
    if isinstance(value, Tensor):
        return value.unbind()
    return [type(value)(*parts) for parts in zip(*map(_unbound, value), strict=True)]


def _sin_cos(angle: Time) -> Time:
    return 0.5 * (torch.sin(2 * angle) if isinstance(angle, Tensor) else math.sin(2 * angle))
