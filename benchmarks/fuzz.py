"""Fuzzing of every reader of untrusted files and words, with damaged and hostile inputs.

python benchmarks/fuzz.py --inputs 10000

A reader must accept an input, or refuse it by an error with exit status 2 to 5. Anything else is unexpected: another
error, more than ten seconds, more than 1 GiB beyond the imports, a crash, a file changed, written or removed, a
pickle's global, a process or a connection. Unexpected inputs are kept in --out, with the command that repeats them.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pickle
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
RECORDED = ROOT / "tests" / "data"

from benchmarks.fuzz_inputs import OUTSIDE, PIPE, Files, changed_files, command, expression, signed  # noqa: E402
from score_sde import run as command_line  # noqa: E402
from score_sde.configs import default  # noqa: E402
from score_sde.engine.config import Options, flat, load, override, stored, to_json  # noqa: E402
from score_sde.engine.errors import describe, exit_status  # noqa: E402

SECONDS = 10
MEMORY = 2**30
STEP = "checkpoints/step_00000001"

WRITES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
WRITES |= {"shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"}
RUNS = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.startfile",
    "subprocess.Popen",
    "pty.spawn",
    "exec.shell",
}
RUNS |= {"socket.connect", "socket.bind", "urllib.Request", "pickle.find_class", "ctypes.dlopen"}
"""Events of ``sys.audit`` that no reader may cause."""


class Hang(BaseException):
    """An input took too long."""


class Target(NamedTuple):
    """A reader.

    make: (rng) -> the files of an input.
    read: (folder with these files) -> None, or an error.
    seeds: files from which inputs are made, the first of them valid; reading them triggers late imports.
    """

    make: Callable[[random.Random], Files]
    read: Callable[[Path], None]
    seeds: list[Files]


class Verdict(NamedTuple):
    """Result of an input: ``accepted``, ``refused`` or ``unexpected``, the reason, and the duration in seconds."""

    kind: str
    why: str
    seconds: float


# --- one input --------------------------------------------------------------------------------------------------------


class Watch:
    """Collects a reader's actions other than reading, while it is on; audit hooks cannot be removed."""

    def __init__(self) -> None:
        self.on, self.found = False, []
        sys.addaudithook(self.record)

    def record(self, event: str, arguments: tuple) -> None:
        """Record an event; Python calls it at every audit event."""
        if self.on and (event in WRITES | RUNS or (event == "open" and writes(arguments))):
            self.found.append(f"{event} {str(arguments[0])[:80] if arguments else ''}")


def writes(arguments: tuple) -> bool:
    """Returns whether the arguments of an event ``open`` are for writing."""
    _, mode, flags = (*arguments, None, None)[:3]
    written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else 0
    return bool(written or set(str(mode or "")) & set("wax+"))


