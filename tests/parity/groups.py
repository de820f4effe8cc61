"""All groups of comparisons and the sources of their numbers."""

from typing import NamedTuple

from parity import diffusers, edm, guided_diffusion, score_sde
from parity.recordings import Group


class Source(NamedTuple):
    """A reference implementation: its address, the commit that was run, and its licence."""

    repository: str
    version: str
    licence: str


SOURCES = {
    "score_sde": Source("yang-song/score_sde_pytorch", "cb1f359f4aadf0ff9a5e122fe8fffc9451fd6e44", "Apache-2.0"),
    "edm": Source("NVlabs/edm", "008a4e5316c8e3bfe61a62f874bddba254295afb", "CC BY-NC-SA 4.0"),
    "guided-diffusion": Source("openai/guided-diffusion", "22e0df8183507e13a7813f8d38d51b072ca1e67c", "MIT"),
    "diffusers": Source("huggingface/diffusers", "0.42.1", "Apache-2.0"),
}

GROUPS: tuple[Group, ...] = (
    *score_sde.GROUPS,
    *edm.GROUPS,
    *guided_diffusion.GROUPS,
    *diffusers.GROUPS,
)
