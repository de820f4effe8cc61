"""Sampling with a network that knows the end of the trajectory."""

from torch import Tensor

from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw


class ConsistencyStep(Step):
    """Go to the data and noise them afresh.

        x_s = alpha_s x0 + sigma_s z

    Where x0 is the end of the probability flow through (x, t), what a consistency model estimates, the marginals are
    exact for any number of steps; one that is E[x_0 | x] loses the variance that is left. With the grid ``edm`` and
    1 to 4 steps this costs as many evaluations.

    Reference: Song, Dhariwal, Chen, Sutskever, "Consistency Models", 2023, algorithm 1. arXiv:2303.01469
    """

    ends = True

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.sde.perturb(denoise(x, t).x0, draw(x), s)
