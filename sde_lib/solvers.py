"""ODE solvers of the probability flow by name."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.runge_kutta import DormandPrince, check_reach, check_tolerances
from score_sde.sde_lib.velocity import NotConvergedError, Solution, Solver, Velocity


class Torchdiffeq:
    """A solver of torchdiffeq, with one step size for the whole batch, as an independent reference.

    Args:
        rtol, atol: relative and absolute tolerance of adaptive methods, positive.
        method: dopri8 | dopri5 | bosh3 | fehlberg2 | adaptive_heun, or a method with a single step from start to end:
            euler | midpoint | heun2 | heun3 | rk4.
    Attributes:
        adaptive: whether the step size is adaptive.
    Raises: as ``DormandPrince``.
    """

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, method: str = "dopri5") -> None:
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.method, self.adaptive = method, method not in SINGLE

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"

    def refined(self) -> "Torchdiffeq":
        """Returns a solver with a tenth of the tolerances."""
        return Torchdiffeq(0.1 * self.rtol, 0.1 * self.atol, self.method)

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float) -> Solution:
        """Integrates u (B, *) along the velocity from the angle ``start`` to ``end``, in either order."""
        from torchdiffeq import odeint

        if self.adaptive:
            check_reach(self.rtol, self.atol, u.dtype)
        indices, calls = torch.arange(len(u), device=u.device), 0
        none = torch.empty(0, dtype=torch.bool, device=u.device)
        adaptive, method = (self.adaptive, self.method) if len(u) else (False, "euler")  # no error norm if empty

        def rates(progress: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal calls
            calls += 1
            if adaptive:  # torchdiffeq synchronises in each step, and shrinks steps on non-finite values
                velocity.read(none)
            angle = (start + (end - start) * progress.double()).expand(len(u)).reshape(-1, *[1] * (u.ndim - 1))
            return tuple((end - start) * rate for rate in velocity(angle, state[0], indices) if rate.shape[1:].numel())

        begin, finish = torch.tensor([0.0, 1.0], dtype=torch.float64, device=u.device)
        columns = [torch.zeros_like(rate) for rate in rates(begin, (u,))[1:]]
        try:  # torchdiffeq's own first step may overshoot the end; step_t makes the last step end there
            options = {"first_step": 0.05, "step_t": finish[None]} if adaptive else {}
            span, tolerances = torch.stack([begin, finish]), {"rtol": self.rtol, "atol": self.atol}
            solution = odeint(rates, (u, *columns), span, method=method, options=options, **tolerances)
        except AssertionError as error:  # torchdiffeq raises it for a vanishing step
            raise NotConvergedError(f"torchdiffeq: {error}; raise the tolerances ({self})") from None
        velocity.read(none)
        integrals = solution[1][-1] if columns else u.new_zeros(len(u), 0)
        counts = torch.full_like(indices, calls)
        return Solution(solution[0][-1], integrals, counts, counts)


SINGLE = ("euler", "midpoint", "heun2", "heun3", "rk4")
"""Methods of torchdiffeq without step-size control."""

TORCHDIFFEQ: dict[str, Callable[[float, float], Torchdiffeq]] = {
    f"torchdiffeq_{method}": functools.partial(Torchdiffeq, method=method)
    for method in ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", *SINGLE)
}
"""(rtol, atol) -> solver, for the sampler ``ode``; methods in ``SINGLE`` take one step per interval of its grid."""

ADAPTIVE: dict[str, Callable[[float, float], DormandPrince | Torchdiffeq]] = {
    "dopri5": DormandPrince,
    **{name: TORCHDIFFEQ[name] for name in ("torchdiffeq_dopri5", "torchdiffeq_dopri8")},
}
"""(rtol, atol) -> solver, also for likelihoods: methods of high order, which make small tolerances affordable."""

SOLVERS: dict[str, Callable[..., Solver]] = {"adams_pece": AdamsPECE, **ADAPTIVE}
"""Solvers of the config key ``likelihood.solver``; their options are filled from a config by name."""
