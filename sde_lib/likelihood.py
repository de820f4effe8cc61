"""Log-density along the probability flow, by the instantaneous change of variables.

    log p(x_t) = log prior(x_T) + log |det dx_T / du_T| - log |det dx_t / du_t| + integral of div(du/dtheta) dtheta

from t to T, in the coordinates of ``sde_lib.flow``. Every term is returned by itself. The result is the density of the
model at time t, data with sigma(t) of noise; densities are not probabilities and may exceed 1.

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
    """Log-density in nats and its terms, each (B,) unless said otherwise.

    nats: the sum, prior + divergence.
    prior: log prior of the end point.
    divergence: logarithm of the change of volume along the flow.
    estimates: (B, K) what each estimate of the trace alone gives for ``nats``; K = 1 for the exact trace.
    variance: of ``nats`` over the probes, estimated from those K; 0 for the exact trace, NaN for a single probe.
    x: the data, at the time that they are measured at.
    latent: the end point x_T, shaped as x.
    calls: evaluations of the denoiser.
    traced: those of them with a trace, each a product with the Jacobian for every probe.
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
        vectors: the probes of an evaluation.
    """

    def __init__(self, flow: Flow, vectors: Callable[[Indices], Tensor]) -> None:
        super().__init__(flow.sde, flow.denoise, flow.gaussian, **flow.cond)
        self.vectors = vectors

    def coefficients(self, angle: Time, like: Tensor) -> Coefficients:
        with torch.inference_mode(False):  # autograd keeps no tensors that were made under it
            return super().coefficients(angle, like)

    def move(
        self, place: Coefficients, u: Tensor, indices: Indices = slice(None), traced: bool = True
    ) -> tuple[Tensor, Tensor]:
        if not traced:
            return super().move(place, u, indices)
        with torch.inference_mode(False), torch.enable_grad():
            y = self.position(u.detach().clone(), place).requires_grad_()
            residual = self.residual(y, place, indices)
            velocity = self.velocity(residual.detach(), place, indices)
            return velocity, traces(residual, y, self.vectors(indices))


def standard_prior(sde: SDE, gaussian: Gaussian, x: Tensor) -> Tensor:
    """Log-density of x_T under N(0, prior_std^2), from which samples are drawn; nats, (B,)."""
    return sde.prior_log_prob(x)


def matched_prior(sde: SDE, gaussian: Gaussian, x: Tensor) -> Tensor:
    """Log-density of x_T under the marginal that the moment-matched Gaussian of the data has there; nats, (B,).

    N(alpha mean, alpha^2 C + sigma^2) at t_max: nearer to the truth than the standard one, and as easy to draw from.
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
        gaussian: moment-matched Gaussian of the data, default N(0, I); a better one saves evaluations, none changes the
        result.
        trace: of the Jacobian, default exact.
        t: where the data are, default and least sde.t_min.
        solver: a value of ``SOLVERS``, default ``DormandPrince()``.
        prior_log_prob: law of x_T, default that of the SDE; with the true one only the solver's error is left.
    Shapes: x (B, *).
    Raises: ValueError for a t below sde.t_min, where no network was trained, and for probes that an adaptive solver
        would see change; NotConvergedError; NonFiniteError.
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
    """The data at time t that the flow brings a latent x_T (B, *) to, and their log-density, from one solve.

    The inverse of ``log_prob``: that of what comes out gives the same terms.

    Args, Raises: as ``log_prob``.
    """
    t = sde.t_min if t is None else t
    check_time(sde, t)
    return _along(sde, denoise, latent, (sde.t_max, t), gaussian, trace, solver, prior_log_prob, cond)


def check_time(sde: SDE, t: float) -> None:
    """Raises: ValueError for a time of the data that no network was trained at, or that leaves no way to go."""
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
    """The density of the earlier end of the way from a state at the first of the times to the other."""
    (start, end), t = times, min(times)
    solver, trace = solver or DormandPrince(), trace or Exact()
    if solver.adaptive and trace.fresh:
        raise ValueError("a solver that adapts its steps needs the same probes all along: set fresh=False")
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
