"""Networks ``(x, log_snr, keep=None, label=None) -> tensor of x's shape``; each owns its null condition.

A classifier is one too, ``(x, log_snr) -> logits``.
"""

from models.classifier import Classifier
from models.mlp import MLP
from models.unet import UNet

NETWORKS = {"unet": UNet, "mlp": MLP, "classifier": Classifier}

__all__ = ["MLP", "NETWORKS", "Classifier", "UNet"]
