"""Editing examples by what noise makes of them: brought back to data as they are, or mixed with others on a path.

A path is asked at weights from 0, the first example, to 1, the second; it answers for all of them in one batch.
"""

import math

import torch
from torch import Tensor

from score_sde.samplers.loop import Constraint, Step, checked, sample
from score_sde.samplers.ode import ODE
from score_sde.sde_lib import SDE
from score_sde.sde_lib.denoiser import Estimate
from score_sde.sde_lib.process import Draw


def depth_time(sde: SDE, share: float, std: float) -> float:
    """The time at which noise makes up this share of the variance of the state: one measure of depth for all SDEs.

        sigma^2 / (alpha^2 std^2 + sigma^2) = share

    Args:
        share: of the noise, in (0, 1).
        std: standard deviation of the data.
    Raises: ValueError for a share that the SDE does not reach.
    """
    low, high = (_share(sde.marginal(t).log_snr, std) for t in (sde.t_min, sde.t_max))
    if not low < share <= high:
        raise ValueError(f"depth {share}: need a share of noise above {low:.2g} and at most {high:.6g} for this SDE")
    log_snr = math.log(1 / share - 1) - 2 * math.log(std)
    return sde.time(torch.tensor(log_snr, dtype=torch.float64)).item()


def slerp(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Spherical interpolation: directions turn evenly from the first to the second, norms change linearly.

        sin((1 - w) theta) / sin(theta) a + sin(w theta) / sin(theta) b,    cos(theta) = a^T b,    |a| = |b| = 1,

    times (1 - w) |first| + w |second|. Normals of many dimensions lie near a sphere, which a straight line leaves:
    halfway between two of them it has shrunk to sqrt(1/2). It is written with the part of b across a, so that two
    equal states stay what they are.

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
    """Noise an example to the first of the times, and denoise it again: what is smaller than the noise is made anew.

        x_t = alpha x + sigma eps,    then the reverse process from t on

    A stroke painting comes back as a picture. The more noise, the more like data and the less like x; from t_max it is
    a sample, and as t falls to the data it is x.

    Args:
        times: grid from the depth of the noise, as ``depth_time`` has it, to the data.
        draw: eps, then the noise of the step.
        constrain: what is to stay as it is, as ``sample``.
    Shapes: x (B, *); returns (B, *).
    Reference: Meng et al., "SDEdit", 2022, algorithm 1. arXiv:2108.01073
    """
    times = checked(step.sde, times)
    return sample(step, denoise, step.sde.perturb(x, draw(x), times[0].item()), times, draw, constrain)


def translate(flow: ODE, denoise: Estimate, other_flow: ODE, other_denoise: Estimate, x: Tensor) -> Tensor:
    """What the latents of examples of one model are to another: encoded by one flow, decoded by the other.

    Latents are in units of each prior, so the two may be of unlike SDEs. To the same model it is the identity, and the
    way back undoes it, to the solvers' tolerances. Between Gaussians that commute it is the optimal transport.

    Shapes: x (B, *) data of the first model; returns (B, *), of the second.
    Reference: Su, Song, Meng, Ermon, "Dual Diffusion Implicit Bridges for Image-to-Image Translation", 2023, algorithm
        1. arXiv:2203.08382
    """
    return other_flow.decode(other_denoise, flow.encode(denoise, x))


def stochastic_path(
    step: Step, denoise: Estimate, first: Tensor, second: Tensor, weights: Tensor, times: Tensor, draw: Draw
) -> Tensor:
    """Encode both examples by q(x_t | x_0), mix linearly, decode by the reverse process.

        x_t = (1 - w) (alpha x + sigma eps) + w (alpha y + sigma eps) = alpha ((1 - w) x + w y) + sigma eps

    One noise for both encodings keeps the deviation of the mixture at sigma for every weight. Two noises of their own
    would leave sigma sqrt((1 - w)^2 + w^2), 0.7 sigma halfway, less than the reverse process takes out.

    Args:
        times: grid from the depth of the encodings to the data.
        draw: eps, then the noise of the step; alike for all weights where these alone are to make a difference.
    Shapes: first, second (1, *); weights (B, 1, ..., 1); returns (B, *).
    Reference: Ho, Jain, Abbeel, "Denoising Diffusion Probabilistic Models", 2020, section 4.3. arXiv:2006.11239
    """
    return sdedit(step, denoise, torch.lerp(first, second, weights), times, draw)


def flow_path(flow: ODE, denoise: Estimate, first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Encode both examples by the probability flow, mix spherically, decode by the flow.

    The flow runs both ways, so weights 0 and 1 give the examples back to the solver's tolerance.

    Shapes: first, second (1, *); weights (B, 1, ..., 1); returns (B, *).
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 4.3, app. D. arXiv:2011.13456
    """
    start, end = flow.encode(denoise, torch.cat([first, second])).split(1)
    return flow.decode(denoise, slerp(start, end, weights))


def _share(log_snr: float, std: float) -> float:
    return 1 / (1 + math.exp(log_snr) * std**2)


def _polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Direction and norm of each example; a zero has no direction and gives zero."""
    norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return x / torch.where(norm > 0, norm, 1), norm
