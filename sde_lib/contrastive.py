"""Contrastive training of a pair of encoders, for noisy states and for texts."""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from score_sde.sde_lib.classifier import Classification, Classifier, ClassifierNetwork
from score_sde.sde_lib.process import Draw, Time


class PairNetwork(ClassifierNetwork, Protocol):
    """Interface of networks with two encoders, which return unit vectors (B, D)."""

    def __call__(self, x: Tensor, c_noise: Tensor, /, label: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Dot products with captions: of each class, or of one caption per label, selected by u in [0, 1)."""

    def image(self, x: Tensor, c_noise: Tensor, /) -> Tensor:
        """Embeds states."""

    def tokens(self, text: str, /) -> Tensor:
        """Token ids of a text, (1, words)."""

    def text(self, tokens: Tensor, /) -> Tensor:
        """Embeds texts."""

    def sharpness(self) -> Tensor:
        """Inverse temperature."""


class Pair(Classifier):
    """A network of two encoders as a similarity of states of one SDE and texts.

        <f(x_t, t), g(text)>,    |f| = 1,    |g| = e^s, a learned inverse temperature

    As a classifier, its logits are dot products with the captions of each class.

    Args:
        network: a classifier with ``image(x, c_noise)`` and ``text(tokens)``, unit vectors (B, D), and ``sharpness()``,
            e^s. With labels and numbers in [0, 1) it returns dot products with a caption of each label, (B, B).
        sde, sigma_data, c_noise, input: as ``Classifier``.
    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
        arXiv:2103.00020
    """

    network: PairNetwork

    def embed(self, x: Tensor, t: Time) -> Tensor:
        """Embedding f of states at time t, unit vectors (B, D)."""
        return self.apply_network(self.network.image, x, t)

    def aim(self, tokens: Tensor) -> Tensor:
        """Embedding g of texts, with the inverse temperature as its length.

        Shapes: tokens int64 (B, words); returns (B, D).
        """
        return self.network.sharpness() * self.network.text(tokens)


class Contrastive(Classification[Pair]):
    """Cross-entropy of matching states and captions in a batch, in both directions, in nats.

        loss_i = -log softmax_j(<f_i, g_j>)_i / 2 - log softmax_j(<f_j, g_i>)_i / 2

    Uninformative encoders have the loss log(batch size). Images with equal captions are indistinguishable and leave a
    positive minimum.

    Reference: Radford et al., 2021, section 2.3, figure 3. arXiv:2103.00020
    """

    model = Pair
    output_kind = "embeddings"
    compares = True

    def __call__(
        self, pair: Pair, /, x0: Tensor, eps: Tensor, t: Tensor, draw: Draw, progress: float, **cond: Tensor
    ) -> Tensor:
        u, own = torch.special.ndtr(draw(x0.flatten(1)[:, 0])), torch.arange(len(x0), device=x0.device)
        network = partial(pair.network, label=cond["label"], u=u)
        logits = pair.apply_network(network, self.sde.perturb(x0, eps, t), t)
        of_states, of_texts = (F.cross_entropy(each, own, reduction="none") for each in (logits, logits.mT))
        return 0.5 * (of_states + of_texts)
