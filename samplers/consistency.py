"""Sampling with a consistency model."""

from torch import Tensor

from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw


class ConsistencyStep(Step):
    """Multistep consistency sampling: estimates the data and adds noise of level s.

        x_s = alpha_s x0 + sigma_s z

    If x0 is the end of the probability flow through (x, t), as a consistency model estimates it, the marginals are
    exact for any number of steps. If x0 is E[x_0 | x], the samples lack the remaining variance. With the grid ``edm``,
    1 to 4 steps cost as many evaluations.

    Reference: Song, Dhariwal, Chen, Sutskever, "Consistency Models", 2023, algorithm 1. arXiv:2303.01469
    """

    ends = True

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.sde.perturb(denoise(x, t).x0, draw(x), s)
