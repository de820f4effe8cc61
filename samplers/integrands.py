"""Coordinates for solvers of the probability flow: scaled state, integrand and integration variable.

With y = x / alpha and r = sigma / alpha the flow of every SDE is dy / dlog r = y - x0. An integrand scales the state,
u = (y - mean) / scale, which leaves

    du / dlog r = pace value,    value = b ((x0 - mean) - (1 - g) (y - mean)),    g = dlog scale / dlog r

A solver interpolates the values by a polynomial in an integration variable and integrates pace times polynomial
exactly. A multistep method of the literature is thus an integrand, an integration variable and an order.

With noise, eta > 0, the reverse SDE dy / dlog r = (1 + eta^2) (y - x0) + sqrt(2) eta r dw has the same marginals; its
scale is raised to the power 1 + eta^2, and its values are the same.

References: Zhang, Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023, arXiv:2204.13902; Lu et
al., "DPM-Solver++", 2022, arXiv:2211.01095; Xue et al., "SA-Solver", 2023, arXiv:2309.05019 (tau is our eta).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from score_sde.sde_lib import SDE

Function = Callable[[np.ndarray, float], np.ndarray]
"""(r, std) -> number, where std is the standard deviation of the data."""


class Integrand(NamedTuple):
    """Scale of the state and weight of the values, functions of r = sigma / alpha and the data's standard deviation.

    scale: scale of the state, without noise.
    growth: g = dlog scale / dlog r.
    weight: b, the weight of x0 in the value.
    """

    scale: Function
    growth: Function
    weight: Function


INTEGRANDS: dict[str, Integrand] = {
    "data": Integrand(lambda r, s: r, lambda r, s: np.ones_like(r), lambda r, s: np.ones_like(r)),
    "noise": Integrand(lambda r, s: np.ones_like(r), lambda r, s: np.zeros_like(r), lambda r, s: -1 / r),
    "velocity": Integrand(lambda r, s: s + r, lambda r, s: r / (s + r), lambda r, s: -(s + r) / (s * r)),
    "residual": Integrand(
        lambda r, s: np.hypot(r, s), lambda r, s: r**2 / (r**2 + s**2), lambda r, s: np.hypot(r, s) / (r * s)
    ),
}
"""Integrands by the value that is interpolated.

data: x0.
noise: eps.
velocity: eps - x0 / s, the velocity of flow matching to data of unit variance.
residual: x0 minus its mean under the Gaussian N(mean, s^2 I), in units of its standard deviation; the output of a
    preconditioned network, 0 for data with this distribution.
"""

INTEGRATION_VARIABLES: dict[str, Callable[[np.ndarray, float, SDE], np.ndarray]] = {
    "log_ratio": lambda r, s, sde: np.log(r),
    "ratio": lambda r, s, sde: r,
    "flow": lambda r, s, sde: r / (s + r),
    "angle": lambda r, s, sde: np.arctan(r / s),
    "time": lambda r, s, sde: sde.time_of_ratio(torch.from_numpy(r)).numpy(),
}
"""Functions (r, std, sde) -> variable of the polynomials, by name."""


class Coordinates:
    """An integrand and an integration variable for one process and one data distribution; computes all integrals.

    Args:
        integrand: a key of ``INTEGRANDS``.
        integration_variable: a key of ``INTEGRATION_VARIABLES``.
        std: standard deviation s of the data.
        eta: noise relative to the reverse SDE: 0 follows the flow, 1 the reverse SDE.
    Raises: ValueError for an unknown name.
    """

    def __init__(self, sde: SDE, integrand: str, integration_variable: str, std: float = 1.0, eta: float = 0.0) -> None:
        if integrand not in INTEGRANDS:
            raise ValueError(f"unknown integrand {integrand!r}; known: {', '.join(INTEGRANDS)}")
        if integration_variable not in INTEGRATION_VARIABLES:
            raise ValueError(
                f"unknown integration variable {integration_variable!r}; known: {', '.join(INTEGRATION_VARIABLES)}"
            )
        self.sde, self.integrand, self.std, self.power, self.eta = sde, INTEGRANDS[integrand], std, 1 + eta**2, eta
        self._variable = INTEGRATION_VARIABLES[integration_variable]

    def integration_variable(self, ratio: np.ndarray) -> np.ndarray:
        """Variable of the polynomials at r = sigma / alpha."""
        return self._variable(ratio, self.std, self.sde)

    def scale(self, ratio: np.ndarray) -> np.ndarray:
        """Divisor of the state."""
        return self.integrand.scale(ratio, self.std) ** self.power

    def weights(self, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (a, b) of value = a (y - mean) + b (x0 - mean)."""
        b = self.integrand.weight(ratio, self.std)
        return b * (self.integrand.growth(ratio, self.std) - 1), b

    def pace(self, ratio: np.ndarray) -> np.ndarray:
        """Ratio of du / dlog r to the value."""
        return -self.power / (self.scale(ratio) * self.integrand.weight(ratio, self.std))

    def integrals(self, nodes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Weights of the values at the nodes in u(end) - u(start), for values on the polynomial through the nodes.

        Shapes: nodes (N, k) of r, start, end (N,); returns (N, k).
        """
        points, widths = _between(start, end)
        v, at = self.integration_variable(nodes), self.integration_variable(points)
        others, gaps = ~np.eye(nodes.shape[1], dtype=bool), v[:, :, None] - v[:, None, :]
        gaps = np.where(gaps == 0, 1.0, gaps)  # one node, or two nodes that are equal to rounding
        factors = np.where(others, (at[:, :, None, None] - v[:, None, None, :]) / gaps[:, None], 1.0)
        integrals: np.ndarray = np.einsum("nq,nqk->nk", widths * self.pace(points), factors.prod(-1))
        return integrals

    def noise(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Standard deviation of the noise in y that a step from start to end adds; (N,) and so returned."""
        points, widths = _between(start, end)
        kept = self.scale(end)[:, None] / self.scale(points)
        std: np.ndarray = self.eta * np.sqrt(np.maximum(-2 * (widths * (points * kept) ** 2).sum(1), 0.0))
        return std


_POINTS, _WIDTHS = np.polynomial.legendre.leggauss(20)


def _between(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes of r between the ends, and their weights in log r; (N, 20)."""
    first, last = np.log(start)[:, None], np.log(end)[:, None]
    half = 0.5 * (last - first)
    return np.exp(first + half * (1 + _POINTS)), half * _WIDTHS
