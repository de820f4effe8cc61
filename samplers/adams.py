"""The solver of this library: few evaluations, every process, nothing to choose."""

from score_sde.samplers.multistep import Multistep
from score_sde.sde_lib import SDE, Gaussian
from score_sde.sde_lib.adams_pece import MOST_AMPLIFIED


class Adams(Multistep):
    """Adams' method for the velocity in units of the data, over a bounded time, each evaluation used twice.

        u = y / (s + r),    du / dq = eps - x0 / s,    q = r / (s + r),    y = x / alpha, r = sigma / alpha

    The straight path of flow matching between data and noise of equal size, for every process; on it what a network
    says changes least. Few moves take low orders: high ones see what is not there between distant values. So do moves
    after much shorter ones, as at much noise: their order is the highest within ``most_amplified``.

    Args:
        order: order of the predictor, 1 to 6; the method has order + 1. 0 chooses it by the number of moves.
        eta: noise relative to the reverse SDE, 0 or more: 0 follows the probability flow, 1 samples the reverse SDE.
        gaussian: moment-matched Gaussian of the data, whose standard deviation s is taken; default N(0, I).
    Reference: docs/solvers.md; Zhao et al., "UniPC", 2023, for the second use of an evaluation. arXiv:2302.04867
    """

    grid, num_steps = "logistic", 14
    most_amplified = MOST_AMPLIFIED

    def __init__(self, sde: SDE, order: int = 0, eta: float = 0.0, gaussian: Gaussian | None = None) -> None:
        super().__init__(sde, "velocity", "flow", order or max(ORDERS.values()), True, eta, gaussian)
        self.fixed = order

    def reset(self, times: list[float]) -> None:
        self.order = self.fixed or max(order for least, order in ORDERS.items() if len(times) > least)
        super().reset(times)


ORDERS = {0: 2, 12: 3, 24: 4}
"""Number of moves from which on an order is worth it, as ``benchmarks/solvers.py`` has measured."""
