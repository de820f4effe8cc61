"""The probability flow solved by a general-purpose ODE solver, from noise to data and back."""

from torch import Tensor

from score_sde.samplers.loop import Step, checked
from score_sde.sde_lib import ADAPTIVE, SDE, TORCHDIFFEQ, Flow, Gaussian
from score_sde.sde_lib.denoiser import Denoise, Estimate
from score_sde.sde_lib.process import Draw


class ODE(Step):
    """Solves the probability flow from t to s to a tolerance.

    A grid of one step is the whole trajectory; a longer grid lets a constraint act in between.

    Args:
        solver: ODE solver, a key of ``ADAPTIVE`` or ``TORCHDIFFEQ``. ``dopri5`` controls the error of each example
            separately, so a sample does not depend on its batch. Solvers of torchdiffeq use one step size for the
            batch, or one step per pair of times, as ``torchdiffeq_rk4`` does.
        rtol: relative tolerance, above 0; usually 1e-4.
        atol: absolute tolerance, above 0; usually 1e-4.
        gaussian: moment-matched Gaussian of the data, default N(0, I); the right mean and scale save evaluations.
    Raises: NotConvergedError if the tolerance cannot be met; ValueError for an unknown solver, a tolerance that is not
        positive, or a fixed-step solver on a grid of a single step.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 4.3. arXiv:2011.13456
    """

    num_steps = 1

    def __init__(
        self,
        sde: SDE,
        solver: str = "dopri5",
        rtol: float = 1e-4,
        atol: float = 1e-4,
        gaussian: Gaussian | None = None,
    ) -> None:
        known = ADAPTIVE | TORCHDIFFEQ
        if solver not in known:
            raise ValueError(f"unknown solver {solver!r}; known: {', '.join(known)}")
        self.sde, self.solver, self.solve, self.gaussian = sde, solver, known[solver](rtol, atol), gaussian

    def reset(self, times: list[float]) -> None:
        if len(times) == 2:
            self._check_whole()

    def __call__(self, denoise: Denoise, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.follow(denoise, x, t, s)

    def follow(self, denoise: Estimate, x: Tensor, t: float, s: float) -> Tensor:
        """State at time s, which may be earlier or later than t.

        Raises: ValueError if t and s are not two different times of the SDE.
        """
        checked(self.sde, sorted((t, s), reverse=True))
        flow = Flow(self.sde, denoise, (self.gaussian or Gaussian.standard(x)).like(x))
        return flow.leave(self.solve(flow, flow.enter(x, t), flow.angle(t), flow.angle(s)).u, s)

    def encode(self, denoise: Estimate, x: Tensor) -> Tensor:
        """Latents of examples x (B, *): the states x_T / prior_std at the end of the flow, standard normal.

        The examples are taken as states at t_min, without added noise.
        """
        self._check_whole()
        return self.follow(denoise, x, self.sde.t_min, self.sde.t_max) / self.sde.prior_std

    def decode(self, denoise: Estimate, latents: Tensor) -> Tensor:
        """Data of latents (B, *): the inverse of ``encode`` to the solver's tolerance, without a last denoising."""
        self._check_whole()
        return self.follow(denoise, self.sde.prior_std * latents, self.sde.t_max, self.sde.t_min)

    def _check_whole(self) -> None:
        if not self.solve.adaptive:
            raise ValueError(
                f"solver {self.solver!r} takes one step between two times, and the grid has only two; use --steps 20 "
                "or more, or an adaptive solver such as dopri5"
            )
