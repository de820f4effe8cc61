"""Score-based generative models through stochastic differential equations.

usage: python run.py --config NAME --mode MODE [flags] [--config.KEY=VALUE ...]
       (configs/default.py lists every KEY with its unit; the options of a name are in its docstring)

examples:
  python run.py --config vpsde --mode train                             train on the digits, into runs/vpsde
  python run.py --config vpsde --mode sample --sampler pc               draw digits by predictor-corrector
  python run.py --workdir runs/vpsde --mode sample --num_samples 16     the same run, found by its folder
  python run.py --config vpsde --mode sample --sampler ode --log_prob   digits, each with its log-density
  python run.py --config vpsde --mode tune --steps 10                   fit ten steps to the network, for good
  python run.py --config vpsde --mode likelihood                        bits per dimension of held-out digits
  python run.py --config iddpm --mode bound                             a bound on them by the chain, level by level
  python run.py --config vpsde --mode evaluate --sampler heun           comparison of samples with real digits
  python run.py --config conditional --mode sample --label 3            threes, by a class-conditional run
  python run.py --config conditional --mode sweep                       fidelity and diversity by guidance scale
  python run.py --config vpsde --mode profiles                          validation loss of each average of the weights
  python run.py --config vpsde --mode edit --task superres              held-out digits from their coarse pixels
  python run.py --config vpsde --mode edit --task interpolate           paths between two held-out digits
  python run.py --config vpsde --mode edit --task encode                held-out digits to their latents, and back
  python run.py --config vpsde --mode train --workdir runs/long         the same again, elsewhere
  python run.py --config vesde --mode train --config.sde.sigma_max=20   any key of the config
  python run.py --mode selftest --dtype float64                         measure the library against closed forms
  python run.py --mode import --source edm-cifar10.pt                   somebody else's weights, into runs/edm-cifar10
  python run.py --workdir runs/mine --mode export --format diffusers    a run of the network ddpm or adm, for diffusers
  python run.py --config mnist --mode data --config.data.path=photos    look at images of your own
  python run.py --config mnist --mode train --config.data.path=photos   train on them

exit status:
  0 done; 1 unexpected, or a check of the selftest failed; 2 wrong usage or config; 3 data, checkpoint or disk;
  4 numbers that are not finite; 5 a solver did not converge; 129 hung up, 130 interrupted, 141 output closed,
  143 terminated
"""

if __name__ == "__main__":  # before the imports that take a second
    from score_sde.engine.terminal import end_on_interrupt

    end_on_interrupt()

import dataclasses
import functools
import importlib
import os
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from score_sde.configs.default import Config
from score_sde.configs.sections import frozen
from score_sde.engine.commands import PROGRAM
from score_sde.engine.config import Options, names, read_run, to_json
from score_sde.engine.errors import describe, exit_status
from score_sde.engine.malloc import keep_freed
from score_sde.engine.modes import MODES
from score_sde.engine.resolve import again, changes_of, registered_elsewhere, resolve, single
from score_sde.engine.terminal import drop_output, flush_output, open_output, raise_on_interrupt
from score_sde.storage.naming import UnknownName, printable, unknown
from score_sde.storage.writing import confined

WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
"""Threads that wait for each other spin for some microseconds and then sleep: longer, and others on the machine pay for
it; less, and they are slow to wake (docs/scaling.md). OpenMP reads it when torch is imported."""

if not WAITING.keys() & os.environ.keys():
    os.environ.update(WAITING)

WEIGHTS = re.compile(r"ema|raw|ema[-:]\d*\.?\d+(e-?\d+)?")
"""Values of --weights."""

SHORTHANDS = {
    "sampler": "sample.sampler",
    "steps": "sample.steps",
    "label": "sample.label",
    "task": "edit.task",
    "seed": "seed",
    "device": "device",
}
"""Flags that set a key of the config in every mode; ``Mode`` has those that depend on it."""


