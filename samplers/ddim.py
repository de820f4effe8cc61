"""Steps along the bridge to the estimated data: DDIM and ancestral sampling."""

from torch import Tensor

from score_sde.samplers.loop import Step
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Denoise
from score_sde.sde_lib.process import Draw


class DDIM(Step):
    """DDIM step, from deterministic to ancestral sampling.

        x_s = alpha_s x0 + sqrt(sigma_s^2 - std^2) eps + std z,     std = eta sigma_s b / sigma_t

    eta = 0 follows the probability flow to first order and is exact for a single data point; eta = 1 is ``Ancestral``.

    Args:
        eta: fraction of the ancestral noise, 0 (deterministic) to 1 (ancestral).
    Raises: ValueError if eta is outside [0, 1].
    Reference: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021, eq. 12. arXiv:2010.02502
    """

    def __init__(self, sde: SDE, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta {eta}: need the fraction of the ancestral noise, 0 to 1")
        self.sde, self.eta = sde, eta

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        mean, std = self.sde.bridge(x, denoise(x, t).x0, t, s, self.eta)
        return mean + std * draw(x) if self.eta else mean


class Ancestral(Step):
    """Ancestral sampling: the Gaussian reverse kernel of the exact forward transition, for any step size.

        x_s = E[x_s | x_t, x0] + std z,     log std = (1 - v) log(sigma_s b / sigma_t) + v log b

    Args:
        v: interpolation weight of the log variance, 0 to 1. 0 is the variance of the posterior q(x_s | x_t, x_0)
            (NCSN, DDPM's beta-tilde), exact for a single data point; 1 is the variance of the forward transition
            (DDPM's beta), exact for N(0, I) data.
    Raises: ValueError if v is outside [0, 1].
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 3.2; Song et al., 2021,
        appendix F. Values of v between 0 and 1: Nichol, Dhariwal, 2021, eq. 15.
    """

    def __init__(self, sde: SDE, v: float = 0.0) -> None:
        if not 0 <= v <= 1:
            raise ValueError(f"v {v}: need 0 (posterior) to 1 (forward)")
        self.sde, self.v = sde, v

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        mean, std = self.sde.reverse(x, denoise(x, t).x0, t, s, self.v)
        return mean + std * draw(x)


class LearnedVariance(Step):
    """Ancestral sampling with the learned variance of the network.

        x_s = E[x_s | x_t, x0] + std z,     log std = (1 - v) log(sigma_s b / sigma_t) + v log b

    v is ``Prediction.v``, learned for steps between neighbouring levels of a discrete-time process; longer steps use it
    unchanged. Exact for any step size if the data are Gaussian and v is right.

    Raises: ValueError if the network has no learned variance.
    Reference: Nichol, Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, sections 3.1, 4.
        arXiv:2102.09672
    """

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        x0, v = denoise(x, t)
        if v is None:
            raise ValueError("this network has learned no variance: use --sampler ancestral, or train --config iddpm")
        mean, std = self.sde.reverse(x, x0, t, s, v)
        return mean + std * draw(x)
