"""A pair of encoders, of noisy states and of texts, that agree on what belongs together."""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from score_sde.sde_lib.classifier import Classification, Classifier, ClassifierNetwork
from score_sde.sde_lib.process import Draw, Time


class PairNetwork(ClassifierNetwork, Protocol):
    """A network of two encoders, whose output is unit vectors (B, D)."""

    def __call__(self, x: Tensor, c_noise: Tensor, /, label: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        """Dot products with captions: of each class, or one for each label, chosen by u in [0, 1)."""

    def image(self, x: Tensor, c_noise: Tensor, /) -> Tensor:
        """Of states."""

    def tokens(self, text: str, /) -> Tensor:
        """The numbers of a text's words, (1, words)."""

    def text(self, tokens: Tensor, /) -> Tensor:
        """Of texts."""

    def sharpness(self) -> Tensor:
        """The inverse temperature."""


class Pair(Classifier):
    """A network of two encoders as a judge of what the states of one SDE have to do with texts.

        <f(x_t, t), g(text)>,    |f| = 1,    |g| = e^s, an inverse temperature that is learned

    As a classifier its logits are the dot products with the captions of each class.

    Args:
        network: a classifier with ``image(x, c_noise)`` and ``text(tokens)``, unit vectors (B, D), and ``sharpness()``,
            e^s; told labels and numbers in [0, 1), it answers with dot products with a caption of each, (B, B).
        sde, sigma_data, c_noise, input: as ``Classifier``.
    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
        arXiv:2103.00020
    """

    network: PairNetwork

    def embed(self, x: Tensor, t: Time) -> Tensor:
        """f of states at time t, unit vectors (B, D)."""
        return self.apply_network(self.network.image, x, t)

    def aim(self, tokens: Tensor) -> Tensor:
        """g of texts, of the length of the inverse temperature.

        Shapes: tokens int64 (B, words); returns (B, D).
        """
        return self.network.sharpness() * self.network.text(tokens)


class Contrastive(Classification[Pair]):
    """Cross-entropy of which caption of the batch belongs to a state, and which state to a caption, in nats.

        loss_i = -log softmax_j(<f_i, g_j>)_i / 2 - log softmax_j(<f_j, g_i>)_i / 2

    Encoders that know nothing get log of the batch size; images that share a caption cannot be told apart and leave
    some of it.

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
