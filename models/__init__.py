"""Networks ``(x, log_snr, keep=None, label=None) -> tensor of x's shape``; each owns its null condition."""

from models.mlp import MLP
from models.unet import UNet

NETWORKS = {"unet": UNet, "mlp": MLP}

__all__ = ["MLP", "NETWORKS", "UNet"]
