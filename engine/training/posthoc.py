"""Averages chosen after training: a profile of any width, by least squares over the stored ones.

    snapshots/step_00000100/  power-0.05.safetensors  power-0.1.safetensors  meta.json

    p(tau; t) = (gamma + 1) tau^gamma / t^(gamma + 1),  0 < tau < t
    min_c  integral (p - sum_k c_k p_k)^2 d tau,  sum_k c_k = 1

The coefficients c_k sum to 1, so constant weights are reproduced. The profiles of a checkpoint count as the last
snapshot. A snapshot is a checkpoint of weights only, written and read by the same functions.

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
"""Prefix of a profile's width in --weights."""


TOLERANCE = 0.1
"""Largest distance of a rebuilt profile from the requested one, relative to its norm."""


class Snapshots:
    """Stored profiles, at most ``most`` steps of them: beyond, every second one is deleted.

    Args:
        workdir: folder of the run.
        ema: the averages.
        every: steps between two snapshots until ``most`` is reached.
        most: largest number of snapshots.
        step: first step of training; later snapshots are deleted.
    """

    def __init__(self, workdir: Path, ema: EMA, every: int, most: int, step: int) -> None:
        self.folder, self.ema, self.every, self.most = workdir / FOLDER, ema, every, most
        self._drop(lambda found: found > step)

    def due(self, step: int) -> bool:
        """Returns whether this step has a snapshot."""
        return bool(self.ema.profiles) and step % spacing(step, self.every, self.most) == 0

    def keep(self, step: int) -> None:
        """Writes a snapshot and deletes those that are now too close."""
        checkpoint.save(self.folder, step, profiles(self.ema), {}, about(self.ema))
        apart = spacing(step, self.every, self.most)
        self._drop(lambda found: found % apart)

    def _drop(self, unwanted: Callable[[int], object]) -> None:
        for path in checkpoint.steps(self.folder) if ranks.rank() == 0 else []:
            if unwanted(int(path.name.removeprefix("step_"))):
                gone = path.with_name(f".{path.name}.former")  # a partly deleted folder is no snapshot
                rename(path, gone)
                remove(gone)


def spacing(step: int, every: int, most: int) -> int:
    """Steps between snapshots at a step: ``every``, doubled until at most ``most`` fit."""
    while step // every > most:
        every *= 2
    return every


def profiles(ema: EMA) -> dict[str, nn.Module]:
    """Returns the networks of the profiles by the names of their files."""
    return dict(zip(map(checkpoint.profile_file, ema.profiles), ema.networks[len(ema.rates) :], strict=True))


def about(ema: EMA) -> dict[str, object]:
    """Returns the values for meta.json: the widths and the number of updates."""
    return {"profiles": list(ema.profiles), "ema_updates": ema.num_updates}


class Kept(NamedTuple):
    """A stored profile: its folder and file, its gamma, and its end in updates."""

    path: Path
    name: str
    gamma: float
    end: float


def load_weights(found: Path, weights: str, network: nn.Module) -> None:
    """Loads the weights that --weights names: ema | ema-RATE | ema:WIDTH | raw.

    Raises: CheckpointError for a damaged file, or a run without profiles; ValueError for weights that are not stored.
    """
    if not weights.startswith(PROFILE):
        checkpoint.load_network(found, checkpoint.weights_file(checkpoint.read_meta(found), weights), network)
        return
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in network.parameters()]
    for kept, coefficient in combination(found, weights):  # the checkpoint is last, and its buffers remain
        checkpoint.load_network(kept.path, kept.name, network)
        for total, parameter in zip(sums, network.parameters(), strict=True):
            total.add_(parameter.detach().cpu().double(), alpha=coefficient)
    with torch.no_grad():
        for total, parameter in zip(sums, network.parameters(), strict=True):
            parameter.copy_(total)


def digest(found: Path, weights: str) -> str:
    """Returns the SHA-256 of the file of these weights, or of the files and coefficients of a combination."""
    if not weights.startswith(PROFILE):
        meta = checkpoint.read_meta(found)
        return meta["sha256"][checkpoint.weights_file(meta, weights)]
    parts = [f"{checkpoint.read_meta(k.path)['sha256'][k.name]} {c!r}" for k, c in combination(found, weights)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def combination(found: Path, weights: str) -> list[tuple[Kept, float]]:
    """Returns the stored profiles and coefficients that rebuild a profile, from the oldest to the newest.

    Raises: CheckpointError for a run without profiles; ValueError for a width outside (0, WIDEST), or one that the
        stored profiles approximate with an error above ``TOLERANCE``.
    """
    sigma_rel = float(weights.removeprefix(PROFILE))
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(f"--weights {weights}: the width of a profile is above 0 and below {WIDEST:.3f}")
    basis = stored(found)
    if sigma_rel in checkpoint.read_meta(found)["profiles"]:
        return [next((k, 1.0) for k in reversed(basis) if k.name == checkpoint.profile_file(sigma_rel))]
    powers, end = [(k.gamma, k.end) for k in basis], basis[-1].end
    coefficients, error = fit(powers, (exponent(sigma_rel), end))
    if error > TOLERANCE:
        widths = [
            width for width in np.linspace(0.005, 0.285, 57) if fit(powers, (exponent(width), end))[1] < TOLERANCE
        ]
        near = f"; they give widths from {widths[0]:.3f} to {widths[-1]:.3f}" if widths else ""
        raise ValueError(
            f"--weights {weights}: the {len(basis)} profiles kept until then miss this one by {error:.0%}{near}; "
            "others need a smaller ema.snapshot_every or a larger ema.max_snapshots in training"
        )
    return list(zip(basis, coefficients, strict=True))


def stored(found: Path) -> list[Kept]:
    """Returns the profiles of a checkpoint and of the snapshots before it, from the oldest to the newest.

    Raises: CheckpointError if the checkpoint has none, or a snapshot is damaged.
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
    """Returns the coefficients of the profiles (gamma, end), and the relative error of their combination.

    Solves the normal equations with the sum as a constraint, for profiles scaled to unit norm, in float64.
    """
    ends = np.array([*basis, wanted])
    table = inner_products(ends[:, None], ends[None])
    norms = np.sqrt(table.diagonal())
    table /= norms * norms[:, None]  # profiles of unit norm: coefficients scale by norms[-1] / norms
    gram, target, sums = table[:-1, :-1], table[:-1, -1], norms[-1] / norms[:-1]
    system = np.block([[gram, sums[:, None]], [sums[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]
    squared = 1 - 2 * target @ solution + solution @ gram @ solution
    return (solution * sums).tolist(), float(np.sqrt(max(squared, 0.0)))


def inner_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the integrals of the products of two profiles; the last axis of each array is (gamma, end).

    (g + 1) (h + 1) / (g + h + 1) (m / t)^(g + 1) (m / u)^(h + 1) / m,  m = min(t, u)
    """
    (g, t), (h, u) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    m = np.minimum(t, u)
    return (g + 1) * (h + 1) / (g + h + 1) * (m / t) ** (g + 1) * (m / u) ** (h + 1) / m
