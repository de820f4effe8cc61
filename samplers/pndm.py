"""Pseudo-numerical multistep methods: a blend of the noise at earlier times in one bridge step."""

import math

import torch
from torch import Tensor

from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.flow import trapezoidal
from score_sde.sde_lib.process import Draw


class PLMS(Step):
    """Pseudo linear multistep: a step along the bridge with a blend of the last few eps.

        x_s = bridge(x, x0(x, blend)),    blend = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24

    The Adams-Bashforth rule for d(x / alpha) / d(sigma / alpha) = eps. The first step is Heun's, and the blend grows
    with the history: N steps cost N + 1 evaluations.

    The weights assume times evenly spaced in sigma / alpha. On such a grid order 2 is of second order, and orders 3 and
    4 are of third order because of the start; on any other grid all are of second order.

    Args:
        order: number of eps in the blend, 2 to 4.
    Raises: ValueError for another order.
    Reference: Liu, Ren, Lin, Zhao, "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, section 3.
        arXiv:2202.09778
    """

    orders: tuple[int, ...] = (2, 3, 4)

    def __init__(self, sde: SDE, order: int = 4) -> None:
        if order not in self.orders:
            raise ValueError(f"order {order}: need {', '.join(map(str, self.orders[:-1]))} or {self.orders[-1]}")
        self.sde, self.order = sde, order
        self.past: list[Tensor] = []

    def reset(self, times: list[float]) -> None:
        self.past = []

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        x0 = denoise(x, t).x0
        self.past = [self.sde.eps(x, x0, t), *self.past[: self.order - 1]]
        return self.sde.bridge(x, self.estimate(denoise, x, x0, t, s), t, s)[0]

    def estimate(self, denoise: Denoise, x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
        """Estimate of the data for the bridge."""
        if len(self.past) == 1:
            return trapezoidal(denoise, self.sde, x, x0, t, s)
        weights = _ADAMS_BASHFORTH[len(self.past)]
        blend = sum((w * eps for w, eps in zip(weights, self.past, strict=True)), torch.zeros_like(x))
        return self.sde.x0(x, blend, t)


class PNDM(PLMS):
    """Pseudo linear multistep after a pseudo Runge-Kutta start: F-PNDM (order 4) and S-PNDM (order 2).

    Order 4 begins with three classical Runge-Kutta steps, whose middle is the mean of t and s:

        blend = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6,    each x of e_i by the bridge from (x, t) with e_{i-1}

    Order 2 begins with Heun's step and equals ``PLMS``. The history of the start consists of the first evaluation of
    each step. A grid of N steps that ends at the data costs N + 9 evaluations with order 4, and N + 1 with order 2. A
    starting step over which sigma / alpha falls more than tenfold is Heun's: its middle in time is far from the middle
    of the integral over sigma / alpha, so the rule would multiply changes of the estimate by that factor, three times
    in a row.

    Of fourth order if the times and their middles are evenly spaced in sigma / alpha; otherwise as ``PLMS``.

    Args:
        order: number of eps in the blend, 2 or 4.
    Raises: ValueError for another order.
    Reference: Liu et al., 2022, section 3, algorithm 2. arXiv:2202.09778
    """

    orders = (2, 4)

    def estimate(self, denoise: Denoise, x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
        if self.order == 2 or len(self.past) == self.order:
            return super().estimate(denoise, x, x0, t, s)
        if self.sde.marginal(s).log_snr - self.sde.marginal(t).log_snr > 2 * math.log(_LONGEST_FALL):
            return trapezoidal(denoise, self.sde, x, x0, t, s)
        return self.sde.x0(x, self._runge_kutta(denoise, x, t, s), t)

    def _runge_kutta(self, denoise: Denoise, x: Tensor, t: float, s: float) -> Tensor:
        """Mean of eps over the step from t to s, from four evaluations."""
        first, middle = self.past[0], 0.5 * (t + s)
        second = self._eps_after(denoise, x, first, t, middle)
        third = self._eps_after(denoise, x, second, t, middle)
        fourth = self._eps_after(denoise, x, third, t, s)
        return (first + 2 * second + 2 * third + fourth) / 6

    def _eps_after(self, denoise: Denoise, x: Tensor, eps: Tensor, t: float, s: float) -> Tensor:
        """Noise at s, of the state that eps moves from t to s."""
        y, _ = self.sde.bridge(x, self.sde.x0(x, eps, t), t, s)
        return self.sde.eps(y, denoise(y, s).x0, s)


_LONGEST_FALL = 10.0  # of sigma / alpha in a Runge-Kutta move

_ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of eps over the next step, latest first, by their number."""
