"""Multistep methods of the literature as settings of ``Multistep``: integrand, integration variable and order."""

from collections.abc import Callable

import numpy as np

from score_sde.samplers.integrands import Coordinates
from score_sde.samplers.multistep import Multistep
from score_sde.sde_lib import SDE

Slope = Callable[[Coordinates, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(coordinates, integral of pace, start, end) -> weight in u of a value that changes by one over the step."""


class DPMSolver(Multistep):
    """DPM-Solver, multistep: eps over log-SNR, the exponential Adams method.

    Order 3 is of third order, because of a factor of 2 in the second difference that the published code lacks.

    Args:
        order: number of values that a step interpolates, 1 to 6; published up to 3.
        eta: noise relative to the reverse SDE, 0 or more: 0 follows the probability flow, 1 is SDE-DPM-Solver.
    Reference: Lu et al., "DPM-Solver", 2022, section 3. arXiv:2206.00927
    """

    def __init__(self, sde: SDE, order: int = 3, eta: float = 0.0) -> None:
        super().__init__(sde, "noise", "log_ratio", order, eta=eta)


class DPMSolverPP(Multistep):
    """DPM-Solver++(2M): x0 over log-SNR, whose slope is weighted by half of the integral of pace.

    Args:
        eta: noise relative to the reverse SDE, 0 or more: 0 follows the probability flow, 1 samples the reverse SDE.
    Reference: Lu et al., "DPM-Solver++", 2022, algorithm 2. arXiv:2211.01095
    """

    def __init__(self, sde: SDE, eta: float = 0.0) -> None:
        super().__init__(sde, "data", "log_ratio", 2, eta=eta)

    def rule(self, nodes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return _with_slope(_by_mean, self.coordinates, nodes, start, end)


class DPMSolverPP3(Multistep):
    """DPM-Solver++(3M): x0 over log-SNR; of third order, because of a factor that the published code lacks.

    Args:
        eta: noise relative to the reverse SDE, 0 or more: 0 follows the probability flow, 1 samples the reverse SDE.
    Reference: Lu et al., 2022. arXiv:2211.01095
    """

    def __init__(self, sde: SDE, eta: float = 0.0) -> None:
        super().__init__(sde, "data", "log_ratio", 3, eta=eta)


class SDEDPMSolverPP(DPMSolverPP):
    """SDE-DPM-Solver++(2M): ``DPMSolverPP`` on the reverse SDE.

    Reference: Lu et al., 2022, section 5. arXiv:2211.01095
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde, eta=1.0)


class SDEDPMSolverPP3(DPMSolverPP3):
    """SDE-DPM-Solver++(3M): ``DPMSolverPP3`` on the reverse SDE.

    Reference: Lu et al., 2022, section 5. arXiv:2211.01095
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde, eta=1.0)


class SASolver(Multistep):
    """SA-Solver: x0 over log-SNR on an SDE of any noise level, with a corrector that uses the noise of its own step.

    Args:
        order: order of the predictor, 1 to 6.
        tau: noise relative to the reverse SDE, 0 or more; ``eta`` of ``Multistep``. 0 is UniPC without its variants.
    Reference: Xue et al., "SA-Solver", 2023, section 4, algorithm 1. arXiv:2309.05019
    """

    def __init__(self, sde: SDE, order: int = 2, tau: float = 1.0) -> None:
        super().__init__(sde, "data", "log_ratio", order, correct=True, eta=tau)


class DEIS(Multistep):
    """DEIS, tAB: eps over time, integrated exactly with the scale of the state as weight.

    Args:
        order: number of values that a step interpolates, 1 to 6; published up to 4.
    Reference: Zhang, Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023, section 3.3.
        arXiv:2204.13902
    """

    def __init__(self, sde: SDE, order: int = 3) -> None:
        super().__init__(sde, "noise", "time", order)


class IPNDM(Multistep):
    """iPNDM with the weights of unequal steps: eps over sigma / alpha, the Adams-Bashforth method; also called LMS.

    Args:
        order: number of values that a step interpolates, 1 to 6; published up to 4.
    References: Zhang, Chen, 2023, section 3.3, arXiv:2204.13902; the idea of Liu et al., 2022, arXiv:2202.09778.
    """

    def __init__(self, sde: SDE, order: int = 4) -> None:
        super().__init__(sde, "noise", "ratio", order)


class VelocityAdams(Multistep):
    """Adams-Bashforth for the velocity of flow matching, over its time r / (1 + r).

    Args:
        order: number of values that a step interpolates, 1 to 6.
    Reference: Lipman et al., "Flow Matching for Generative Modeling", 2023, section 4. arXiv:2210.02747
    """

    def __init__(self, sde: SDE, order: int = 4) -> None:
        super().__init__(sde, "velocity", "flow", order)


class UniPC(Multistep):
    """Unified predictor-corrector: exponential Adams method in x0 or eps over log-SNR, with a free corrector.

    The variants B1 and B2 of the paper's B(h) differ only in steps that interpolate two values, in the weight of the
    slope:

        bh2: half of the integral of pace,    bh1: half of (pace at the end) times the step

    Below 15 evaluations the order decreases towards the last denoising, of order 1; with more evaluations this would
    limit the order of the method.

    Args:
        integrand: quantity that the polynomials interpolate, data or noise.
        order: order of the predictor, 1 to 4; the method has order + 1.
        variant: weight of the slope, bh1 or bh2.
    Raises: ValueError for another integrand, order or variant.
    Reference: Zhao et al., "UniPC", 2023, section 3, algorithms 1, 2. arXiv:2302.04867
    """

    def __init__(self, sde: SDE, integrand: str = "data", order: int = 3, variant: str = "bh2") -> None:
        if integrand not in ("data", "noise"):
            raise ValueError(f"integrand {integrand!r}: UniPC takes data or noise")
        if not 1 <= order <= 4:
            raise ValueError(f"order {order}: UniPC has orders 1 to 4")
        if variant not in ("bh1", "bh2"):
            raise ValueError(f"variant {variant!r}: need bh1 or bh2")
        super().__init__(sde, integrand, "log_ratio", order, correct=True)
        self.slope = {"bh1": _by_end, "bh2": _by_mean}[variant]

    def orders(self, num_moves: int) -> np.ndarray:
        orders = super().orders(num_moves)
        return np.minimum(orders, num_moves + 1 - np.arange(num_moves)) if num_moves < _FEW else orders

    def rule(self, nodes: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return _with_slope(self.slope, self.coordinates, nodes, start, end)


def _with_slope(
    slope: Slope, coordinates: Coordinates, nodes: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Exact integrals, except for two nodes, where ``slope`` gives the weight of the slope."""
    if nodes.shape[1] != 2:
        return coordinates.integrals(nodes, start, end)
    mean = coordinates.integrals(start[:, None], start, end)[:, 0]
    variable, first, last = map(coordinates.integration_variable, (nodes, start, end))
    by = slope(coordinates, mean, start, end) * (last - first) / (variable[:, 0] - variable[:, 1])
    found = np.stack([by, -by], 1)
    found[np.arange(len(nodes)), np.argmax(nodes == start[:, None], 1)] += mean
    return found


def _by_mean(coordinates: Coordinates, mean: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return 0.5 * mean


def _by_end(coordinates: Coordinates, mean: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    weight: np.ndarray = 0.5 * coordinates.pace(end) * np.log(end / start)
    return weight


_FEW = 14
