"""Readers of published weights: each converts a foreign file to a config and weights of the toolkit."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

from score_sde.models.checkpoints import diffusers, edm, guided_diffusion, safe, score_sde
from score_sde.models.checkpoints.foreign import Foreign, guarded
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.checkpoints.wrappers import unwrap

FORMATS: dict[str, Callable[..., Foreign]] = {
    "score_sde": guarded(score_sde.read),
    "edm": guarded(edm.read),
    "guided_diffusion": guarded(guided_diffusion.read),
    "diffusers": guarded(diffusers.read),
}
"""Format -> reader ``(path, weights="ema" | "raw") -> Foreign``."""

MARKS = {
    "edm": "model.map_layer0.weight",
    "guided_diffusion": "time_embed.0.weight",
    "diffusers": "conv_in.weight",
}
"""Format -> the name of a tensor in every state dict of it."""

ENDINGS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".pkl")
"""Suffixes of weight files."""


def recognise(path: str | PathLike[str]) -> tuple[str, Path]:
    """The format of a file or folder, detected from its content, and the path to pass to the reader.

    A folder is in diffusers' format or contains one weight file; a weight file of diffusers stands for its folder.
    ``.pkl`` files belong to EDM, whose reader refuses them with a recipe. Wrappers around a state dict are ignored.

    Raises: ForeignError for a path that is missing, cannot be read safely, or has an unknown format.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "model_index.json").is_file() or any((path / name).is_file() for name in diffusers.WEIGHTS):
            return "diffusers", path
        found = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
        if len(found) != 1:
            has = ", ".join(file.name for file in found[:3]) or "none"
            raise ForeignError(f"{path} is not a diffusers folder, and its weight files are: {has}; give one file")
        path = found[0]
    if path.suffix == ".pkl" and path.is_file():
        return "edm", path
    content = safe.read(path)
    if score_sde.recognises(content):
        return "score_sde", path
    for name, mark in MARKS.items():
        if unwrap(content, [mark]):
            return name, path.parent if path.name in diffusers.WEIGHTS and name == "diffusers" else path
    has = ", ".join(str(name)[:80] for name in list(content)[:3]) or "nothing"
    raise ForeignError(f"{path} is of none of the formats {', '.join(FORMATS)}: it has {has}; check which file it is")


__all__ = ["ENDINGS", "FORMATS", "MARKS", "Foreign", "ForeignError", "recognise"]
