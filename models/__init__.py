"""Networks ``(x, noise, keep=None, label=None) -> tensor of x's shape``; each owns its null condition.

The noise conditioning of ours is log-SNR, that of published ones a row of ``sde_lib.denoiser.C_NOISE``. A classifier is
a network too, ``(x, noise) -> logits``.
"""

from models import blocks
from models.adm import ADM, ADMClassifier
from models.captioned import Captioned
from models.classifier import Classifier
from models.ddpm import DDPM
from models.dit import DiT, TransformerBlock
from models.mlp import MLP, LinearBlock
from models.ncsn import NCSN, DilatedBlock, NCSNv2, Refine
from models.ncsnpp import NCSNpp
from models.song import Song
from models.unet import Stage, UNet

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
