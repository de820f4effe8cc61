"""CLIP models from a folder of transformers: embeddings of encoded images and of texts in one space."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from score_sde.models.checkpoints.safe import ForeignError
from score_sde.storage.reading import half_of_memory, obstacle, open_file, read_text

if TYPE_CHECKING:
    from transformers import CLIPModel

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Moments of the input colours of the published models, used for folders that do not give their own."""

TOKENIZERS = ("tokenizer.json", "vocab.json")


class Clip:
    """The image and text encoders of a CLIPModel, with frozen weights.

    Args:
        model: a CLIPModel.
        tokenize: maps a text to its token numbers.
        mean, std: moments of the model's input colours, three each.
        low: value of black in encoded images; white is 1.
    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
        arXiv:2103.00020
    """

    def __init__(
        self,
        model: "CLIPModel",
        tokenize: Callable[[str], list[int]],
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
        low: float = -1.0,
    ) -> None:
        self.model, self.tokenize, self.low = model.eval().requires_grad_(False), tokenize, low
        device = model.logit_scale.device
        self.mean, self.std = (torch.tensor(values, device=device).reshape(3, 1, 1) for values in (mean, std))

    @classmethod
    def load(cls, folder: Path, device: torch.device, low: float = -1.0) -> "Clip":
        """Loads the model of a folder, without downloads and without executing anything in the folder.

        Raises: ForeignError if transformers is not installed, or the folder contains no CLIPModel in safetensors.
        """
        if not (folder / "config.json").is_file():
            raise ForeignError(f"{folder} does not contain a CLIPModel: config.json is missing")
        kind = read_json(folder / "config.json").get("model_type")
        if kind != "clip":
            raise ForeignError(
                f"{folder} contains a model of type {kind!r}, not 'clip': give the folder of a CLIPModel"
            )
        if not list(folder.glob("*.safetensors")):
            raise ForeignError(
                f"{folder} contains no .safetensors, and pickles are not read: save it again with transformers"
            )
        if not any((folder / name).is_file() for name in TOKENIZERS):
            raise ForeignError(
                f"{folder} has no tokenizer ({' or '.join(TOKENIZERS)}): save it in the folder of the model"
            )
        if find_spec("transformers") is None:
            raise ForeignError(f"{folder} needs transformers, which is not installed: pip install transformers")
        from transformers import CLIPModel, CLIPTokenizer
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()
        try:
            for file in folder.iterdir():  # transformers would open a pipe or a device
                if not file.is_dir():
                    open_file(file, half_of_memory() if file.suffix == ".safetensors" else math.inf).close()
            loaded: Any = CLIPModel.from_pretrained(  # a pair, which the annotations of transformers do not state
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            model, info = loaded
            if info["missing_keys"]:
                raise KeyError(f"no {min(info['missing_keys'])}")
            odd = next((name for name, value in model.state_dict().items() if not value.isfinite().all()), None)
            if odd:
                raise ValueError(f"{odd} contains NaN or infinity")
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
            preprocessing = read_json(folder / "preprocessor_config.json")
            mean, std = (
                tuple(preprocessing.get(f"image_{key}", usual)) for key, usual in (("mean", MEAN), ("std", STD))
            )
            return cls(model.float().to(device), lambda text: tokenizer(text)["input_ids"], mean, std, low)
        except Exception as error:  # transformers raises errors of many kinds on damaged files
            if reason := obstacle(error):
                raise ForeignError(f"{getattr(error, 'filename', None) or folder} cannot be read: {reason}") from error
            reason = " ".join(str(error).split())[:120]
            raise ForeignError(f"{folder} contains no readable CLIPModel ({reason}): download it again") from error

    @property
    def sharpness(self) -> float:
        """The inverse temperature of dot products."""
        return self.model.logit_scale.exp().item()

    def image(self, x: Tensor) -> Tensor:
        """Unit vectors of encoded images, differentiable with respect to the images.

        Shapes: x (B, C, H, W), C 1 or 3; returns (B, D).
        """
        side = self.model.config.vision_config.image_size
        colours = ((x - self.low) / (1 - self.low)).expand(-1, 3, -1, -1)
        height, width = (round(side * length / min(x.shape[2:])) for length in x.shape[2:])
        large = F.interpolate(colours, (height, width), mode="bicubic", antialias=True)
        top, left = (height - side) // 2, (width - side) // 2
        normalised = (large[..., top : top + side, left : left + side] - self.mean) / self.std
        pooled = self.model.vision_model(pixel_values=normalised).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=1)

    def text(self, text: str) -> Tensor:
        """The unit vector of a text, (1, D).

        Raises: ValueError for a text that is empty or exceeds the context length of the model.
        """
        tokens, most = self.tokenize(text), self.model.config.text_config.max_position_embeddings
        if not text.strip() or len(tokens) > most:
            raise ValueError(
                f"the text {text[:40]!r} has {len(tokens)} tokens: need at least one word and at most {most} tokens"
            )
        pooled = self.model.text_model(input_ids=torch.tensor([tokens], device=self.mean.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=1)


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file; an empty dict if the file is missing.

    Raises: ForeignError for a damaged file.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ForeignError(f"{path} is damaged: download it again") from error
    return found if isinstance(found, dict) else {}
