"""Deterministic solvers that remember: the noise seen at earlier times, blended, in one move."""

import math

import torch
from torch import Tensor

from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.flow import trapezoidal
from score_sde.sde_lib.process import Draw


class PLMS(Step):
    """Pseudo linear multistep: the move along the bridge, fed with a blend of the last few eps.

        x_s = bridge(x, x0(x, blend)),    blend = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24

    The Adams-Bashforth rule for d(x / alpha) / d(sigma / alpha) = eps. The first move is Heun's, and the blend grows
    with the past: N moves cost N + 1 evaluations.

    The weights are those of times evenly spaced in sigma / alpha. There, order 2 is of second order, and 3 and 4 are of
    third, that of the start; on any other grid all are of second order.

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
        """What the bridge is fed with."""
        if len(self.past) == 1:
            return trapezoidal(denoise, self.sde, x, x0, t, s)
        weights = _ADAMS_BASHFORTH[len(self.past)]
        blend = sum((w * eps for w, eps in zip(weights, self.past, strict=True)), torch.zeros_like(x))
        return self.sde.x0(x, blend, t)


class PNDM(PLMS):
    """Pseudo linear multistep after a pseudo Runge-Kutta start: F-PNDM (order 4) and S-PNDM (order 2).

    Order 4 begins with three classical Runge-Kutta moves, whose middle is half the time between t and s:

        blend = (e_1 + 2 e_2 + 2 e_3 + e_4) / 6,    each x of e_i by the bridge from (x, t) with e_{i-1}

    Order 2 begins with Heun's move and is ``PLMS``. A start remembers only the first evaluation of each move. A grid of
    N steps that ends at the data costs N + 9 and N + 1 evaluations. A move of the start over which sigma / alpha falls
    more than tenfold is Heun's: the middle in time is then far from the middle of the integral over sigma / alpha, and
    the rule would multiply changes of the estimate by the fall, three times over.

    Of fourth order where times, and their middles, are evenly spaced in sigma / alpha; otherwise as ``PLMS``.

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
        """The mean of eps over the move from t to s, looked at four times."""
        first, middle = self.past[0], 0.5 * (t + s)
        second = self._eps_after(denoise, x, first, t, middle)
        third = self._eps_after(denoise, x, second, t, middle)
        fourth = self._eps_after(denoise, x, third, t, s)
        return (first + 2 * second + 2 * third + fourth) / 6

    def _eps_after(self, denoise: Denoise, x: Tensor, eps: Tensor, t: float, s: float) -> Tensor:
        """The noise seen at s by the state that eps moves from t to there."""
        y, _ = self.sde.bridge(x, self.sde.x0(x, eps, t), t, s)
        return self.sde.eps(y, denoise(y, s).x0, s)


_LONGEST_FALL = 10.0  # of sigma / alpha in a Runge-Kutta move

_ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of eps over the coming move, the latest first, by how many there are."""
