"""Interrupt and damage training runs, resume them by the same command, and compare with an undisturbed run.

    python benchmarks/crash.py --kills 100
    python benchmarks/crash.py --kills 20 --processes 2
    python benchmarks/crash.py --kills 8 --others 1

Weights, averages, the optimizer's state, the lines of metrics (except their speed) and the pictures must equal the
undisturbed run's, bit for bit. Prints a Markdown table with one row per fault, and exits with 1 if anything was lost.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from score_sde.engine import checkpoint  # noqa: E402

STEPS = 120
KEYS = {
    "network.channels": 8,
    "network.dropout": 0.1,
    "optim.warmup_images": 0,
    "ema.rates": (0.999, 0.9),
    "ema.profiles": (0.1,),
    "ema.snapshot_every": 30,
    "train.batch_size": 4,
    "train.total_images": 4 * STEPS,
    "train.checkpoint_every": 4,
    "train.log_every": 3,
    "train.evaluate_every": 40,
    "train.sample_every": 60,
}


class Run:
    """A training run in a folder, as a process.

    Args:
        processes: number of processes; torchrun starts more than one.
    """

    def __init__(self, workdir: Path, processes: int, **changes: object) -> None:
        self.workdir, keys = workdir, {**KEYS, **changes}
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0"]
        start += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
        flags = ["--config=vpsde", "--mode=train", "--device=cpu", f"--workdir={workdir}"]
        overrides = [f"--config.{key}={value}" for key, value in keys.items()]
        self.command = (start if processes > 1 else [sys.executable]) + [str(ROOT / "run.py"), *flags, *overrides]

    def start(self, **options: object) -> subprocess.Popen:
        """Start or resume the run."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command, env=environment, start_new_session=True, **pipes, **options)

    def finish(self) -> tuple[int, str]:
        """Run to the end; returns the exit status and the standard error."""
        process = self.start()
        _, errors = process.communicate()
        return process.returncode, errors

    def steps(self) -> list[Path]:
        """Returns the existing checkpoints."""
        return checkpoint.steps(self.workdir / "checkpoints")

    def until(self, process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
        """Wait for a condition; returns whether it was met before the process ended."""
        while process.poll() is None:
            if happened():
                return True
            time.sleep(0.0005)
        return False


def send(run: Run, process: subprocess.Popen, number: int) -> None:
    """Send a signal to a run; SIGKILL, which torchrun cannot forward, to all of its processes."""
    if process.poll() is None:
        os.killpg(process.pid, number)
    if number == signal.SIGKILL:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"--workdir={run.workdir}".encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), number)


def state(run: Run) -> dict[str, object]:
    """Returns all results of a run that do not depend on the clock."""
    last = run.steps()[-1]
    found: dict[str, object] = {"step": last.name}
    digests = checkpoint.read_meta(last)["sha256"]
    found |= {name: digest for name, digest in digests.items() if name.endswith(".safetensors")}
    found |= flat("state", checkpoint.load_state(last))
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    found["metrics"] = [{key: v for key, v in line.items() if key != "images_per_second"} for line in lines]
    found |= {str(p.relative_to(run.workdir)): p.read_bytes() for p in sorted(run.workdir.glob("samples/*.png"))}
    for path in checkpoint.steps(run.workdir / "snapshots"):
        found[f"snapshot {path.name}"] = checkpoint.read_meta(path)["sha256"]["power-0.1.safetensors"]
    return found


