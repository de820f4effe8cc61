"""Networks ``(x, log_snr, keep=None, label=None) -> tensor of x's shape``; each owns its null condition.

Published ones are told the noise level in their own way, see ``LABELS``. A classifier is one too, ``(x, log_snr) ->
logits``.
"""

from models.classifier import Classifier
from models.ddpm import DDPM
from models.mlp import MLP
from models.ncsn import NCSN, NCSNv2
from models.ncsnpp import NCSNpp
from models.unet import UNet

NETWORKS = {
    "unet": UNet,
    "mlp": MLP,
    "classifier": Classifier,
    "ddpm": DDPM,
    "ncsnpp": NCSNpp,
    "ncsn": NCSN,
    "ncsnv2": NCSNv2,
}

__all__ = ["DDPM", "MLP", "NCSN", "NETWORKS", "Classifier", "NCSNpp", "NCSNv2", "UNet"]
