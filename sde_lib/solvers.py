"""Solvers of the probability flow, by the names that users type."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from score_sde.sde_lib.adams_pece import AdamsPECE
from score_sde.sde_lib.runge_kutta import DormandPrince, check_reach, check_tolerances
from score_sde.sde_lib.velocity import NotConvergedError, Solution, Solver, Velocity


class Torchdiffeq:
    """A solver of torchdiffeq, one step size for the whole batch: an independent reference.

    Args:
        rtol, atol: tolerances, relative and absolute, positive; of adaptive methods.
        method: dopri8 | dopri5 | bosh3 | fehlberg2 | adaptive_heun, or one that takes a single step from start to end:
            euler | midpoint | heun2 | heun3 | rk4.
    Attributes:
        adaptive: whether it chooses its steps.
    Raises: as ``DormandPrince``.
    """

    def __init__(self, rtol: float = 1e-5, atol: float = 1e-5, method: str = "dopri5") -> None:
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.method, self.adaptive = method, method not in SINGLE

    def __str__(self) -> str:
        return f"rtol {self.rtol:g}, atol {self.atol:g}"

    def refined(self) -> "Torchdiffeq":
        """The same with a tenth of the tolerances."""
        return Torchdiffeq(0.1 * self.rtol, 0.1 * self.atol, self.method)

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float) -> Solution:
        """Follow the velocity of u (B, *) from the angle ``start`` to ``end``, in either order."""
        from torchdiffeq import odeint

        if self.adaptive:
            check_reach(self.rtol, self.atol, u.dtype)
        indices, calls = torch.arange(len(u), device=u.device), 0
        none = torch.empty(0, dtype=torch.bool, device=u.device)
        adaptive, method = (self.adaptive, self.method) if len(u) else (False, "euler")  # no example has no error

        def rates(progress: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal calls
            calls += 1
            if adaptive:  # torchdiffeq waits for each step anyway, and takes small steps where nothing is finite
                velocity.read(none)
            angle = (start + (end - start) * progress.double()).expand(len(u)).reshape(-1, *[1] * (u.ndim - 1))
            return tuple((end - start) * rate for rate in velocity(angle, state[0], indices) if rate.shape[1:].numel())

        begin, finish = torch.tensor([0.0, 1.0], dtype=torch.float64, device=u.device)
        columns = [torch.zeros_like(rate) for rate in rates(begin, (u,))[1:]]
        try:  # a first step of its own choice may look far beyond the end; step_t lets the last one end there
            options = {"first_step": 0.05, "step_t": finish[None]} if adaptive else {}
            span, tolerances = torch.stack([begin, finish]), {"rtol": self.rtol, "atol": self.atol}
            solution = odeint(rates, (u, *columns), span, method=method, options=options, **tolerances)
        except AssertionError as error:  # torchdiffeq's way to say that the step vanished
            raise NotConvergedError(f"torchdiffeq: {error}; raise the tolerances ({self})") from None
        velocity.read(none)
        integrals = solution[1][-1] if columns else u.new_zeros(len(u), 0)
        counts = torch.full_like(indices, calls)
        return Solution(solution[0][-1], integrals, counts, counts)


SINGLE = ("euler", "midpoint", "heun2", "heun3", "rk4")
"""Methods of torchdiffeq whose steps are as long as they are told."""

TORCHDIFFEQ: dict[str, Callable[[float, float], Torchdiffeq]] = {
    f"torchdiffeq_{method}": functools.partial(Torchdiffeq, method=method)
    for method in ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", *SINGLE)
}
"""(rtol, atol) -> solver, of the sampler ``ode``: those of ``SINGLE`` take one step in each move of its grid."""

ADAPTIVE: dict[str, Callable[[float, float], DormandPrince | Torchdiffeq]] = {
    "dopri5": DormandPrince,
    **{name: TORCHDIFFEQ[name] for name in ("torchdiffeq_dopri5", "torchdiffeq_dopri8")},
}
"""(rtol, atol) -> solver, also of likelihoods: of an order that makes small tolerances cheap."""

SOLVERS: dict[str, Callable[..., Solver]] = {"adams_pece": AdamsPECE, **ADAPTIVE}
"""What the user types after ``likelihood.solver``: the solver, from those of its options that a config has."""
