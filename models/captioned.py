"""Encoders of noisy images and of captions, built from class names, with a common embedding space."""

import math
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from score_sde.models.classifier import Classifier

SHARPEST = 100.0
"""Largest inverse temperature, as published."""

DIGITS = ("zero|0", "one|1", "two|2", "three|3", "four|4", "five|5", "six|6", "seven|7", "eight|8", "nine|9")
TEMPLATES = ("{}", "a {}", "the digit {}", "the number {}", "number {}", "a handwritten {}")


class Captioned(nn.Module):
    """Contrastive image and text encoders: the trunk of ``Classifier``, and the mean of word vectors.

    A caption is a template with one of the names of a class; a text is any sequence of words from captions. The order
    of the words has no effect.

    Args:
        shape: (C, L) or (C, H, W) of one example.
        channels: channels at the finest level, an even number.
        channel_mult: channels of each level as multiples of ``channels``, finest level first; each level halves the
            resolution.
        num_blocks: residual blocks per level.
        attention: resolutions (longer side, in positions) whose blocks are followed by attention, such as (16,).
        dropout: dropout probability, in [0, 1).
        num_classes: number of classes of the data, equal to the number of names.
        pad: whether inputs whose sides the levels do not divide are padded with zeros.
        names: names of each class in captions, alternatives separated by bars; the digits by default.
        templates: captions with {} in place of the name.
        dimensions: dimension of the embedding space.
    Shapes: x (B, *shape), log_snr (B,); returns dot products with the mean caption of each class, (B, num_classes).
        With label int64 (N,) and u (N,) in [0, 1), which selects a caption of each label, returns dot products with
        these captions, (B, N).
    Raises: ValueError unless each class has a name and each template contains {}.
    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section
        2.4. arXiv:2103.00020
    """

    captions: Tensor
    num_captions: Tensor

    output_kinds: ClassVar[tuple[str, ...]] = ("logits", "embeddings")

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: int = 16,
        channel_mult: tuple[int, ...] = (1, 2),
        num_blocks: int = 1,
        attention: tuple[int, ...] = (),
        dropout: float = 0.1,
        num_classes: int = 10,
        pad: bool = False,
        names: tuple[str, ...] = DIGITS,
        templates: tuple[str, ...] = TEMPLATES,
        dimensions: int = 32,
    ):
        super().__init__()
        if len(names) != num_classes:
            raise ValueError(f"network.names has {len(names)} classes, network.num_classes is {num_classes}")
        if not templates or any("{}" not in template for template in templates):
            raise ValueError(f"network.templates {templates}: need captions with {{}} in place of the name of a class")
        self.num_classes = num_classes
        self.pictures = Classifier(shape, channels, channel_mult, num_blocks, attention, dropout, dimensions, pad)
        self.pictures.output.reset_parameters()  # a zero vector has no direction
        captions = [
            [template.replace("{}", name).split() for template, name in product(templates, alternatives.split("|"))]
            for alternatives in names
        ]
        self.words = sorted({word for of_class in captions for caption in of_class for word in caption})
        longest = max(len(caption) for of_class in captions for caption in of_class)
        self.register_buffer("captions", self._table(captions, longest), persistent=False)
        self.register_buffer("num_captions", torch.tensor([len(of_class) for of_class in captions]), persistent=False)
        self.vectors = nn.Embedding(len(self.words) + 1, 2 * dimensions, padding_idx=0)
        self.sentence = nn.Sequential(
            nn.Linear(2 * dimensions, 2 * dimensions), nn.SiLU(), nn.Linear(2 * dimensions, dimensions)
        )
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def tokens(self, text: str) -> Tensor:
        """The token numbers of a text's words, (1, words).

        Raises: ValueError for a text without words, or with a word that is in no caption.
        """
        words = text.lower().split()
        unknown = [word for word in words if word not in self.words]
        if not words or unknown:
            reason = f"was not trained on the word {unknown[0]!r}" if unknown else "needs at least one word"
            raise ValueError(f"the text encoder {reason}; its words are {', '.join(self.words)}")
        return self._table([[words]], len(words))[0].to(self.captions.device)

    def image(self, x: Tensor, log_snr: Tensor) -> Tensor:
        """Unit vectors of images, (B, dimensions)."""
        return F.normalize(self.pictures(x, log_snr), dim=1)

    features = image

    def text(self, tokens: Tensor) -> Tensor:
        """Unit vectors of texts; tokens int64 (*, words), padded with 0; returns (*, dimensions)."""
        mean = self.vectors(tokens).sum(-2) / (tokens > 0).sum(-1, keepdim=True).clamp_min(1)
        return F.normalize(self.sentence(mean), dim=-1)

    def sharpness(self) -> Tensor:
        """The inverse temperature of dot products."""
        return self.log_sharpness.exp().clamp_max(SHARPEST)

    def output(self, vectors: Tensor) -> Tensor:
        """Logits of unit vectors (B, dimensions): dot products with the mean direction of each class's captions."""
        valid = torch.arange(self.captions.shape[1], device=self.captions.device) < self.num_captions[:, None]
        texts = self.text(self.captions) * valid[..., None]
        return self.sharpness() * vectors @ F.normalize(texts.sum(1), dim=1).mT

    def forward(self, x: Tensor, log_snr: Tensor, label: Tensor | None = None, u: Tensor | None = None) -> Tensor:
        vectors = self.image(x, log_snr)
        if label is None:
            return self.output(vectors)
        if u is None:
            raise ValueError("labels without u: give a number in [0, 1) per label, which selects its caption")
        num = self.num_captions[label]
        which = (u * num).long().clamp_max(num - 1)
        return self.sharpness() * vectors @ self.text(self.captions[label, which]).mT

    def _table(self, captions: list[list[list[str]]], longest: int) -> Tensor:
        """Token numbers from 1, padded with 0, (classes, captions, longest)."""
        table = torch.zeros(len(captions), max(map(len, captions)), longest, dtype=torch.int64)
        for k, of_class in enumerate(captions):
            for j, caption in enumerate(of_class):
                table[k, j, : len(caption)] = torch.tensor([1 + self.words.index(word) for word in caption])
        return table
