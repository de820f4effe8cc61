"""Averages chosen after training: a profile of any width, by least squares over those that training kept.

    snapshots/step_00000100/  power-0.05.safetensors  power-0.1.safetensors  meta.json

    p(tau; t) = (gamma + 1) tau^gamma / t^(gamma + 1),  0 < tau < t
    min_c  integral (p - sum_k c_k p_k)^2 d tau,  sum_k c_k = 1

The shares c_k sum to 1, so that weights that no longer move stay as they are. The tracked profiles of a checkpoint
count as its last snapshot. A snapshot is a checkpoint of weights alone, written and read back as one.

Reference: Karras et al. 2024, sec. 3.2 and appendix C.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from score_sde.engine import checkpoint, ranks
from score_sde.engine.errors import CheckpointError
from score_sde.engine.training.ema import EMA, WIDEST, exponent
from score_sde.storage.writing import remove, rename

FOLDER = "snapshots"


PROFILE = "ema:"
"""How --weights names a profile, before its width."""


TOLERANCE = 0.1
"""Largest distance of a rebuilt profile from the one asked for, relative to its norm."""


class Snapshots:
    """Tracked profiles on the disk, at most ``most`` of them: where they would be more, every second one is dropped.

    Args:
        workdir: of the run.
        ema: the averages that are tracked.
        every: steps between two, as long as they are few.
        most: largest number kept.
        step: that training goes on from; later snapshots are dropped.
    """

    def __init__(self, workdir: Path, ema: EMA, every: int, most: int, step: int) -> None:
        self.folder, self.ema, self.every, self.most = workdir / FOLDER, ema, every, most
        self._drop(lambda found: found > step)

    def due(self, step: int) -> bool:
        """Whether a snapshot of this step is kept."""
        return bool(self.ema.profiles) and step % spacing(step, self.every, self.most) == 0

    def keep(self, step: int) -> None:
        """Write the profiles, and drop those that have come to lie too close."""
        checkpoint.save(self.folder, step, profiles(self.ema), {}, about(self.ema))
        apart = spacing(step, self.every, self.most)
        self._drop(lambda found: found % apart)

    def _drop(self, unwanted: Callable[[int], object]) -> None:
        for path in checkpoint.steps(self.folder) if ranks.rank() == 0 else []:
            if unwanted(int(path.name.removeprefix("step_"))):
                gone = path.with_name(f".{path.name}.former")  # half of it is no snapshot
                rename(path, gone)
                remove(gone)


def spacing(step: int, every: int, most: int) -> int:
    """Steps between the snapshots that are kept at a step: ``every``, doubled until at most ``most`` fit."""
    while step // every > most:
        every *= 2
    return every


def profiles(ema: EMA) -> dict[str, nn.Module]:
    """The tracked profiles, each under the name of its file."""
    return dict(zip(map(checkpoint.profile_file, ema.profiles), ema.networks[len(ema.rates) :], strict=True))


def about(ema: EMA) -> dict[str, object]:
    """What meta.json says of them: widths, and the updates that they end at."""
    return {"profiles": list(ema.profiles), "ema_updates": ema.num_updates}


class Kept(NamedTuple):
    """A profile that lies on the disk: where, its gamma, and the time that it ends at, in updates."""

    path: Path
    name: str
    gamma: float
    end: float


def load_weights(found: Path, weights: str, network: nn.Module) -> None:
    """Load the weights of a checkpoint that --weights names: ema | ema-RATE | ema:WIDTH | raw.

    Raises: CheckpointError for a damaged file, or a run without profiles; ValueError for what it does not keep.
    """
    if not weights.startswith(PROFILE):
        checkpoint.load_network(found, checkpoint.weights_file(checkpoint.read_meta(found), weights), network)
        return
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in network.parameters()]
    for kept, share in combination(found, weights):  # the checkpoint itself last, whose buffers remain
        checkpoint.load_network(kept.path, kept.name, network)
        for total, parameter in zip(sums, network.parameters(), strict=True):
            total.add_(parameter.detach().cpu().double(), alpha=share)
    with torch.no_grad():
        for total, parameter in zip(sums, network.parameters(), strict=True):
            parameter.copy_(total)


def digest(found: Path, weights: str) -> str:
    """SHA-256 of the file of these weights, or of files and shares that they are rebuilt from."""
    if not weights.startswith(PROFILE):
        meta = checkpoint.read_meta(found)
        return meta["sha256"][checkpoint.weights_file(meta, weights)]
    parts = [f"{checkpoint.read_meta(k.path)['sha256'][k.name]} {share!r}" for k, share in combination(found, weights)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def combination(found: Path, weights: str) -> list[tuple[Kept, float]]:
    """What a profile is rebuilt from, with the share of each; from the oldest to the newest, which is always there.

    Raises: CheckpointError for a run without profiles; ValueError for a width outside (0, WIDEST), or one that those
        on the disk do not tell.
    """
    sigma_rel = float(weights.removeprefix(PROFILE))
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(f"--weights {weights}: the width of a profile is above 0 and below {WIDEST:.3f}")
    basis = stored(found)
    if sigma_rel in checkpoint.read_meta(found)["profiles"]:
        return [next((k, 1.0) for k in reversed(basis) if k.name == checkpoint.profile_file(sigma_rel))]
    powers, end = [(k.gamma, k.end) for k in basis], basis[-1].end
    shares, error = fit(powers, (exponent(sigma_rel), end))
    if error > TOLERANCE:
        told = [width for width in np.linspace(0.005, 0.285, 57) if fit(powers, (exponent(width), end))[1] < TOLERANCE]
        near = f"; they tell widths from {told[0]:.3f} to {told[-1]:.3f}" if told else ""
        raise ValueError(
            f"--weights {weights}: the {len(basis)} profiles kept until then miss this one by {error:.0%}{near}; "
            "others need a smaller ema.snapshot_every or a larger ema.max_snapshots in training"
        )
    return list(zip(basis, shares, strict=True))


def stored(found: Path) -> list[Kept]:
    """The profiles of a checkpoint and of the snapshots before it, from the oldest to the newest.

    Raises: CheckpointError if it has none, or a snapshot is damaged.
    """
    last = checkpoint.read_meta(found)
    if not last.get("profiles"):
        raise CheckpointError(
            f"{found} has no profiles to rebuild others from: train with '--config.ema.profiles=(0.05,0.1)', "
            "or take --weights ema"
        )
    earlier = [(path, checkpoint.read_meta(path)) for path in checkpoint.steps(found.parent.parent / FOLDER)]
    metas = [(path, meta) for path, meta in earlier if meta["ema_updates"] < last["ema_updates"]] + [(found, last)]
    return [
        Kept(path, checkpoint.profile_file(width), exponent(width), meta["ema_updates"])
        for path, meta in metas
        for width in meta["profiles"]
    ]


def fit(basis: Sequence[tuple[float, float]], wanted: tuple[float, float]) -> tuple[list[float], float]:
    """Shares of the profiles (gamma, end), and the distance of their sum from the wanted one over its norm.

    Normal equations with the sum as a constraint, of profiles scaled to unit norm, in float64.
    """
    ends = np.array([*basis, wanted])
    table = inner_products(ends[:, None], ends[None])
    norms = np.sqrt(table.diagonal())
    table /= norms * norms[:, None]  # profiles of unit norm, so that shares scale by norms[-1] / norms
    gram, target, sums = table[:-1, :-1], table[:-1, -1], norms[-1] / norms[:-1]
    system = np.block([[gram, sums[:, None]], [sums[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]
    squared = 1 - 2 * target @ solution + solution @ gram @ solution
    return (solution * sums).tolist(), float(np.sqrt(max(squared, 0.0)))


def inner_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Integrals of the products of two profiles (gamma, end), which are the last axis.

    (g + 1) (h + 1) / (g + h + 1) (m / t)^(g + 1) (m / u)^(h + 1) / m,  m = min(t, u)
    """
    (g, t), (h, u) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    m = np.minimum(t, u)
    return (g + 1) * (h + 1) / (g + h + 1) * (m / t) ** (g + 1) * (m / u) ** (h + 1) / m
