"""Training objectives: losses of a model on a batch of data, noise and times."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from torch import Tensor, nn

from score_sde.sde_lib.denoiser import Denoise, Denoiser
from score_sde.sde_lib.losses import Weight, denoising_loss
from score_sde.sde_lib.process import SDE, Draw

M = TypeVar("M", contravariant=True)
"""The model between network and loss."""


class Objective(ABC, Generic[M]):
    """A loss for a batch of data, noise and times.

    Options of a subclass are filled by name from the section ``loss.objective`` of a config and from the run:
    ``weight`` (sde, t) -> tensor, ``sigma_data``, ``bin_width`` (of a level in units of the encoded data, 0 for real
    data), ``teacher`` (a trained denoiser on this SDE, frozen).

    Attributes:
        model: class of the model between network and loss, called as ``model(network, sde, ...)``; its options are
            filled by name from the section ``denoiser`` of a config.
        output_kind: kind of network output, "state", "logits" or "embeddings": one of the network's ``output_kinds``.
        compares: whether the loss of an example depends on the others in its batch, which then stays whole.
        differentiates: whether the loss takes derivatives of the network with respect to its input, so that training
            needs second derivatives.
    """

    model: type[nn.Module] = Denoiser
    output_kind: str = "state"
    compares: bool = False
    differentiates: bool = False

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    @classmethod
    def trains_denoiser(cls) -> bool:
        """Whether the model is a denoiser, so that a run can be sampled."""
        return issubclass(cls.model, Denoiser)

    @abstractmethod
    def __call__(
        self, model: M, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        """Loss of each example, (B,).

        Args:
            draw: source of more noise, for objectives that need it.
            progress: fraction of the training that is done, 0 to 1.
        Shapes: x0, eps (B, *); t (B, 1, ..., 1).
        """

    def report(self, model: M, /, x0: Tensor, eps: Tensor, **cond: Tensor) -> dict[str, float]:
        """Further metrics on validation data by name; none for most objectives."""
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
