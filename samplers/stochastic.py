"""Discretisations of the reverse-time SDE, dx = (f x - g^2 score) dt + g dw."""

from torch import Tensor

from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw


class EulerMaruyama(Step):
    """Euler-Maruyama step, with h = t - s.

        x_s = x - h (f x - g^2 score) + g sqrt(h) z

    Unstable where h g^2 > 2 sigma^2: on VE and NCSN, in steps that reduce sigma by more than a factor of e.

    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 4.1. arXiv:2011.13456
    """

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        score = self.sde.score(x, denoise(x, t).x0, t)
        h, g = t - s, self.sde.diffusion(t)
        root: float = h**0.5
        return (1 - h * self.sde.drift(t)) * x + h * g**2 * score + root * g * draw(x)


class ReverseDiffusion(Step):
    """Reverse diffusion sampler: discretises the reverse SDE in the same way as the forward one, x_t = a x_s + b z.

        x_s = (2 - a) x + b^2 score + b z

    Reference: Song et al., 2021, eq. 46, appendix E. arXiv:2011.13456
    """

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        a, b = self.sde.transition(s, t)
        score = self.sde.score(x, denoise(x, t).x0, t)
        return (2 - a) * x + b**2 * score + b * draw(x)


class Stay(Step):
    """Predictor that returns the state unchanged, for samplers with a corrector alone."""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return x
