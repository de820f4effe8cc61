"""From the words of a command to its config and the folder of its run, and the check that both belong together.

A command names a config, the folder of a run, or both. ``engine.recipe`` lists the keys that belong to the run, and
``engine.paths`` the keys that name files.
"""

import copy
import os
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.engine import paths
from score_sde.engine.config import (
    WRONG,
    Options,
    Run,
    conform,
    load,
    names,
    override,
    parse_run,
    read_run,
    run_json,
    stored,
)
from score_sde.engine.modes import MODES
from score_sde.engine.recipe import MODEL, conflicts, differences, flat, merged_values
from score_sde.engine.recovery import restore_config
from score_sde.storage.naming import UnknownName, listed
from score_sde.storage.reading import read_text


def resolve(
    name: str | None,
    workdir: str | None,
    changes: Sequence[tuple[str, str]],
    mode: str,
    allow_changes: bool = False,
) -> tuple[ConfigDict, Path]:
    """The config and the folder of a command.

    The folder alone gives the config that its run was trained with. Either way the config of the command has to agree
    with the run in the keys of ``Mode.agrees``, unless ``allow_changes``.

    Args:
        name: of --config, as ``load`` takes it.
        workdir: of --workdir; None is runs/<name of the config>.
        changes: (key, text) of each override.
        mode: of --mode.
    Raises: ValueError where they disagree, or a stranger's config leads outside its folder; CheckpointError where the
        folder holds no run, or a damaged one.
    """
    if workdir:
        folder = Path(workdir)
    elif name is not None:
        folder = Path("runs") / run_name(name)
    else:
        raise ValueError(f"give --config ({listed(names(), ' | ')}) or the --workdir of a run")
    restore_config(folder)
    source = read_run(folder) if name is None else opened(name)
    config, mine = overridden(source, changes, mode)
    run = read_run(folder) if name and (folder / "config.json").exists() else source
    if name is None or run is not source:
        remedy = "leave --config out" if name else "leave it out"
        config = agree(folder, run, config, mode, allow_changes, remedy)
    for other in {source.file: source, run.file: run}.values():
        if not other.own:
            confine(config, mode, other, mine)
    return config, folder


def single(name: str, changes: Sequence[tuple[str, str]], mode: str) -> ConfigDict:
    """The config of a command that starts from no run. Raises: ValueError as ``resolve``."""
    source = opened(name)
    config, mine = overridden(source, changes, mode)
    if not source.own:
        confine(config, mode, source, mine)
    return config


def overridden(source: Run, changes: Sequence[tuple[str, str]], mode: str) -> tuple[ConfigDict, dict[str, str]]:
    """The config of a source with the overrides of the command, and the keys and paths that the user gave.

    Code, ``edit.measure``, is taken from the command or a file of Python, never from a config.json.
    """
    config = copy.deepcopy(source.config)
    code = paths.get(config, paths.CODE) if source.file.suffix == ".json" else ""
    if code:
        paths.put(config, paths.CODE, "")
    override(config, changes)
    paths.make_absolute(config)
    if code and mode == "edit" and not paths.get(config, paths.CODE):
        word = f"--config.{paths.CODE}={shlex.quote(code)}"
        warnings.warn(f"{source.file} names code, which is not run; to run it, add {word}", stacklevel=3)
    given = paths.PATHS if source.own else [key for key, _ in changes]
    return config, paths.named(config, given)


def opened(name: str) -> Run:
    """The config that --config names. A file of Python is the user's own, a config.json only with a signature.

    Raises: ValueError as ``load``.
    """
    path = Path(name)
    config = load(name)
    if path.suffix == ".json":
        try:
            return parse_run(path, read_text(path))
        except WRONG as error:
            raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    paths.make_absolute(config)
    return Run(path.absolute(), config, own=True)


def confine(config: ConfigDict, mode: str, run: Run, allowed: Mapping[str, str]) -> None:
    """Leave out the paths of a stranger's run that lead outside it, with a warning; see ``engine.paths.restrict``."""
    left_out = paths.restrict(config, mode, run.file, allowed)
    if left_out:
        warnings.warn(
            f"{run.file} was written by no command of yours; paths that lead outside its folder are left out: "
            f"{' '.join(left_out)}",
            stacklevel=2,
        )


def again(name: str | None, run: Run | None, changes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The words that name the user's own config file in a later command, with the overrides of the model.

    Args:
        name: of --config; where it is no file of Python, the words that the user's own run keeps are taken.
    """
    if name is None or Path(name).suffix != ".py":
        return run.command if run and run.own else ()
    kept = [(key, text) for key, text in changes if any(f"{key}.".startswith(f"{section}.") for section in MODEL)]
    return (f"--config={os.path.abspath(name)}", *(f"--config.{key}={text}" for key, text in kept))


def registered_elsewhere(error: UnknownName, run: Run) -> str:
    """The message of an unknown name that the user's own config file registers; empty where it is none of the run's."""
    if not run.command or error.name not in flat(run.config.to_dict()).values():
        return ""
    reason = str(error).partition(";")[0]
    if run.own:
        return f"{reason}; the run's own config file registers it: add {shlex.join(run.command)}"
    return f"{reason}; its author's config file registers it: read that file, then add it with --config FILE.py"


def run_name(config: str) -> str:
    """The folder below runs/: the name of the config, or of its folder for the config.json of a run."""
    path = Path(config)
    return path.absolute().parent.name if path.name == "config.json" else path.stem


def agree(
    folder: Path, run: Run, given: ConfigDict, mode: str, allow_changes: bool, remedy: str = "leave it out"
) -> ConfigDict:
    """The config that a command goes on with: ``given``, or the run's own where ``given`` is a former one.

    A command with the values of before a recorded change goes on with the present values.

    Raises: ValueError naming the keys that differ, unless ``allow_changes``.
    """
    sections = MODES[mode].agrees
    found = conflicts(run.config, given, sections)
    if allow_changes or not found:
        return given
    if any(not conflicts(former, given, sections) for former in run.former):
        now = ", ".join(f"{key} {old!r}" for key, (old, _) in found.items())
        warnings.warn(f"the run in {folder} was changed by --allow_changes; it goes on with {now}", stacklevel=3)
        return conform(merged_values(run.config, given, sections))
    words = [f"{key} is {old!r} there and {new!r} here" for key, (old, new) in found.items()]
    more = f", and {len(words) - 3} more" if len(words) > 3 else ""
    raise ValueError(
        f"the run in {folder} has another config: {'; '.join(words[:3])}{more}; {remedy} to take that of the run, "
        "choose another --workdir, or add --allow_changes, which records it"
    )


def written(folder: Path, config: ConfigDict, options: Options, versions: Mapping[str, str]) -> str:
    """The text of config.json for a run that goes on with this config: earlier changes stay, and new ones are added."""
    before = read_run(folder).changes if (folder / "config.json").is_file() else ()
    return run_json(config, versions, options.command, (*before, options.changes) if options.changes else before)


def changes_of(folder: Path, config: ConfigDict, mode: str) -> dict[str, tuple]:
    """The differences between the config of a result and the run in a folder, which the result records."""
    if not (folder / "config.json").is_file():
        return {}
    trained, sections = stored(folder), MODES[mode].agrees
    return conflicts(trained, config, sections) if mode == "train" else differences(trained, config, sections)
