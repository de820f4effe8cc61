"""Helpers of the checkpoint readers' tests: recorded weights, networks built from them, malicious files."""

import pickle
from pathlib import Path

import numpy as np
import torch
from parity.recordings import COMPLETE, COPIES

from score_sde.models import NETWORKS
from score_sde.models.checkpoints.foreign import Foreign
from score_sde.sde_lib import SDES, Denoiser


def recorded(folder: str) -> list[Path]:
    """Folders of recorded weights and reference answers below ``folder``: complete recordings, and the copies here."""
    found = {path.parent.name: path.parent for top in (COPIES, COMPLETE) for path in (top / folder).glob("*/io.npz")}
    return [found[name] for name in sorted(found)]


def network(foreign: Foreign) -> torch.nn.Module:
    """Builds the network and loads the weights with ``strict=True``."""
    options = dict(foreign.config["network"])
    made = NETWORKS[options.pop("name")](foreign.shape, **options)
    made.load_state_dict(foreign.weights)
    return made.eval().requires_grad_(False)


def denoiser(foreign: Foreign) -> Denoiser:
    """The network as a denoiser of its process."""
    options = dict(foreign.config["sde"])
    return Denoiser(network(foreign), SDES[options.pop("name")](**options), **foreign.config["denoiser"])


def drawn(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights, reproducible on every machine, of a network too large to be stored.

    Layers preserve the variance, normalisations are near 1, biases near 0 and frequencies up to 16, all in half
    precision. The bit generator is the one whose stream numpy keeps stable between versions.
    """
    source, weights = np.random.RandomState(0), {}
    for name, shape in shapes.items():
        units = torch.from_numpy(source.randint(-127, 128, shape)) / 127
        if name == "time_proj.weight":
            values = 16 * units
        elif len(shape) == 1:
            values = 0.1 * units + (name.endswith(".weight") and "norm" in name)
        else:
            values = units * (3 / units[0].numel()) ** 0.5
        weights[name] = values.half().float()
    return weights


class Harm:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def malicious(path: Path, mark: Path, weights: dict) -> None:
    """Writes a checkpoint as ``torch.save`` does, with these tensors and an object that creates ``mark``."""
    torch.save({**weights, "harm": Harm(mark)}, path)


def malicious_pickle(path: Path, mark: Path) -> None:
    """Writes a bare pickle that creates ``mark``."""
    path.write_bytes(pickle.dumps({"ema": Harm(mark)}))


def without_end(path: Path, share: float = 0.7) -> None:
    """Truncates a file to a fraction of its size."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