def trial(read: Callable[[Path], None], files: Files, folder: Path, watch: Watch) -> Verdict:
    """Write the files to an empty folder and read them."""
    shutil.rmtree(folder, ignore_errors=True)
    outside, kept = folder.with_name(OUTSIDE), b'{"seed": 3}'
    folder.parent.mkdir(parents=True, exist_ok=True)
    outside.write_bytes(kept)
    lay_out(files, folder)
    kind, why, start = "accepted", "", time.monotonic()
    signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.on, watch.found = True, []
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            read(folder)
    except (Exception, SystemExit, Hang) as error:
        kind = "refused" if exit_status(error) in (2, 3, 4, 5) and isinstance(error, Exception) else "unexpected"
        why = f"longer than {SECONDS} s" if isinstance(error, Hang) else describe(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.on = False
    seconds = time.monotonic() - start
    if watch.found:
        kind, why = "unexpected", f"it did {', '.join(watch.found[:3])}"
    elif found_in(folder) != files or outside.read_bytes() != kept:
        kind, why = "unexpected", "it changed a file"
    return Verdict(kind, why, seconds)


def lay_out(files: Files, folder: Path) -> None:
    """Create the files, links and pipes of an input."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == PIPE:
            os.mkfifo(path)
        else:
            path.symlink_to(content)


def found_in(folder: Path) -> Files:
    """Returns the files, links and pipes in a folder."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = os.readlink(path)
        elif not path.is_dir():
            found[str(path.relative_to(folder))] = PIPE if path.is_fifo() else path.read_bytes()
    return found


def _hang(signum: int, frame: object) -> None:
    raise Hang


# --- targets ----------------------------------------------------------------------------------------------------------


class Harm:
    """An object whose unpickling would create a folder."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def recorded(folder: str, *names: str) -> Files:
    """Returns files of a recording by name."""
    return {name: (RECORDED / folder / name).read_bytes() for name in names}


def foreign(name: str) -> list[Files]:
    """Returns checkpoints of one format, some with code in their pickle."""
    import torch

    if name == "score_sde":
        found = recorded("score_sde_models/ncsnpp_subvp", "checkpoint.pt", "config.json")
        content, whole = torch.load(io.BytesIO(found["checkpoint.pt"]), weights_only=True), io.BytesIO()
        averaged = [
            value for key, value in content["model"].items() if ".NIN_" in key or not key.endswith((".W", "sigmas"))
        ]
        torch.save(content | {"ema": content["ema"] | {"shadow_params": averaged}}, whole)  # the recording lacks them
        seeds = [{"a.pth": whole.getvalue(), "config.json": found["config.json"]}]
    elif name == "edm":
        found = recorded("edm_models/tiny_song_skip_skip_vp", "model.safetensors", "config.json")
        seeds = [found, recorded("edm_models/tiny_dhariwal_iddpm", "model.safetensors", "config.json")]
    elif name == "guided_diffusion":
        seeds = [
            recorded(f"guided_diffusion/{tiny}", "state_dict.pt", "config.json")
            for tiny in ("tiny_improved", "tiny_classifier_adaptive")
        ]
    else:
        names = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
        seeds = [
            recorded(f"diffusers/{tiny}", *names, f"unet/diffusion_pytorch_model.{ending}")
            for tiny, ending in (
                ("tiny_ddpm", "safetensors"),
                ("tiny_default", "safetensors"),
                ("tiny_ncsnpp", "fp16.safetensors"),
            )
        ]
    (weights,) = (name for name in seeds[0] if name.endswith((".pt", ".pth", ".safetensors")))
    if weights.endswith("t") or weights.endswith("pth"):
        harmful = io.BytesIO()
        torch.save({"model": {}, "ema": Harm(), "time_embed.0.weight": torch.zeros(2, 2)}, harmful)
        seeds += [seeds[0] | {weights: harmful.getvalue()}, seeds[0] | {weights: pickle.dumps(Harm(), 2)}]
    return seeds


def read_foreign(folder: Path) -> None:
    """Read like the mode import, up to the network."""
    from score_sde.engine.build import make
    from score_sde.engine.importing import facts_of, resolved
    from score_sde.models.checkpoints import FORMATS, recognise
    from score_sde.sde_lib import SDES

    files = [path for path in folder.rglob("*") if path.suffix in (".pt", ".pth") and path.is_file()]
    name, path = recognise(files[0] if len(files) == 1 else folder)
    read = FORMATS[name](path)
    config = resolved(load("cifar10"), read)
    facts_of(read, config.codec.get("low", -1.0))
    make(SDES, "sde", config.sde)


def checkpoint_seeds() -> list[Files]:
    """Returns the files of a run with a small network, as written by training."""
    import torch

    from score_sde.engine import checkpoint
    from score_sde.engine.build import build
    from score_sde.engine.facts import DataFacts
    from score_sde.engine.importing import save

    config = load("points")
    config.network.width, config.device = 8, "cpu"
    facts = DataFacts((2,), 0, 1.0, 5.0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        save(config, Path(folder), build(config, facts), 1, 1.0, {"format": "edm", "source": "x", "weights": "only"})
        assert (Path(folder) / STEP / checkpoint.RAW).is_file()
        return [{str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}]


def read_checkpoint(folder: Path) -> None:
    """Read like modes that use a run, and like resumed training."""
    from score_sde.engine import checkpoint
    from score_sde.engine.load import load as load_run

    config = stored(folder)
    for weights in ("ema", "raw"):
        load_run(config, folder, Options(weights=weights))
    checkpoint.load_state(checkpoint.find(folder / "checkpoints"))


def png(number: int, kind: str = "PNG", side: int = 5) -> bytes:
    """Returns a small image as bytes."""
    from PIL import Image

    content, values = io.BytesIO(), np.random.default_rng(number).integers(256, size=(side, 4, 3), dtype=np.uint8)
    Image.fromarray(values[..., 0] if number % 2 else values).save(content, format=kind)
    return content.getvalue()


def zipped(files: Files) -> bytes:
    """Returns the files as a zip."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return content.getvalue()


def images(form: str) -> list[Files]:
    """Returns small image sets in one form."""
    listing = json.dumps({"labels": [[f"{i:02}.png", i % 3] for i in range(12)]}).encode()
    gray = {f"{i:02}.png": png(2 * i + 1) for i in range(12)}
    sets = [gray | {"dataset.json": listing}, {f"{c}/{i}.png": png(2 * i) for c in "ab" for i in range(6)}]
    if form == "folder":
        return [{f"x/{name}": content for name, content in files.items()} for files in sets]
    if form == "image":
        kinds = [png(1, side=9), png(2, "JPEG", 30), png(2, side=9), png(2, "GIF"), png(2, "TIFF"), png(2, "WEBP")]
        return [{f"x/{split}/0.png": content for split in ("test", "train")} for content in kinds]
    if form == "zip":
        return [{"x.zip": zipped(files)} for files in sets]
    rng, found = np.random.default_rng(0), []
    x = rng.integers(256, size=(12, 5, 4, 3), dtype=np.uint8)
    if form == "pairs":
        noise = rng.standard_normal((12, 1, 5, 4))
        for real in (np.float32, np.float64):
            content = io.BytesIO()
            np.savez_compressed(content, latents=noise, x0=np.tanh(noise).astype(real), levels=17)
            found.append({"x.npz": content.getvalue()})
        return found
    for array in (x, x[..., 0], x.astype(np.float32), np.asfortranarray(x), np.array([{}, None], dtype=object)):
        content = io.BytesIO()
        if form == "npy":
            np.save(content, array)
        else:
            np.savez(content, x=array, labels=np.arange(len(array)))
        found.append({f"x.{form}": content.getvalue()})
    return found


def read_set(folder: Path) -> None:
    """Read some examples of both splits; the input's size selects ``skip_broken`` and a small pixel limit."""
    from score_sde.data import read_images

    path = next((folder / name for name in ("x", "x.zip", "x.npy", "x.npz") if (folder / name).exists()), folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    for split in ("test", "train"):
        dataset = read_images(split, str(path), skip_broken=bool(size & 1), max_pixels=2**24 if size & 2 else 20)
        dataset.batch(range(min(4, len(dataset))))


def read_paired(folder: Path) -> None:
    """Read a set of pairs."""
    from score_sde.data import read_pairs

    for split in ("test", "train"):
        read_pairs(split, str(folder / "x.npz")).batch([0])


def read_config(folder: Path) -> None:
    """Read like --config x.json, and like the config.json of a run."""
    load(str(folder / "config.json"))
    stored(folder)


def read_words(folder: Path) -> None:
    """Pass the words of words.json to the command line; only the mode import runs."""
    words = json.loads((folder / "words.json").read_text())
    errors = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(errors):
        status = command_line.main(["run.py", *words])
    if "Traceback" in errors.getvalue() and "--debug" not in words:
        raise RuntimeError("a traceback without --debug")
    lines = errors.getvalue().splitlines()
    if status not in (0, 2, 3, 4, 5) or (status and "--debug" not in words and len(lines) != 1):
        raise RuntimeError(f"status {status}: {lines}")
    if status:
        raise ValueError(lines[-1])


def read_override(folder: Path) -> None:
    """Apply the overrides of words.json to the default config and serialize it."""
    config = default.get_config()
    override(config, json.loads((folder / "words.json").read_text()))
    to_json(config)


class Idle:
    """A mode that does nothing."""

    def run(self, *arguments: object) -> None:
        """Do nothing."""


def words_maker(kind: str) -> Callable[[random.Random], Files]:
    """Returns a maker of inputs for the command line or for overrides."""
    keys = sorted(flat(default.get_config().to_dict()))
    values = {name: [] for name in command_line.define_flags()}
    values |= {"mode": [*command_line.MODES], "config": ["vpsde", "vesde", "a.json"], "workdir": ["w", "."]}
    values |= {
        "source": ["a.json", "words.json", "."],
        "steps": ["1"],
        "seed": ["0"],
        "flagfile": ["words.json", "none"],
    }

    def make(rng: random.Random) -> Files:
        if kind == "override":
            words = [
                [rng.choice([*keys, "", "x", "sde", "sde.x.y"]), expression(rng)] for _ in range(rng.choice([1, 1, 3]))
            ]
        else:
            words = command(rng, values, keys)
        return {"words.json": json.dumps(words).encode(), "a.json": b'{"seed": 3}'}

    return make


def idle_modes() -> None:
    """Replace all modes of the command line except import by modes that do nothing."""
    for name, mode in [*command_line.MODES.items()]:
        if name != "import":
            sys.modules[f"idle_{name}"] = Idle()
            command_line.MODES[name] = dataclasses.replace(mode, module=f"idle_{name}")


def make_target(name: str) -> Target:
    """Returns the target of this name, with its seeds."""
    if name == "checkpoint" or name in FOREIGN:
        importlib.import_module("torch._dynamo")  # the first network imports it, longer than the time limit
    if name == "checkpoint":
        seeds = checkpoint_seeds()

        def make(rng: random.Random) -> Files:
            files = changed_files(rng, seeds)
            return signed(files, f"{STEP}/meta.json") if rng.randrange(4) else files

        return Target(make, read_checkpoint, seeds)
    if name in ("cli", "override"):
        idle_modes()
        importlib.import_module(command_line.MODES["import"].module)
        make, read = words_maker(name), read_words if name == "cli" else read_override
        words = ["--mode=data", "--config=vpsde"] if name == "cli" else [["seed", "3"]]
        return Target(make, read, [{"words.json": json.dumps(words).encode()}])
    if name == "config":
        config, seed = default.get_config(), {"config.json": to_json(default.get_config(), {"torch": "2"}).encode()}
        few = {key: value for key, value in config.to_dict().items() if key in ("seed", "sde", "network", "ema")}
        seeds, read = [seed, {"config.json": json.dumps(few).encode()}], read_config
    elif name in FOREIGN:
        seeds, read = foreign(name), read_foreign
    else:
        # This imports torch, which exceeds the time limit on a busy machine.
        importlib.import_module("score_sde.data")
        seeds, read = images(name), read_paired if name == "pairs" else read_set
    return Target(lambda rng: changed_files(rng, seeds), read, seeds)


FOREIGN = ("score_sde", "edm", "guided_diffusion", "diffusers")
TARGETS = ("checkpoint", *FOREIGN, "folder", "image", "zip", "npy", "npz", "pairs", "config", "override", "cli")


# --- many inputs ------------------------------------------------------------------------------------------------------


def inputs(target: Target, name: str, seed: int, start: int, count: int) -> Iterator[tuple[int, Files]]:
    """Yields the numbered inputs of a target."""
    for number in range(start, start + count):
        yield number, target.make(random.Random(f"{seed} {name} {number}"))


def work(name: str, seed: int, start: int, count: int, folder: Path, out: Path) -> None:
    """Run in a worker process: print one line per input, under a memory limit."""
    target, watch = make_target(name), Watch()
    warnings.simplefilter("ignore")
    verdicts = [trial(target.read, files, folder / "seed", watch) for files in (*target.seeds, target.seeds[0])]
    if verdicts[-1].kind != "accepted":
        raise RuntimeError(f"{name}: the valid seed is not accepted, so nothing is measured: {verdicts[-1].why}")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 8 * MEMORY, taken + 8 * MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, files in inputs(target, name, seed, start, count):
        verdict = trial(target.read, files, folder / "input", watch)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if grown > MEMORY:
            verdict = Verdict("unexpected", f"{grown / MEMORY:.1f} GiB of memory", verdict.seconds)
            before += grown // 1024
        if verdict.kind == "unexpected":
            keep(folder / "input", out, name, seed, number, verdict.why)
        print(json.dumps([number, *verdict]), file=sys.__stdout__, flush=True)


def fuzz(name: str, seed: int, start: int, count: int, out: Path) -> dict:
    """Run all inputs of a target in a worker process, restarted when it dies; returns the counts of verdicts."""
    found = {"target": name, "inputs": 0, "accepted": 0, "refused": 0, "unexpected": 0, "longest": 0.0}
    end = start + count
    while start < end:
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--worker", folder, "--targets", name, "--seed", str(seed)]
            words += ["--start", str(start), "--inputs", str(end - start), "--out", str(out)]
            why = f"no answer in {12 * SECONDS} s"
            with subprocess.Popen(words, stdout=subprocess.PIPE) as worker:
                while select.select([worker.stdout], [], [], 12 * SECONDS)[0]:
                    if not (line := worker.stdout.readline()):
                        why = f"the process died with status {worker.wait()}"
                        break
                    number, *verdict = json.loads(line)
                    start = number + 1
                    count_in(found, Verdict(*verdict))
                else:
                    worker.kill()
            if start < end:
                if not Path(folder, "input").exists():
                    raise RuntimeError(f"the worker for {name} does not start")
                keep(Path(folder, "input"), out, name, seed, start, why)
                count_in(found, Verdict("unexpected", why, 0.0))
                start += 1
    return found


def count_in(found: dict, verdict: Verdict) -> None:
    """Add a verdict to the counts."""
    found["inputs"] += 1
    found[verdict.kind] += 1
    found["longest"] = max(found["longest"], verdict.seconds)


def keep(files: Path, out: Path, name: str, seed: int, number: int, why: str) -> None:
    """Keep the files of an unexpected input, with its verdict and the command that repeats it."""
    kept = out / f"{name}-{seed}-{number}"
    kept.mkdir(parents=True, exist_ok=True)
    lay_out(found_in(files), kept)
    again = f"python benchmarks/fuzz.py --targets {name} --seed {seed} --start {number} --inputs 1"
    (kept / "verdict.txt").write_text(f"{why}\n{again}\n")
    print(f"{name} {number}: {why[:200]}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Print the table; returns 1 if anything was unexpected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="number of inputs per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "fuzz", help="folder for unexpected inputs")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    names = given.targets.split(",")
    if given.worker:
        work(names[0], given.seed, given.start, given.inputs, given.worker, given.out)
        return 0
    print("| target | inputs | accepted | refused | unexpected | longest, s |\n|---|---|---|---|---|---|", flush=True)
    total = 0
    for name in names:
        found = fuzz(name, given.seed, given.start, given.inputs, given.out)
        total += found["unexpected"]
        cells = (f"{found[key]:,}" for key in ("inputs", "accepted", "refused", "unexpected"))
        print(f"| {name} | {' | '.join(cells)} | {found['longest']:.2f} |", flush=True)
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
