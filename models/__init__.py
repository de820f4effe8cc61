"""Networks ``(x, noise, keep=None, label=None) -> tensor of x's shape``; each has its own null label.

``noise`` is the noise conditioning: log-SNR for the toolkit's own networks, another entry of
``sde_lib.denoiser.C_NOISE`` for published ones. Classifiers are networks ``(x, noise) -> logits``.
"""

if __name__ != "score_sde.models":  # a second copy would have its own tables
    raise ImportError("import score_sde.models: models is a part of the package score_sde")

from score_sde.models import blocks
from score_sde.models.adm import ADM, ADMClassifier
from score_sde.models.captioned import Captioned
from score_sde.models.classifier import Classifier
from score_sde.models.ddpm import DDPM
from score_sde.models.dit import DiT, TransformerBlock
from score_sde.models.mlp import MLP, LinearBlock
from score_sde.models.ncsn import NCSN, DilatedBlock, NCSNv2, Refine
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.song import Song
from score_sde.models.unet import Stage, UNet

NETWORKS = {
    "unet": UNet,
    "mlp": MLP,
    "classifier": Classifier,
    "captioned": Captioned,
    "ddpm": DDPM,
    "ncsnpp": NCSNpp,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
    "adm": ADM,
    "adm_classifier": ADMClassifier,
    "song": Song,
    "dit": DiT,
}

BLOCKS = (Stage, blocks.Stage, blocks.Block, TransformerBlock, LinearBlock, DilatedBlock, Refine)
"""Building blocks of the networks; the backward pass may recompute them to save memory."""

__all__ = [
    "ADM",
    "BLOCKS",
    "DDPM",
    "MLP",
    "NCSN",
    "NETWORKS",
    "ADMClassifier",
    "Captioned",
    "Classifier",
    "DiT",
    "NCSNpp",
    "NCSNv2",
    "Song",
    "UNet",
]
