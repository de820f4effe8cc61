"""Log-density along the probability flow, by the instantaneous change of variables.

    log p(x_t) = log prior(x_T) + log |det dx_T / du_T| - log |det dx_t / du_t| + integral of div(du/dtheta) dtheta

from t to T, in the coordinates of ``sde_lib.flow``. Every term is returned. The result is the density of the model at
time t, of data with noise of standard deviation sigma(t). Densities are not probabilities and may exceed 1.

Reference: Song et al., 2021, eq. 39, appendix D.2; Chen et al., "Neural Ordinary Differential Equations", 2018, eq. 8.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from score_sde.sde_lib.denoiser import Estimate
from score_sde.sde_lib.flow import Coefficients, Flow
from score_sde.sde_lib.gaussian import Gaussian
from score_sde.sde_lib.process import SDE, Time
from score_sde.sde_lib.runge_kutta import DormandPrince
from score_sde.sde_lib.trace import Exact, Hutchinson, traces
from score_sde.sde_lib.velocity import Indices, NonFiniteError, Solver


class LogProb(NamedTuple):
    """Log-density in nats and its terms, each (B,) unless noted.

    nats: log-density, prior + divergence.
    prior: log prior density of the end point.
    divergence: log change of volume along the flow.
    estimates: (B, K), ``nats`` from each estimate of the trace alone; K = 1 for the exact trace.
    variance: variance of ``nats`` over the probes, estimated from the K estimates; 0 for the exact trace, NaN for K =
    1. x: state at the time t of the data. latent: end point x_T, shaped as x. calls: evaluations of the denoiser.
    traced: evaluations with a trace, each with one Jacobian product per probe.
    """

    nats: Tensor
    prior: Tensor
    divergence: Tensor
    estimates: Tensor
    variance: Tensor
    x: Tensor
    latent: Tensor
    calls: Tensor
    traced: Tensor


class TracedFlow(Flow):
    """The flow with estimates of its divergence.

    Args:
        vectors: returns the probes of an evaluation.
    """

    def __init__(self, flow: Flow, vectors: Callable[[Indices], Tensor]) -> None:
        super().__init__(flow.sde, flow.denoise, flow.gaussian, **flow.cond)
        self.vectors = vectors

    def coefficients(self, angle: Time, like: Tensor) -> Coefficients:
        with torch.inference_mode(False):  # autograd cannot save inference tensors
            return super().coefficients(angle, like)

    def move(
        self, coefficients: Coefficients, u: Tensor, indices: Indices = slice(None), traced: bool = True
    ) -> tuple[Tensor, Tensor]:
        if not traced:
            return super().move(coefficients, u, indices)
        with torch.inference_mode(False), torch.enable_grad():
            y = self.position(u.detach().clone(), coefficients).requires_grad_()
            residual = self.residual(y, coefficients, indices)
            velocity = self.velocity(residual.detach(), coefficients, indices)
            return velocity, traces(residual, y, self.vectors(indices))


def standard_prior(sde: SDE, gaussian: Gaussian, x: Tensor) -> Tensor:
    """Log-density of x_T under N(0, prior_std^2), the prior of samples; nats, (B,)."""
    return sde.prior_log_prob(x)


def matched_prior(sde: SDE, gaussian: Gaussian, x: Tensor) -> Tensor:
    """Log-density of x_T under the marginal of the moment-matched Gaussian of the data at t_max; nats, (B,).

    N(alpha mean, alpha^2 C + sigma^2) is closer to q(x_T) than the standard prior, and as easy to sample.
    """
    marginal, gaussian = sde.marginal(sde.t_max), gaussian.like(x)
    u = gaussian.whiten(x / marginal.alpha, marginal.ratio).flatten(1)
    constant = u.shape[1] * math.log(math.sqrt(2 * math.pi) * marginal.alpha) + gaussian.log_volume(marginal.ratio)
    return -0.5 * u.square().sum(1) - constant


PRIORS: dict[str, Callable[[SDE, Gaussian, Tensor], Tensor]] = {"standard": standard_prior, "matched": matched_prior}
"""(sde, gaussian, x_T) -> log-density."""


def log_prob(
    sde: SDE,
    denoise: Estimate,
    x: Tensor,
    gaussian: Gaussian | None = None,
    trace: Exact | Hutchinson | None = None,
    t: float | None = None,
    solver: Solver | None = None,
    prior_log_prob: Callable[[Tensor], Tensor] | None = None,
    **cond: Tensor,
) -> LogProb:
    """Log-density of x under the model at time t.

    Args:
        gaussian: moment-matched Gaussian of the data, default N(0, I). A closer match saves evaluations; the result
            does not depend on it.
        trace: estimator of the trace, default exact.
        t: time of the data, at least sde.t_min, the default.
        solver: a value of ``SOLVERS``, default ``DormandPrince()``.
        prior_log_prob: log-density of x_T, default the SDE's prior; with the true one only the solver's error remains.
    Shapes: x (B, *).
    Raises: ValueError for a t below sde.t_min, the earliest time of training, and for ``fresh`` probes with an adaptive
        solver; NotConvergedError; NonFiniteError.
    """
    t = sde.t_min if t is None else t
    check_time(sde, t)
    return _along(sde, denoise, x, (t, sde.t_max), gaussian, trace, solver, prior_log_prob, cond)


def sample_log_prob(
    sde: SDE,
    denoise: Estimate,
    latent: Tensor,
    gaussian: Gaussian | None = None,
    trace: Exact | Hutchinson | None = None,
    t: float | None = None,
    solver: Solver | None = None,
    prior_log_prob: Callable[[Tensor], Tensor] | None = None,
    **cond: Tensor,
) -> LogProb:
    """Data at time t at the end of the flow from a latent x_T (B, *), and their log-density, from one solve.

    Inverse of ``log_prob``, which returns the same terms for these data.

    Args, Raises: as ``log_prob``.
    """
    t = sde.t_min if t is None else t
    check_time(sde, t)
    return _along(sde, denoise, latent, (sde.t_max, t), gaussian, trace, solver, prior_log_prob, cond)


def check_time(sde: SDE, t: float) -> None:
    """Raises: ValueError for a time of the data below t_min, the earliest time of training, or at t_max or above."""
    if not sde.t_min <= t < sde.t_max:
        raise ValueError(f"likelihood at t = {t}: the network was trained on [{sde.t_min}, {sde.t_max}]")


@torch.no_grad()
def _along(
    sde: SDE,
    denoise: Estimate,
    state: Tensor,
    times: tuple[float, float],
    gaussian: Gaussian | None,
    trace: Exact | Hutchinson | None,
    solver: Solver | None,
    prior_log_prob: Callable[[Tensor], Tensor] | None,
    cond: dict[str, Tensor],
) -> LogProb:
    """Log-density at the earlier of two times, by the flow from a state at the first time to the second."""
    (start, end), t = times, min(times)
    solver, trace = solver or DormandPrince(), trace or Exact()
    if solver.adaptive and trace.fresh:
        raise ValueError("a solver with adaptive steps needs the same probes in all evaluations: set fresh=False")
    with torch.inference_mode(False):
        gaussian = (gaussian or Gaussian.standard(state)).like(state)
        cond = {key: value.clone() for key, value in cond.items()}
    flow = Flow(sde, denoise, gaussian, **cond)
    velocity = TracedFlow(flow, trace.start(state))
    solution = solver(velocity, flow.enter(state, start), flow.angle(start), flow.angle(end))
    ends = {start: state, end: flow.leave(solution.u, end)}
    prior = (prior_log_prob or sde.prior_log_prob)(ends[sde.t_max])
    growth = solution.integrals if start < end else -solution.integrals
    volumes = growth + (flow.log_volume(sde.t_max) - flow.log_volume(t))
    divergence, variance = volumes.mean(1), trace.variance(volumes, state.shape[1:].numel())
    nats = prior + divergence
    if not torch.isfinite(nats).all():
        bad = int((~torch.isfinite(nats)).nonzero()[0])
        raise NonFiniteError(f"the log-density is {nats[bad].item()}; check the network and the data", bad)
    return LogProb(
        nats=nats,
        prior=prior,
        divergence=divergence,
        estimates=prior[:, None] + volumes,
        variance=variance,
        x=ends[t],
        latent=ends[sde.t_max],
        calls=solution.calls,
        traced=solution.traced,
    )
