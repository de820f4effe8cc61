"""Classifiers of noisy states, p(y | x_t) at every time t, for classifier guidance and for features of clean data."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.sde_lib.denoiser import C_NOISE, INPUTS, conditioning
from score_sde.sde_lib.objective import Objective
from score_sde.sde_lib.process import SDE, Draw, Time

REPORTED_LOG_SNR = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0)
"""Log-SNR values of the reported accuracies on validation data."""


class ClassifierNetwork(Protocol):
    """Interface of classifier networks, (x, c_noise) -> logits (B, K)."""

    num_classes: int

    def __call__(self, x: Tensor, c_noise: Tensor, /) -> Tensor:
        """Logits (B, K)."""

    def features(self, x: Tensor, c_noise: Tensor, /) -> Tensor:
        """Inputs of the last layer, (B, F)."""

    def output(self, features: Tensor, /) -> Tensor:
        """Last layer, from features to logits."""


class Classifier(nn.Module):
    """A preconditioned network as a classifier of the states of one SDE.

        log p(y | x_t) = log softmax F(c_in x, c_noise),    c_in and c_noise as in ``Denoiser``

    Args:
        network: called as ``network(x, c_noise)`` with c_noise (B,) float32; returns logits (B, K).
        sde: the process that noised the data.
        sigma_data: standard deviation of the data, positive.
        c_noise: a key of ``C_NOISE``.
        input: a key of ``INPUTS``.
    Shapes: x (B, *); t a number, or a tensor that is 0-d or (B, 1, ..., 1); returns (B, K).
    """

    def __init__(
        self, network: ClassifierNetwork, sde: SDE, sigma_data: float, c_noise: str = "log_snr", input: str = "unit"
    ) -> None:
        super().__init__()
        self.c_noise, self.scale = C_NOISE[c_noise], INPUTS[input]
        self.network, self.sde, self.sigma_data = network, sde, sigma_data

    def forward(self, x: Tensor, t: Time) -> Tensor:
        return self.apply_network(self.network, x, t)

    def apply_network(self, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Time) -> Tensor:
        """Output of the network, or of one of its methods, at a state x, in the dtype of x."""
        marginal = self.sde.marginal(t)
        c_noise = conditioning(self.c_noise(self.sde, t, marginal), x)
        return network(self.scale(marginal, self.sigma_data) * x, c_noise).to(x.dtype)

    @property
    def num_classes(self) -> int:
        """Number of logits, K."""
        return self.network.num_classes

    def features(self, x: Tensor, t: Time) -> Tensor:
        """Inputs of the network's last layer, (B, F)."""
        return self.apply_network(self.network.features, x, t)

    def log_prob(self, label: Tensor) -> Callable[[Tensor, Time], Tensor]:
        """Function (x, t) -> log p(label | x_t) in nats, (B,), for classifier guidance.

        Shapes: label int64 (B,), from 0 to K - 1.
        """
        return lambda x, t: -F.cross_entropy(self(x, t), label, reduction="none")


C = TypeVar("C", bound=Classifier, contravariant=True)


class Classification(Objective[C]):
    """Cross-entropy of the label at time t, in nats.

        loss = -log p(y | x_t),    x_t = alpha x0 + sigma eps

    Its minimum is the posterior of the label given the noisy state.

    Reference: Song et al., "Score-Based Generative Modeling through SDEs", 2021, appendix I. arXiv:2011.13456
    """

    model = Classifier
    output_kind = "logits"

    def __call__(
        self, classify: C, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        return -classify.log_prob(cond["label"])(self.sde.perturb(x0, eps, t), t)

    def report(self, classify: C, /, x0: Tensor, eps: Tensor, **cond: Tensor) -> dict[str, float]:
        """Accuracy on clean data and at ``REPORTED_LOG_SNR``."""

        def accuracy(x: Tensor, t: float) -> float:
            return (classify.forward(x, t).argmax(1) == cond["label"]).double().mean().item()

        times = self.sde.time(torch.tensor(REPORTED_LOG_SNR, dtype=torch.float64)).tolist()
        noisy = {
            f"accuracy/log_snr_{l:g}": accuracy(self.sde.perturb(x0, eps, t), t)
            for l, t in zip(REPORTED_LOG_SNR, times)
        }
        return {"accuracy": accuracy(x0, self.sde.t_min), **noisy}
