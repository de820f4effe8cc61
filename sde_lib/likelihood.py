"""Log-density along the probability flow, by the instantaneous change of variables.

    log p(x) = log prior(x_T) + D log(alpha_T / alpha_0) + integral over l, from l_0 to l_T, of tr(d slope / dy)

Every term is returned by itself. The result is the density of the model at t_min, data with sigma(t_min) of noise;
densities are not probabilities and may exceed 1.

Reference: Song et al., 2021, eq. 39, appendix D.2; Chen et al., "Neural Ordinary Differential Equations", 2018, eq. 8.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sde_lib.denoiser import Denoiser
from sde_lib.flow import NonFiniteError, dormand_prince, slope
from sde_lib.process import SDE
from sde_lib.trace import traces


class LogProb(NamedTuple):
    """Log-density in nats and its terms, each (B,) unless said otherwise.

    nats: the sum, prior + divergence.
    prior: log prior of the end point.
    divergence: logarithm of the change of volume along the flow.
    estimates: (B, K) what each estimate of the trace alone gives for ``nats``; K = 1 for the exact trace.
    latent: the end point x_T, shaped as x.
    nfe: calls of the denoiser for the whole batch, each followed by one product with its Jacobian for every probe.
    """

    nats: Tensor
    prior: Tensor
    divergence: Tensor
    estimates: Tensor
    latent: Tensor
    nfe: int


def log_prob(
    sde: SDE,
    denoise: Denoiser,
    x: Tensor,
    probes: Tensor,
    t: float | None = None,
    solver: Callable = dormand_prince,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    prior_log_prob: Callable[[Tensor], Tensor] | None = None,
    **cond: Tensor,
) -> LogProb:
    """Log-density of x under the model at time t.

    The probes are held for the whole trajectory: a solver that adapts its step must not see new noise at each call,
    and the estimate is unbiased all the same.

    Args:
        probes: vectors v for the trace of a Jacobian J, (K, P, B, *): each of K estimates is sum_p v_p^T J v_p.
            ``exact_trace(x)``, or a value of ``PROBES`` of K normals.
        t: where the data are, default and least sde.t_min.
        solver: a value of ``sde_lib.flow.SOLVERS``.
        rtol, atol: the solver's tolerances, for x / alpha and for the log-density separately.
        prior_log_prob: law of x_T, default that of the SDE; with the true one only the solver's error is left.
    Shapes: x (B, *).
    Raises: ValueError for a t below sde.t_min, where no network was trained; NotConvergedError; NonFiniteError.
    """
    t = sde.t_min if t is None else t
    if not sde.t_min <= t < sde.t_max:
        raise ValueError(f"likelihood at t = {t}: the network was trained on [{sde.t_min}, {sde.t_max}]")
    first, last = sde.at(t), sde.at(sde.t_max)

    def rates(log_snr: Tensor, state: tuple[Tensor, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            y = state[0].detach().clone().requires_grad_()
            dy = slope(denoise, sde, y, log_snr, **{key: value[rows] for key, value in cond.items()})
            return dy.detach(), traces(dy, y, probes[:, :, rows])

    state = (x / first.alpha, x.new_zeros(len(x), len(probes)))
    (y, volume), nfe = solver(rates, state, first.log_snr, last.log_snr, rtol, atol)
    latent = last.alpha * y
    prior = (prior_log_prob or sde.prior_log_prob)(latent)
    volume = volume + x[0].numel() * math.log(last.alpha / first.alpha)
    divergence = volume.mean(1)
    nats = prior + divergence
    if not torch.isfinite(nats).all():
        bad = int((~torch.isfinite(nats)).nonzero()[0])
        raise NonFiniteError(f"the log-density of example {bad} is {nats[bad].item()}; check the network and the data")
    return LogProb(nats, prior, divergence, prior[:, None] + volume, latent, nfe)
