"""Deterministic solvers that look once more inside each step."""

from torch import Tensor

from samplers.loop import Draw, Step
from sde_lib import SDE
from sde_lib.denoiser import Denoiser
from sde_lib.flow import trapezoidal


class Heun(Step):
    """Heun's second-order move: the mean of the noise at the start and at the end of an Euler move.

        y = bridge(x, x0(x, t)),    x_s = bridge(x, x0 + (r_t / r_s) (x0(y, s) - x0) / 2),    r = sigma / alpha

    The trapezoidal rule in r, told as what it does to the prediction; for the EDM process it is Karras's solver. Two
    evaluations.

    Reference: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithm 1.
    """

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoiser, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        x0 = trapezoidal(denoise, self.sde, x, denoise(x, t).x0, t, s)
        return self.sde.bridge(x, x0, t, s)[0]
