"""What training minimises."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor, nn

from score_sde.sde_lib.denoiser import Denoise, Denoiser
from score_sde.sde_lib.losses import Weight, denoising_loss
from score_sde.sde_lib.process import SDE, Draw

M = TypeVar("M", contravariant=True)
"""What stands between network and loss."""


class Objective(ABC, Generic[M]):
    """A loss for data, noise and times that were drawn for a batch.

    Options of a subclass are filled by name: keys of the section ``loss`` of a config, and what a run knows of itself:
    ``weight`` (sde, t) -> tensor, ``sigma_data``, ``bin_width`` (of a level in units of the encoded data, 0 for real
    data), ``teacher`` (a trained denoiser on this SDE, frozen).

    Attributes:
        model: what stands between the network and the loss: a class of ``(network, sde, ...)``, its options filled by
            name from the section ``denoiser`` of a config.
        generates: whether the model is a denoiser, so that a run can be sampled.
        output_kind: kind of network output, "state", "logits" or "embeddings": one of the network's ``output_kinds``.
        compares: whether the loss of an example depends on the others of its batch.
        differentiates: whether it takes derivatives of the network by its input.
    """

    model: Callable[..., nn.Module] = Denoiser
    generates: bool = True
    output_kind: str = "state"
    compares: bool = False
    differentiates: bool = False

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    @abstractmethod
    def __call__(
        self, model: M, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        """One value an example; (B,).

        Args:
            draw: more noise, for objectives that need it.
            progress: share of the training that is done, 0 to 1.
        Shapes: x0, eps (B, *); t (B, 1, ..., 1).
        """

    def report(self, model: M, /, x0: Tensor, eps: Tensor, **cond: Tensor) -> dict[str, float]:
        """What else is worth telling of held-out data: nothing, for most objectives."""
        return {}


class Denoising(Objective[Denoise]):
    """Weighted denoising score matching, ``denoising_loss``."""

    def __init__(self, sde: SDE, weight: Weight) -> None:
        super().__init__(sde)
        self.weight = weight

    def __call__(
        self, denoise: Denoise, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        return denoising_loss(self.sde, denoise, self.weight, x0, eps, t, **cond)
