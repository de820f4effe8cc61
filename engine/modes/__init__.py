"""One file for each value of ``--mode``: settings, a call of the library, the result; and the record of each mode."""

from collections.abc import Sequence
from dataclasses import dataclass

from score_sde.engine.recipe import MODEL, RECIPE


@dataclass(frozen=True)
class Mode:
    """A value of ``--mode``.

    Args:
        module: has run(config, workdir, options); imported when the mode runs.
        follows: sections of the config whose paths the mode follows.
        agrees: sections and keys that must agree with the config of the run.
        base: default of --config for a mode that starts from no run; None for a mode on a run.
        shared: whether the processes of torchrun share the work; else the first process does all of it.
        tunes: whether the mode draws samples, so that --tune can fit the sampler first.
        batch_size: key that --batch_size sets; empty for a mode without batches.
        num_samples: key that --num_samples sets.
    """

    module: str
    follows: Sequence[str] = ()
    agrees: Sequence[str] = MODEL
    base: str | None = None
    shared: bool = False
    tunes: bool = False
    batch_size: str = ""
    num_samples: str = "sample.num_samples"


DRAWING = ("data", "sample", "guidance", "evaluate")

MODES = {
    "train": Mode(
        "score_sde.engine.modes.train",
        follows=("data", "loss", "train", "sample"),
        agrees=RECIPE,
        shared=True,
        batch_size="train.batch_size",
    ),
    "sample": Mode(
        "score_sde.engine.modes.sample",
        follows=("sample", "guidance"),
        shared=True,
        tunes=True,
        batch_size="sample.batch_size",
    ),
    "tune": Mode("score_sde.engine.modes.tune", follows=("sample",), batch_size="sample.batch_size"),
    "likelihood": Mode(
        "score_sde.engine.modes.likelihood", follows=("data",), shared=True, batch_size="likelihood.batch_size"
    ),
    "bound": Mode("score_sde.engine.modes.bound", follows=("data",), shared=True, batch_size="bound.batch_size"),
    "evaluate": Mode(
        "score_sde.engine.modes.evaluate",
        follows=DRAWING,
        shared=True,
        tunes=True,
        batch_size="evaluate.batch_size",
        num_samples="evaluate.num_samples",
    ),
    "sweep": Mode(
        "score_sde.engine.modes.sweep",
        follows=DRAWING,
        batch_size="evaluate.batch_size",
        num_samples="evaluate.num_samples",
    ),
    "profiles": Mode("score_sde.engine.modes.profiles", follows=("data",), agrees=(*MODEL, "loss", "train.dequantize")),
    "edit": Mode(
        "score_sde.engine.modes.edit", follows=("data", "sample", "guidance", "edit"), batch_size="edit.batch_size"
    ),
    "data": Mode("score_sde.engine.modes.data", follows=("data",)),
    "import": Mode("score_sde.engine.modes.import_", base="cifar10"),
    "export": Mode("score_sde.engine.modes.export"),
    "selftest": Mode("score_sde.selftest.mode", base="default"),
}
"""Value of ``--mode`` -> its record."""