def flat(name: str, value: object) -> dict[str, object]:
    """Returns a nested state as one level of names, with tensors as bytes."""
    if isinstance(value, dict):
        return {key: v for inner, part in value.items() for key, v in flat(f"{name}.{inner}", part).items()}
    return {name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def lost(run: Run, whole: dict[str, object]) -> list[str]:
    """Returns the differences from the undisturbed run."""
    try:
        found = state(run)
    except (OSError, IndexError, checkpoint.CheckpointError) as error:
        return [str(error)]
    return sorted(key for key in found.keys() | whole.keys() if found.get(key) != whole.get(key))


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


def moments(run: Run, rng: random.Random, whole: float) -> Iterator[Callable[[], bool]]:
    """Yields conditions for a kill: some time after the start, or in the middle of writing a checkpoint.

    Args:
        whole: duration of a run in seconds.
    """
    folder = run.workdir / "checkpoints"

    def after(seconds: float) -> Callable[[], bool]:
        marginal = time.perf_counter() + seconds
        return lambda: time.perf_counter() > marginal

    def writing(seconds: float) -> Callable[[], bool]:
        begin = time.time()  # ignores files that an earlier kill left behind

        def begun() -> bool:
            with contextlib.suppress(FileNotFoundError):
                if any(path.stat().st_mtime > begin for path in folder.glob(".step_*.partial")):
                    time.sleep(seconds)
                    return True
            return False

        return begun

    while True:
        yield writing(0)
        yield after(rng.uniform(0, 0.6 * whole))
        yield writing(rng.uniform(0, 0.02))


def kills(folder: Path, whole: dict[str, object], num: int, processes: int, begun: float) -> dict[str, object]:
    """Kill and resume runs until each reaches its end, with ``num`` kills in total."""
    rng, done, writing, runs, differing = random.Random(0), 0, 0, 0, []
    while done < num:
        run = Run(folder / f"killed-{runs}", processes)
        again = moments(run, rng, begun)
        while done < num:
            process = run.start()
            if not run.until(process, next(again)):
                process.communicate()
                if process.returncode:
                    differing.append(f"exit status {process.returncode}")
                break
            send(run, process, signal.SIGKILL)
            process.communicate()
            writing += bool(list((run.workdir / "checkpoints").glob(".step_*.partial")))
            done += 1
        code, errors = run.finish()
        differing += lost(run, whole) if code == 0 else [errors]
        runs += 1
        print(f"{done} kills, {runs} runs, {differing or 'nothing'} lost", file=sys.stderr, flush=True)
        shutil.rmtree(run.workdir)
    happened = f"{runs} runs resumed to their ends; {writing} kills left half a checkpoint, which was ignored"
    return {"fault": f"SIGKILL, {processes} processes" if processes > 1 else "SIGKILL", "times": done,
            "happened": happened, "lost": differing}  # fmt: skip


# --- other faults -----------------------------------------------------------------------------------------------------


def stopped(run: Run, number: int) -> tuple[str, list[str]]:
    """Stop a run by a signal in the middle."""
    process = run.start()
    run.until(process, lambda: len(run.steps()) > 1)
    begin = time.perf_counter()
    send(run, process, number)
    _, errors = process.communicate()
    wrong = [] if process.returncode == 128 + number else [f"exit status {process.returncode}: {errors}"]
    seconds = time.perf_counter() - begin
    return f"a checkpoint at once, exit status {128 + number} after {seconds:.1f} s, resumed", wrong


def damage(run: Run, harm: Callable[[Path], object]) -> tuple[str, list[str]]:
    """Kill a run and damage its newest checkpoint."""
    process = run.start()
    run.until(process, lambda: len(run.steps()) > 1 and int(run.steps()[-1].name.removeprefix("step_")) > 8)
    send(run, process, signal.SIGKILL)
    process.communicate()
    harm(run.steps()[-1])
    process = run.start()
    run.until(process, lambda: bool(list((run.workdir / "checkpoints").glob("damaged_*"))))
    _, errors = process.communicate()
    warned = "warning: " in errors and "taking step_" in errors
    happened = "warned in one line, set aside; resumed from the previous checkpoint"
    return happened, [] if warned else [f"no warning: {errors}"]


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def full(run: Run) -> tuple[str, list[str]]:
    """Limit the size of files, like a full disk or a quota, from the second checkpoint on."""
    process = run.start()
    run.until(process, lambda: len(run.steps()) > 1)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    _, errors = process.communicate()
    expected = process.returncode == 3 and len(errors.splitlines()) == 1
    return "exit status 3 and one line; the previous checkpoint is intact; resumed", [] if expected else [errors]


def second(run: Run) -> tuple[str, list[str]]:
    """Start another command in the folder of a run."""
    process = run.start()
    run.until(process, lambda: len(run.steps()) > 0)
    code, errors = Run(run.workdir, 1).finish()
    expected = code == 3 and "another command writes in" in errors
    process.communicate()
    return "exit status 3 and one line; the first run continued", [] if expected else [f"{code}: {errors}"]


OTHERS: dict[str, Callable[[Run], tuple[str, list[str]]]] = {
    "SIGTERM": lambda run: stopped(run, signal.SIGTERM),
    "SIGINT (Ctrl-C)": lambda run: stopped(run, signal.SIGINT),
    "newest checkpoint: weights truncated": lambda run: damage(
        run, lambda path: os.truncate(path / checkpoint.RAW, 1000)
    ),
    "newest checkpoint: one bit of an average flipped": lambda run: damage(
        run, lambda path: flip(path / "ema-0.999.safetensors")
    ),
    "newest checkpoint: state.pt missing": lambda run: damage(run, lambda path: (path / "state.pt").unlink()),
    "newest checkpoint: meta.json empty": lambda run: damage(run, lambda path: (path / "meta.json").write_text("")),
    "disk full": full,
    "second command in the folder": second,
}


def other(folder: Path, whole: dict[str, object], name: str, times: int) -> dict[str, object]:
    """Inject a fault ``times`` times, each into a new run, which is then resumed to its end."""
    differing, happened = [], ""
    for k in range(times):
        run = Run(folder / f"other-{k}", 1)
        happened, wrong = OTHERS[name](run)
        code, errors = run.finish()
        differing += wrong + (lost(run, whole) if code == 0 else [errors])
        shutil.rmtree(run.workdir)
    print(name, differing, file=sys.stderr, flush=True)
    return {"fault": name, "times": times, "happened": happened, "lost": differing}


def main() -> int:
    """Inject the faults and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs at random moments")
    parser.add_argument("--others", type=int, default=0, help="repetitions of each other fault")
    parser.add_argument("--processes", type=int, default=1, help="processes of a killed run")
    parser.add_argument("--folder", type=Path, default=None, help="folder of the runs (default: a temporary one)")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp())
    rows = []
    if args.kills:
        run, begin = Run(folder / "whole", args.processes), time.perf_counter()
        code, errors = run.finish()
        if code:
            raise SystemExit(f"the undisturbed run failed: {errors}")
        rows.append(kills(folder, state(run), args.kills, args.processes, time.perf_counter() - begin))
    if args.others:
        run = Run(folder / "alone", 1)
        run.finish()
        rows += [other(folder, state(run), name, args.others) for name in OTHERS]
    print("| fault | injected | what happened | lost |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['fault']} | {row['times']} | {row['happened']} | {', '.join(row['lost']) or 'nothing'} |")
    return int(any(row["lost"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
