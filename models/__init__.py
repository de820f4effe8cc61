"""Networks ``(x, noise, keep=None, label=None) -> tensor of x's shape``; each owns its null condition.

The noise conditioning of ours is log-SNR, that of published ones a row of ``sde_lib.denoiser.C_NOISE``. A classifier is
a network too, ``(x, noise) -> logits``.
"""

if __name__ != "score_sde.models":  # a second copy would have tables of its own
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

CLASSIFIERS = (Classifier, ADMClassifier, Captioned)
"""Networks that answer with logits."""

BLOCKS = (Stage, blocks.Stage, blocks.Block, TransformerBlock, LinearBlock, DilatedBlock, Refine)
"""What networks are made of: modules that may be computed twice to keep less for the gradient."""

__all__ = [
    "ADM",
    "BLOCKS",
    "CLASSIFIERS",
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
