"""What a solver of the probability flow is asked, and what it answers.

A solver is called as ``solver(velocity, u, start, end) -> Solution``; ``refined()`` is the same with less error, and
``adaptive`` tells whether it needs a velocity that says the same when it is asked again.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from score_sde.sde_lib.process import Time

Indices = Tensor | slice
"""Numbers in the batch of the examples that are asked about."""


class ExampleError(ArithmeticError):
    """What went wrong, and with which example of a batch.

    Args:
        what: went wrong, where, and what to do.
        example: its number in the batch; None if it was no single one.
    """

    def __init__(self, what: str, example: int | None = None) -> None:
        super().__init__(what if example is None else f"example {example}: {what}")
        self.what, self.example = what, example

    def renumbered(self, numbers: Sequence[int]) -> "ExampleError":
        """The same, where the examples of the batch have these numbers."""
        return self if self.example is None else type(self)(self.what, numbers[self.example])


class NonFiniteError(ExampleError):
    """A network or a solver gave a number that is not finite."""

    exit_status = 4


class NotConvergedError(ExampleError):
    """An adaptive solver could not keep its tolerance."""

    exit_status = 5


class Rate(Protocol):
    """A velocity at an angle."""

    def __call__(self, u: Tensor, indices: Indices = ..., traced: bool = True) -> tuple[Tensor, Tensor]:
        """As ``Velocity``."""


class Velocity(Protocol):
    """What can be followed: ``sde_lib.flow.Flow``, or ``sde_lib.likelihood.TracedFlow``, which measures on the way."""

    def __call__(self, angle: Time, u: Tensor, indices: Indices = ..., traced: bool = True) -> tuple[Tensor, Tensor]:
        """The velocity du/dangle (b, *), and the rates (b, K) of what is integrated along the way and moves nothing.

        Args:
            angle: a number, or (b, 1, ..., 1) float64 with one for each example.
            indices: numbers of these b examples in the batch, for whatever else belongs to an example.
            traced: whether the rates are asked for at this place; where not, they may have any K.
        """

    def ahead(self, angles: Tensor, u: Tensor) -> Sequence[Rate]:
        """The velocity at each of N places that a step will visit, with what the states there do not change worked out.

        For a class that inherits from this one and says nothing of it: nothing is worked out.

        Args:
            angles: (N, b, 1, ..., 1) float64.
            u: examples (b, *) in the dtype and on the device of the states to come.
        """
        return [functools.partial(self, angle) for angle in angles]

    def read(self, flags: Tensor) -> Tensor:
        """Flags of a solver on the CPU: the one wait of the host in a step.

        Raises: NonFiniteError if the velocity was not finite at one of the places since the last call.
        """
        return flags.cpu()

    def place(self, angle: float) -> str:
        """Where that is, in words."""


class Solution(NamedTuple):
    """Where a velocity ends.

    u: the end point, (B, *).
    integrals: of the rates along the way, (B, K).
    calls: evaluations of the velocity for each example, (B,) int64.
    traced: those of them whose rates were asked for, (B,) int64.
    """

    u: Tensor
    integrals: Tensor
    calls: Tensor
    traced: Tensor


class Solver(Protocol):
    """A method that follows a velocity."""

    adaptive: bool

    def refined(self) -> "Solver":
        """The same with less error."""

    def __call__(self, velocity: Velocity, u: Tensor, start: float, end: float, /) -> Solution:
        """Follow the velocity of u (B, *) from the angle ``start`` to ``end``, in either order."""
