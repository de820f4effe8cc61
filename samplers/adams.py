"""The default sampler: few evaluations, for every process, with defaults that need no tuning."""

from score_sde.samplers.multistep import Multistep
from score_sde.sde_lib import SDE, Gaussian
from score_sde.sde_lib.adams_pece import MOST_AMPLIFIED


class Adams(Multistep):
    """Adams method for the velocity of flow matching in units of the data, with two uses of each evaluation.

        u = y / (s + r),    du / dq = eps - x0 / s,    q = r / (s + r),    y = x / alpha, r = sigma / alpha

    This is the straight path of flow matching between noise and data of equal scale, for every process; along it the
    output of a network changes least. Each evaluation predicts the next step and corrects the one before.

    A grid of few steps uses low orders, because high orders extrapolate variation between distant values that does not
    exist. So does a step after much shorter ones, as at high noise: its order is the highest one within
    ``most_amplified``.

    Args:
        order: order of the predictor, 1 to 6; the method has order + 1. 0 chooses it by the number of steps.
        eta: noise relative to the reverse SDE, 0 or more: 0 follows the probability flow, 1 samples the reverse SDE.
        gaussian: moment-matched Gaussian of the data, whose standard deviation is s; default N(0, I).
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
"""Order by the smallest number of steps at which it pays, as measured by ``benchmarks/solvers.py``."""
