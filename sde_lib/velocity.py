"""Interface between ODE solvers and the probability flow.

A solver is called as ``solver(velocity, u, start, end) -> Solution``. ``refined()`` returns a more accurate one. If
``adaptive`` is true, repeated calls of the velocity with the same arguments must return the same values.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from score_sde.sde_lib.process import Time

Indices = Tensor | slice
"""Indices of examples in the batch."""


class ExampleError(ArithmeticError):
    """An error of one example of a batch.

    Args:
        what: the failure, its place and a remedy.
        example: index in the batch; None if the error concerns no single example.
    """

    def __init__(self, what: str, example: int | None = None) -> None:
        super().__init__(what if example is None else f"example {example}: {what}")
        self.what, self.example = what, example

    def renumbered(self, numbers: Sequence[int]) -> "ExampleError":
        """Returns the error with the example numbered as in ``numbers``, one for each example of the batch."""
        return self if self.example is None else type(self)(self.what, numbers[self.example])


class NonFiniteError(ExampleError):
    """A network or a solver returned a non-finite number."""

    exit_status = 4


class NotConvergedError(ExampleError):
    """An adaptive solver failed to meet its tolerance."""

    exit_status = 5


class Rate(Protocol):
    """A velocity at a fixed angle."""

    def __call__(self, u: Tensor, indices: Indices = ..., traced: bool = True) -> tuple[Tensor, Tensor]:
        """Returns velocity and rates as ``Velocity`` does."""


class Velocity(Protocol):
    """Right-hand side of an ODE: ``sde_lib.flow.Flow``, or ``sde_lib.likelihood.TracedFlow`` with divergences."""

    def __call__(self, angle: Time, u: Tensor, indices: Indices = ..., traced: bool = True) -> tuple[Tensor, Tensor]:
        """Velocity du/dangle (b, *), and rates (b, K) of integrals along the path, which do not affect the path.

        Args:
            angle: a number, or (b, 1, ..., 1) float64 with one value for each example.
            indices: indices of the b examples in the batch, to select their conditions and probes.
            traced: whether the rates are needed here; if not, K is arbitrary.
        """

    def ahead(self, angles: Tensor, u: Tensor) -> Sequence[Rate]:
        """Velocities at the N angles of a step's stages, with state-independent coefficients precomputed.

        The default precomputes nothing.

        Args:
            angles: (N, b, 1, ..., 1) float64.
            u: examples (b, *) in the dtype and on the device of the stages' states.
        """
        return [functools.partial(self, angle) for angle in angles]

    def read(self, flags: Tensor) -> Tensor:
        """Copies flags of a solver to the CPU: the only synchronisation of host and device in a step.

        Raises: NonFiniteError if the velocity was non-finite in any evaluation since the last call.
        """
        return flags.cpu()

    def locate(self, angle: float) -> str:
        """Describes the position of an angle, for error messages."""


class Solution(NamedTuple):
    """Solution of an ODE.

    u: end point, (B, *).
    integrals: integrals of the rates along the path, (B, K).
    calls: number of evaluations of the velocity for each example, (B,) int64.
    traced: number of evaluations with rates for each example, (B,) int64.
    """

    u: Tensor
    integrals: Tensor
    calls: Tensor
    traced: Tensor


class Solver(Protocol):
    """An ODE solver."""

    adaptive: bool

    def refined(self) -> "Solver":
        """Returns a more accurate solver."""

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float, /) -> Solution:
        """Integrates u (B, *) along the velocity from the angle ``start`` to ``end``, in either order."""
