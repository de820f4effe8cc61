"""Non-finite training steps: skipped, counted and saved for inspection; too many in a row end the run."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from score_sde.engine import ranks
from score_sde.engine.files import write_json
from score_sde.sde_lib import NonFiniteError
from score_sde.storage.writing import replace

MOST_KEPT = 3


class NonFiniteSteps:
    """Count of the non-finite steps, and their files.

    Args:
        folder: for the inputs and weights of the first ``MOST_KEPT`` of them.
        most: largest number in a row; the next one ends the run.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.count = self.in_a_row = 0

    def note(self, finite: bool) -> None:
        """Counts one step."""
        self.count += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1

    @property
    def too_many(self) -> bool:
        """Whether more than ``most`` steps in a row were non-finite."""
        return self.in_a_row > self.most

    def keep(self, step: int, inputs: Mapping[str, Tensor], network: nn.Module, facts: Mapping[str, float]) -> None:
        """Writes the inputs of a step, a file per process, and the weights, for inspection."""
        folder = self.folder / f"step_{step:08d}"
        if len(set(self.folder.glob("step_*")) - {folder}) >= MOST_KEPT:
            return
        _write(folder / f"inputs-{ranks.rank()}.safetensors", inputs)
        if ranks.rank() == 0:
            _write(folder / "weights.safetensors", network.state_dict())
            finite = {key: value if math.isfinite(value) else str(value) for key, value in facts.items()}
            write_json(folder / "facts.json", {"step": step, **finite})

    def state_dict(self) -> dict[str, int]:
        """Returns the counts, for a checkpoint."""
        return {"count": self.count, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restores the counts of a ``state_dict``."""
        self.count, self.in_a_row = state["count"], state["in_a_row"]


def first_nonfinite_layer(network: nn.Module, loss: Callable[[], Tensor]) -> str:
    """Recomputes the loss of a batch and describes the first non-finite layer, or the first non-finite gradient.

    Args:
        loss: computes the loss with the network, which keeps the gradients.
    """
    found = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                given = any(isinstance(arg, Tensor) and not torch.isfinite(arg).all() for arg in args)
                found.append(f"{name} ({type(module).__name__})" + ", from an input that is not finite" * given)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    try:
        value = loss()
        value.backward()
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"the first layer whose output is not finite is {found[0]}"
    if not torch.isfinite(value):
        return "all layers' outputs are finite, the loss is not"
    odd = [name for name, p in network.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    if odd:
        return f"outputs and loss are finite, the gradient of {odd[-1]} is not"
    return "taken again, all numbers are finite"


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    content = save_tensors({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    replace(path, lambda file: file.write(content))


def stop(skipped: NonFiniteSteps, step: int, where: str, newest: Path | None) -> NonFiniteError:
    """Returns the error that ends a run. The newest checkpoint may already contain the weights of these steps."""
    kept = f"; {newest} is the newest checkpoint" if newest else ""
    return NonFiniteError(
        f"loss or gradient not finite at step {step}, the last of {skipped.in_a_row} in a row (train.max_skipped "
        f"{skipped.most}): {where}{kept}, inputs and weights are in {skipped.folder}; train in another --workdir with "
        "a lower optim.learning_rate, or with train.precision=float32"
    )