def define_flags() -> flags.FlagValues:
    """All flags, in the order in which --help shows them."""
    values = flags.FlagValues()
    text, number, choice, switch = (
        functools.partial(define, flag_values=values)
        for define in (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum, flags.DEFINE_boolean)
    )
    text("config", None, f"{' | '.join(names())}, or the path of a .py or of a run's .json")
    text("mode", None, " | ".join(MODES))
    text("workdir", None, "folder of the run (default: runs/<name of the config>)")
    text("sampler", None, "adams, pc, ddim, ode, ... (default: sample.sampler of the config)")
    number("steps", None, "moves from noise to data (default: sample.steps)", lower_bound=1)
    number("num_samples", None, "how many to draw (default: sample.num_samples)", lower_bound=1)
    number("batch_size", None, "examples at a time (default: batch_size of the mode's section)", lower_bound=1)
    text("label", None, "class to draw: its number or name, or all (default: sample.label of the config)")
    number("seed", None, "of everything random (default: seed of the config)", lower_bound=0)
    text("device", None, "auto | cpu | cuda | mps ... (default: device of the config)")
    text(
        "weights",
        Options.weights,
        "ema | raw | ema-RATE | ema:WIDTH, averages, or the weights of the last step",
    )
    must = "must be <ema|raw>, ema-0.999 for the average of that rate, or ema:0.05 for the profile of that width"
    flags.register_validator("weights", WEIGHTS.fullmatch, must, flag_values=values)
    choice("split", None, ["train", "test"], "which examples to take (default: by the mode)")
    choice("tune", None, ["grid"], "first fit times and coefficients of the sampler to the run, as --mode tune")
    text(
        "task",
        None,
        "task of the mode edit: inpaint | superres | sdedit | translate | interpolate | encode | ...",
    )
    switch("log_prob", False, "the log-density of each sample, for --sampler ode")
    choice("dtype", Options.dtype, ["float32", "float64"], "numbers that the selftest computes with")
    text("checkpoint", None, "step or folder of a checkpoint (default: the newest)")
    text("source", None, "of the mode import: file or folder of score_sde, edm, guided_diffusion or diffusers")
    text("format", None, "of the mode export: diffusers")
    switch("allow_changes", False, "use or train a run with other values than it was trained with, and record them")
    switch("debug", False, "show the traceback of an error")
    return values


