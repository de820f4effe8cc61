"""The probability flow by an adaptive solver, as one step."""

from torch import Tensor

from samplers.loop import Draw, Step
from sde_lib import ADAPTIVE, SDE, Flow, Gaussian
from sde_lib.denoiser import Denoiser


class ODE(Step):
    """Solve the probability flow between t and s to a tolerance.

    A grid of a single step is the whole trajectory; a longer one lets a constraint act in between.

    Args:
        solver: a key of ``ADAPTIVE``: ``dopri5`` controls the error of each example by itself, so that a sample does
            not depend on its batch; those of torchdiffeq have one step size for the batch.
        rtol, atol: relative and absolute tolerance, positive.
        gaussian: first guess of the data, default N(0, I); one of their mean and scale saves evaluations.
    Raises: NotConvergedError where the tolerance cannot be met; ValueError for an unknown solver or a tolerance that is
        not positive.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 4.3. arXiv:2011.13456
    """

    def __init__(
        self,
        sde: SDE,
        solver: str = "dopri5",
        rtol: float = 1e-4,
        atol: float = 1e-4,
        gaussian: Gaussian | None = None,
    ) -> None:
        if solver not in ADAPTIVE:
            raise ValueError(f"unknown solver {solver!r}; known: {', '.join(sorted(ADAPTIVE))}")
        self.sde, self.solve, self.gaussian = sde, ADAPTIVE[solver](rtol, atol), gaussian

    def __call__(self, denoise: Denoiser, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        return self.follow(denoise, x, t, s)

    def follow(self, denoise: Denoiser, x: Tensor, t: float, s: float) -> Tensor:
        """The state at time s, earlier or later than t."""
        flow = Flow(self.sde, denoise, (self.gaussian or Gaussian.standard(x)).like(x))
        return flow.leave(self.solve(flow, flow.enter(x, t), flow.angle(t), flow.angle(s)).u, s)

    def encode(self, denoise: Denoiser, x: Tensor) -> Tensor:
        """The latents of examples x (B, *): the normals x_T / prior_std that the flow brings them to.

        Examples count as states at t_min: nobody put noise into them.
        """
        return self.follow(denoise, x, self.sde.t_min, self.sde.t_max) / self.sde.prior_std

    def decode(self, denoise: Denoiser, latents: Tensor) -> Tensor:
        """Inverse of ``encode`` to the solver's tolerance; so no denoising follows."""
        return self.follow(denoise, self.sde.prior_std * latents, self.sde.t_max, self.sde.t_min)
