"""CLIP models as transformers keeps them in a folder: embeddings of encoded pictures and of texts, in one space."""

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
"""Of the colours that the published models see, for folders that do not say."""

TOKENIZERS = ("tokenizer.json", "vocab.json")


class Clip:
    """The two encoders of a CLIPModel; nothing of it learns.

    Args:
        model: a CLIPModel.
        tokenize: from a text to the numbers of its tokens.
        mean, std: of the colours that the model sees, three each.
        low: what black is in encoded pictures; white is 1.
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
        """The model in a folder; nothing is fetched, and nothing in the folder is executed.

        Raises: ForeignError where transformers is not installed, or the folder holds no such model in safetensors.
        """
        if not (folder / "config.json").is_file():
            raise ForeignError(f"{folder} is no folder with a CLIPModel: config.json is missing")
        kind = read_json(folder / "config.json").get("model_type")
        if kind != "clip":
            raise ForeignError(f"{folder} holds a model of the type {kind!r}, not 'clip': give a folder of a CLIPModel")
        if not list(folder.glob("*.safetensors")):
            raise ForeignError(
                f"{folder} holds no .safetensors, and pickles are not read: save it again with transformers"
            )
        if not any((folder / name).is_file() for name in TOKENIZERS):
            raise ForeignError(f"{folder} has no tokenizer ({' or '.join(TOKENIZERS)}): save that beside the model")
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
            loaded: Any = CLIPModel.from_pretrained(  # a pair, which transformers does not state
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            model, told = loaded
            if told["missing_keys"]:
                raise KeyError(f"no {min(told['missing_keys'])}")
            odd = next((name for name, value in model.state_dict().items() if not value.isfinite().all()), None)
            if odd:
                raise ValueError(f"{odd} holds NaN or infinite numbers")
            tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
            seen = read_json(folder / "preprocessor_config.json")
            mean, std = tuple(seen.get("image_mean", MEAN)), tuple(seen.get("image_std", STD))
            return cls(model.float().to(device), lambda text: tokenizer(text)["input_ids"], mean, std, low)
        except Exception as error:  # transformers raises errors of many kinds on damaged files
            if reason := obstacle(error):
                raise ForeignError(f"{getattr(error, 'filename', None) or folder} cannot be read: {reason}") from error
            reason = " ".join(str(error).split())[:120]
            raise ForeignError(f"{folder} holds no CLIPModel that can be read ({reason}): fetch it again") from error

    @property
    def sharpness(self) -> float:
        """The inverse temperature of dot products."""
        return self.model.logit_scale.exp().item()

    def image(self, x: Tensor) -> Tensor:
        """Unit vectors of encoded pictures, differentiable in them.

        Shapes: x (B, C, H, W), C 1 or 3; returns (B, D).
        """
        side = self.model.config.vision_config.image_size
        colours = ((x - self.low) / (1 - self.low)).expand(-1, 3, -1, -1)
        height, width = (round(side * length / min(x.shape[2:])) for length in x.shape[2:])
        large = F.interpolate(colours, (height, width), mode="bicubic", antialias=True)
        top, left = (height - side) // 2, (width - side) // 2
        seen = (large[..., top : top + side, left : left + side] - self.mean) / self.std
        pooled = self.model.vision_model(pixel_values=seen).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=1)

    def text(self, text: str) -> Tensor:
        """The unit vector of a text, (1, D).

        Raises: ValueError for a text that is empty or longer than the model reads.
        """
        tokens, most = self.tokenize(text), self.model.config.text_config.max_position_embeddings
        if not text.strip() or len(tokens) > most:
            raise ValueError(
                f"the text {text[:40]!r} has {len(tokens)} tokens: need a word at least and {most} at most"
            )
        pooled = self.model.text_model(input_ids=torch.tensor([tokens], device=self.mean.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=1)


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON file; none where there is no file.

    Raises: ForeignError for one that is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise ForeignError(f"{path} is damaged: fetch it again") from error
    return found if isinstance(found, dict) else {}