def help_text() -> str:
    """The text of --help: the docstring above, with the flags."""
    usage, examples = __doc__.split("examples:\n")
    values = define_flags()
    lines = [
        textwrap.fill(f"  --{name:<12} {values[name].help}", 120, subsequent_indent=" " * 17, break_on_hyphens=False)
        for name in values
    ]
    text = f"{usage}flags:\n" + "\n".join(lines) + f"\n\nexamples:\n{examples}"
    return text.replace("python run.py", PROGRAM)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments without --config.KEY=VALUE and --config.KEY VALUE, and these as (key, text) pairs."""
    rest, changes = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            text = next(words, "--")
            if text.startswith("--"):
                raise ValueError(f"{word} has no value; write {word}=VALUE")
        changes.append((key, text))
    return rest, changes


def run(argv: Sequence[str]) -> None:
    """Run one command: its flags give the config, and its mode does the work."""
    values, changes = parse(argv)
    config, workdir, options = prepare(values, changes)
    mode = MODES[values.mode]
    ranks = importlib.import_module("score_sde.engine.ranks")  # late: it imports torch
    ranks.check_environment()
    if not mode.shared and ranks.leave_to_first():
        return
    ranks.check_alike("configs", f"{to_json(config)}{options}".encode(errors="surrogateescape"))
    settings = frozen(Config, config)
    try:
        if values.tune:
            if ranks.rank() == 0:
                start("tune", settings, workdir, options)
            ranks.wait_for_all()
            settings = importlib.import_module("score_sde.engine.sampler").by_plan(settings)
        start(values.mode, settings, workdir, options)
    except UnknownName as error:
        hint = "" if values.config or mode.base else registered_elsewhere(error, read_run(workdir))
        raise ValueError(hint) if hint else error from None
    except (RuntimeError, MemoryError) as error:
        memory = importlib.import_module("score_sde.engine.memory")
        if not memory.ran_out(error):
            raise
        raise memory.explained(values.mode, settings, error) from error
    except OSError as error:
        if error.filename is not None:
            raise
        # An error of a write to a full disk names no file.
        raise OSError(error.errno or 0, error.strerror or str(error), str(workdir)) from error


def parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[tuple[str, str]]]:
    """The flags of a command, and the (key, text) pairs that they and --config.KEY=VALUE set.

    Raises: ValueError for unknown flags, and flags that the mode does not take.
    """
    rest, changes = split_overrides(argv)
    values = define_flags()
    try:
        _, *extra = values(rest)
    except flags.Error as error:
        raise ValueError(f"{error} (see --help)") from None
    except RecursionError:  # absl compares an unknown name with all known ones recursively
        raise ValueError("a flag has a name of hundreds of letters, which none has (see --help)") from None
    if extra:
        raise ValueError(f"unexpected argument {extra[0]!r}; flags begin with -- (see --help)")
    if values.mode not in MODES:
        raise unknown("mode", values.mode, MODES) if values.mode else ValueError(f"give --mode ({' | '.join(MODES)})")
    mode = MODES[values.mode]
    if values.tune and not mode.tunes:
        others = " or ".join(sorted(name for name, other in MODES.items() if other.tunes))
        raise ValueError(f"--tune is for --mode {others}, not {values.mode}")
    if values.batch_size and not mode.batch_size:
        others = " | ".join(name for name, other in MODES.items() if other.batch_size)
        raise ValueError(f"--batch_size is for {others}, not {values.mode}: leave it out")
    if values.mode == "import" and values.weights not in ("ema", "raw"):
        raise ValueError(f"--weights {values.weights}: a source holds ema or raw")
    for flag in ("config", "workdir", "source", "checkpoint"):
        if path := values[flag].value:
            values[flag].value = os.path.expanduser(path)
    shorthands = SHORTHANDS | {"num_samples": mode.num_samples, "batch_size": mode.batch_size}
    given = ((key, values[flag].value) for flag, key in shorthands.items())
    return values, changes + [(key, str(value)) for key, value in given if value is not None]


def prepare(values: flags.FlagValues, changes: list[tuple[str, str]]) -> tuple[ConfigDict, Path, Options]:
    """The config, the folder and the options of a command.

    Raises: ValueError and CheckpointError as ``resolve``.
    """
    flagged = {field.name for field in dataclasses.fields(Options)} & set(values)
    chosen: dict[str, Any] = {name: values[name].value for name in flagged}
    options = Options(**chosen)
    if base := MODES[values.mode].base:
        name = Path(values.source).stem if values.source else values.mode
        late = values.mode == "import"  # overrides apply to the config that the source implies
        config = single(values.config or base, () if late else changes, values.mode)
        options = dataclasses.replace(options, overrides=tuple(changes) if late else ())
        return config, Path(values.workdir or f"runs/{name}"), options
    config, workdir = resolve(values.config, values.workdir, changes, values.mode, options.allow_changes)
    options = dataclasses.replace(options, **about_run(values.config, workdir, changes, values.mode, config))
    return config, workdir, options


def start(mode: str, config: Config, workdir: Path, options: Options) -> None:
    """Run a mode, which writes below ``workdir`` alone."""
    module = importlib.import_module(MODES[mode].module)
    raise_on_interrupt()
    with confined(workdir):
        module.run(config, workdir, options)


def about_run(
    name: str | None, workdir: Path, changes: Sequence[tuple[str, str]], mode: str, config: ConfigDict
) -> dict[str, Any]:
    """Options that relate the config of a command to a run: its changes, and the user's own config file."""
    run = read_run(workdir) if (workdir / "config.json").is_file() else None
    return {"changes": changes_of(workdir, config, mode), "command": again(name, run, changes)}


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as one line on standard error; of several processes the first speaks."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    keep_freed()
    try:
        if {"-h", "--help"} & set(argv):
            print(help_text(), end="")
        else:
            with warnings.catch_warnings():
                warnings.showwarning = show_warning
                run(argv)
        flush_output()
        return 0
    except (Exception, KeyboardInterrupt) as error:
        drop_output(error)
        if "--debug" in argv:
            print(*map(printable, traceback.format_exc().splitlines()), sep="\n", file=sys.stderr)
        print(describe(error), file=sys.stderr)
        return exit_status(error)


if __name__ == "__main__":
    open_output()
    sys.exit(main(sys.argv))
