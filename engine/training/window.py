"""Steps since the last line of metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from score_sde.engine.training.trainer import StepResult, Trainer


class Window:
    """Steps since the last line of metrics: their mean loss and their speed without pauses.

    Attributes:
        note: mean loss of the last closed window, for the progress bar.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.note = trainer, ""
        self.at_once = trainer.experiment.device.type == "cpu"  # where reading a result does not wait
        self._open()
        if losses := trainer.window_state.get("losses"):
            norms, rates = (trainer.window_state[key] for key in ("gradient_norms", "learning_rates"))
            self.results = [
                StepResult(torch.tensor(loss), torch.tensor(norm), rate)
                for loss, norm, rate in zip(losses, norms, rates, strict=True)
            ]
            self.seen = len(losses)

    def add(self, result: StepResult) -> None:
        """Adds the step that the trainer has just taken."""
        self.results.append(result)
        if self.at_once:
            self.look()

    def look(self) -> None:
        """Passes the steps since the last call to ``Trainer.look``, which counts non-finite ones.

        Raises: NonFiniteError after too many non-finite steps in a row.
        """
        new = self.results[self.seen :]
        begin, self.seen = self.trainer.step - len(new), len(self.results)
        if new:
            finite = torch.isfinite(torch.stack([r.loss + r.gradient_norm for r in new])).tolist()
            for k, result in enumerate(new):
                self.trainer.look(begin + k, result, finite[k])

    def close(self) -> dict[str, float]:
        """Returns the values of a line of metrics and opens a new window. The loss is the mean over finite steps."""
        numbers = torch.stack([r.loss + 0 * r.gradient_norm for r in self.results])
        loss = numbers[torch.isfinite(numbers)].mean().item()
        self.note = f"loss {loss:.4f}"
        num = len(self.results) * self.trainer.config.train.batch_size
        line = {
            "loss": loss,
            "gradient_norm": self.results[-1].gradient_norm.item(),
            "learning_rate": self.results[-1].learning_rate,
            "skipped_steps": self.trainer.nonfinite.count,
            "images_per_second": num / (time.perf_counter() - self.start),
        }
        self._open()
        return line

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stops the clock within the context."""
        begin = time.perf_counter()
        yield
        self.start += time.perf_counter() - begin

    def state_dict(self) -> dict[str, list[float]]:
        """Returns the steps of the open window, for a checkpoint."""
        return {
            "losses": [r.loss.item() for r in self.results],
            "gradient_norms": [r.gradient_norm.item() for r in self.results],
            "learning_rates": [r.learning_rate for r in self.results],
        }

    def _open(self) -> None:
        self.results, self.seen, self.start = [], 0, time.perf_counter()
