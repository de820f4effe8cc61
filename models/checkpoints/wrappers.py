"""Wrappers that training code adds to a state dict: containers such as ``state_dict``, prefixes such as ``module.``.

{"state_dict": {"module.conv_in.weight": ...}}          Lightning, DataParallel
{"model": {...}, "ema": {"ema_model.conv_in.weight": ...}}
{"_orig_mod.conv_in.weight": ...}                       torch.compile
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

AVERAGED = {
    *("ema", "ema_model", "ema_network", "ema_params", "ema_state_dict"),
    *("averaged_model", "model_ema", "net_ema", "params_ema", "state_dict_ema"),
}
"""Names of containers and prefixes of averaged weights."""

WORDS = AVERAGED | {
    *("_forward_module", "_orig_mod", "denoiser", "diffusion_model", "model", "model_state_dict", "module", "net"),
    *("network", "online_model", "params", "shadow", "state_dict", "unet", "weights"),
}
"""Names of containers, and parts of prefixes."""


class Unwrapped(NamedTuple):
    """A state dict without its wrappers.

    Args:
        tensors: name within the network -> tensor, in the order of the file.
        wrapper: containers and prefix that were removed, as text; empty for none.
        choice: whether the file contains both averaged and raw weights.
    """

    tensors: dict[str, Tensor]
    wrapper: str
    choice: bool


def unwrap(content: Mapping[str, Any], marks: Sequence[str], weights: str = "ema") -> Unwrapped | None:
    """The state dict in the content of a file; None if it contains no network of the format.

    Args:
        marks: names of tensors that identify the format; a network has at least one of them.
        weights: ``ema`` prefers averaged weights, ``raw`` prefers the others.
    """
    found = list(_candidates(content, marks, ()))
    if not found:
        return None
    averaged = [candidate for candidate in found if candidate.averaged]
    others = [candidate for candidate in found if not candidate.averaged]
    chosen = (averaged or others if weights == "ema" else others or averaged)[0]
    prefix, size = chosen.prefix, len(chosen.prefix)
    tensors = {name[size:]: value for name, value in chosen.values.items() if name.startswith(prefix)}
    parts = [".".join(chosen.containers)] if chosen.containers else []
    parts += [f"names without {prefix!r}"] if prefix else []
    return Unwrapped(tensors, ", ".join(parts), bool(averaged and others))


class _Candidate(NamedTuple):
    containers: tuple[str, ...]
    prefix: str
    values: Mapping[str, Any]

    @property
    def averaged(self) -> bool:
        return bool(AVERAGED & {*self.containers, *self.prefix.split(".")})


def _candidates(content: Mapping[str, Any], marks: Sequence[str], containers: tuple[str, ...]) -> Iterator[_Candidate]:
    """Every network in a dict: at its top level, under each prefix, then in nested containers, up to two deep."""
    prefixes = dict.fromkeys(
        name.removesuffix(mark) for mark in marks for name in content if isinstance(name, str) and name.endswith(mark)
    )
    for prefix in prefixes:
        if prefix == "" or (prefix.endswith(".") and set(prefix[:-1].split(".")) <= WORDS):
            yield _Candidate(containers, prefix, content)
    for name, value in content.items():
        if name in WORDS and isinstance(value, Mapping) and len(containers) < 2:
            yield from _candidates(value, marks, (*containers, name))
