"""Image-to-image and interpolation: examples are noised or encoded, optionally mixed, and brought back to data.

The paths between two examples take weights from 0, the first, to 1, the second, and return one batch.
"""

import math

import torch
from torch import Tensor

from score_sde.samplers.loop import Constraint, Step, checked, sample
from score_sde.samplers.ode import ODE
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Estimate
from score_sde.sde_lib.process import Draw


def depth_time(sde: SDE, fraction: float, std: float) -> float:
    """Time at which noise is a given fraction of the variance of the state, a measure of depth for all SDEs.

        sigma^2 / (alpha^2 std^2 + sigma^2) = fraction

    Args:
        fraction: of noise, in (0, 1).
        std: standard deviation of the data.
    Raises: ValueError for a fraction that the SDE does not reach.
    """
    low, high = (_fraction(sde.marginal(t).log_snr, std) for t in (sde.t_min, sde.t_max))
    if not low < fraction <= high:
        raise ValueError(f"depth {fraction}: need a fraction above {low:.2g} and at most {high:.6g} for this SDE")
    log_snr = math.log(1 / fraction - 1) - 2 * math.log(std)
    return sde.time(torch.tensor(log_snr, dtype=torch.float64)).item()


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation: the direction turns at constant speed, the norm changes linearly.

        sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b,    cos(theta) = a^T b,    |a| = |b| = 1,

    times (1 - w) |first| + w |second|. High-dimensional normals lie near a sphere, and their linear interpolation
    leaves
    it: halfway its norm is smaller by sqrt(1/2). The computation uses the part of b orthogonal to a, so that two equal
    states are returned unchanged.

    Shapes: first, second (B, *) or (1, *); weights (B, 1, ..., 1), 0 to 1; returns (B, *).
    Reference: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", 2021, section 5.3, app. D.5. arXiv:2010.02502
    """
    (a, start), (b, end) = _polar(first), _polar(second)
    cos = (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)
    across, sin = _polar(b - cos * a)
    angle = weights * torch.atan2(sin, cos)
    return torch.lerp(start, end, weights) * (torch.cos(angle) * a + torch.sin(angle) * across)


def sdedit(
    step: Step, denoise: Estimate, x: Tensor, times: Tensor, draw: Draw, constrain: Constraint | None = None
) -> Tensor:
    """SDEdit: adds noise to an example up to the first of the times and denoises it, which replaces all finer detail.

        x_t = alpha x + sigma eps,    then the reverse process from t on

    Turns a stroke painting into a picture. More noise gives results closer to data and farther from x: a sample from
    t_max, and x itself as t approaches the time of the data.

    Args:
        times: grid from the depth of the noise, see ``depth_time``, to the data.
        draw: source of eps, then of the noise of the step.
        constrain: keeps a part fixed, as in ``sample``.
    Shapes: x (B, *); returns (B, *).
    Reference: Meng et al., "SDEdit", 2022, algorithm 1. arXiv:2108.01073
    """
    times = checked(step.sde, times)
    return sample(step, denoise, step.sde.perturb(x, draw(x), times[0].item()), times, draw, constrain)


def translate(flow: ODE, denoise: Estimate, other_flow: ODE, other_denoise: Estimate, x: Tensor) -> Tensor:
    """Dual diffusion implicit bridge: examples encoded by the flow of one model and decoded by the flow of another.

    Latents are in units of each prior, so the two models may have different SDEs. With the same model it is the
    identity, and the reverse translation inverts it, to the solvers' tolerances. Between Gaussians with commuting
    covariances it is the optimal transport.

    Shapes: x (B, *) data of the first model; returns (B, *), data of the second.
    Reference: Su, Song, Meng, Ermon, "Dual Diffusion Implicit Bridges for Image-to-Image Translation", 2023, algorithm
        1. arXiv:2203.08382
    """
    return other_flow.decode(other_denoise, flow.encode(denoise, x))


def stochastic_path(
    step: Step, denoise: Estimate, first: Tensor, second: Tensor, weights: Tensor, times: Tensor, draw: Draw
) -> Tensor:
    """Interpolation by noise: both examples encoded by q(x_t | x_0), mixed linearly, decoded by the reverse process.

        x_t = (1 - w) (alpha x + sigma eps) + w (alpha y + sigma eps) = alpha ((1 - w) x + w y) + sigma eps

    Both encodings use the same noise, so the mixture has the standard deviation sigma for every weight. Independent
    noises would give sigma sqrt((1 - w)^2 + w^2), 0.7 sigma halfway, less than the reverse process removes.

    Args:
        times: grid from the depth of the encodings to the data.
        draw: source of eps, then of the noise of the step; the same for all weights if only the weights should matter.
    Shapes: first, second (1, *); weights (B, 1, ..., 1); returns (B, *).
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 4.3. arXiv:2006.11239
    """
    return sdedit(step, denoise, torch.lerp(first, second, weights), times, draw)


def flow_path(flow: ODE, denoise: Estimate, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Interpolation by the probability flow: both examples encoded, mixed spherically, decoded.

    The flow runs both ways, so weights 0 and 1 return the examples to the solver's tolerance.

    Shapes: first, second (1, *); weights (B, 1, ..., 1); returns (B, *).
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 4.3, app. D. arXiv:2011.13456
    """
    start, end = flow.encode(denoise, torch.cat([first, second])).split(1)
    return flow.decode(denoise, slerp(start, end, weights))


def _fraction(log_snr: float, std: float) -> float:
    return 1 / (1 + math.exp(log_snr) * std**2)


def _polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Direction and norm of each example; zero for the direction of a zero."""
    norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return x / torch.where(norm > 0, norm, 1), norm
