"""The editing tasks by name: inverse problems, image-to-image, latents and interpolation."""

from score_sde.engine.edit_task import Task
from score_sde.engine.image_to_image import SDEdit, Translate
from score_sde.engine.inverse_problems import INVERSE_PROBLEMS
from score_sde.engine.latents import Decode, Encode, Interpolate

TASKS: dict[str, type[Task]] = {
    "interpolate": Interpolate,
    "encode": Encode,
    "decode": Decode,
    **INVERSE_PROBLEMS,
    "sdedit": SDEdit,
    "translate": Translate,
}
"""Value of ``--task`` -> the class of the task."""
