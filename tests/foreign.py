"""What the tests of readers share: networks from what they read, deviations, and files that do harm."""

import pickle
from pathlib import Path

import numpy as np
import torch
from parity.recordings import COMPLETE, COPIES

from score_sde.models import NETWORKS
from score_sde.models.checkpoints.foreign import Foreign
from score_sde.sde_lib import SDES, Denoiser


def recorded(folder: str) -> list[Path]:
    """The folders of weights and answers of references below ``folder``: complete recordings, and the copies here."""
    found = {path.parent.name: path.parent for top in (COPIES, COMPLETE) for path in (top / folder).glob("*/io.npz")}
    return [found[name] for name in sorted(found)]


def network(foreign: Foreign) -> torch.nn.Module:
    """The network with the weights that were read; it takes no others."""
    options = dict(foreign.config["network"])
    made = NETWORKS[options.pop("name")](foreign.shape, **options)
    made.load_state_dict(foreign.weights)
    return made.eval().requires_grad_(False)


def denoiser(foreign: Foreign) -> Denoiser:
    """The network as a denoiser of its process."""
    options = dict(foreign.config["sde"])
    return Denoiser(network(foreign), SDES[options.pop("name")](**options), **foreign.config["denoiser"])


def drawn(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights of a network that is too large to be stored: the same numbers on every machine, from a few integers.

    Layers keep the variance, normalisations are near 1, biases near 0 and frequencies up to 16, all in half precision.
    Of numpy's streams it is the one that is kept from version to version.
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
    """What would make a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def malicious(path: Path, mark: Path, weights: dict) -> None:
    """Write a checkpoint as ``torch.save`` does, with these tensors and something that makes ``mark``."""
    torch.save({**weights, "harm": Harm(mark)}, path)


def malicious_pickle(path: Path, mark: Path) -> None:
    """Write a bare pickle that makes ``mark``."""
    path.write_bytes(pickle.dumps({"ema": Harm(mark)}))


def without_end(path: Path, share: float = 0.7) -> None:
    """Cut a file off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
