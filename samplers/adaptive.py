"""The probability flow by a black-box solver, as one step."""

from torch import Tensor

from samplers.loop import Draw, Step
from sde_lib import SDE, SOLVERS
from sde_lib.denoiser import Denoiser
from sde_lib.flow import slope


class ODE(Step):
    """Solve the probability flow between t and s to a tolerance, in log-SNR.

    A grid of a single step is the whole trajectory; a longer one lets a constraint act in between.

    Args:
        solver: a key of ``SOLVERS``: ``dopri5`` controls the error of each example by itself, so that a sample does not
            depend on its batch; ``torchdiffeq`` is torchdiffeq's dopri5, one step size for the batch.
        rtol, atol: relative and absolute tolerance, positive.
    Raises: NotConvergedError where the tolerance cannot be met; ValueError for an unknown solver.
    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, section 4.3. arXiv:2011.13456
    """

    def __init__(self, sde: SDE, solver: str = "dopri5", rtol: float = 1e-4, atol: float = 1e-4) -> None:
        if solver not in SOLVERS:
            raise ValueError(f"unknown solver {solver!r}; known: {', '.join(sorted(SOLVERS))}")
        self.sde, self.solve, self.rtol, self.atol = sde, SOLVERS[solver], rtol, atol

    def __call__(self, denoise: Denoiser, x: Tensor, t: float, s: float, draw: Draw) -> Tensor:
        def f(log_snr: Tensor, state: tuple[Tensor], rows: Tensor) -> tuple[Tensor]:
            return (slope(denoise, self.sde, state[0], log_snr),)

        late, early = self.sde.at(t), self.sde.at(s)
        (y,), _ = self.solve(f, (x / late.alpha,), late.log_snr, early.log_snr, self.rtol, self.atol)
        return early.alpha * y
