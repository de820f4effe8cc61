"""Resources of training: threads and their waiting policy, allocator, memory, sharding, prefetching, operations.

    python benchmarks/scaling.py threads allocator memory sharding reading work

Contenders run in turns within one run; the tables contain medians.
"""

import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

POLICIES = {
    "OpenMP's default": {},
    "1,000 spins": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
NETWORKS = {"8x8, 16 channels": (8, 16), "32x32, 32 channels": (32, 32)}
ROUNDS, SECONDS = 5, 0.5
SPIN = "import time; end = time.monotonic() + 600\nwhile time.monotonic() < end: pass"


def trainer(config_name: str, **keys: object):  # noqa: ANN201, its class is imported late
    """Returns the trainer of a config in a new folder, on the CPU."""
    from score_sde.engine.config import load, override
    from score_sde.engine.datasets import read_dataset
    from score_sde.engine.training.trainer import Trainer

    config = load(config_name)
    changes = {"device": "cpu"} | {key.replace("__", "."): value for key, value in keys.items()}
    override(config, [(key, str(value)) for key, value in changes.items()])
    return Trainer(config, Path(tempfile.mkdtemp()), read_dataset(config.data, "train"))


def images(side: int, num: int = 512) -> str:
    """Returns the path of a file with random images."""
    import numpy as np

    path = Path(tempfile.mkdtemp()) / "images.npy"
    np.save(path, np.random.default_rng(0).integers(256, size=(num, side, side, 3), dtype=np.uint8))
    return str(path)


def worker(side: str, channels: str) -> None:
    """Run training steps for ``SECONDS`` for each line of the input, and print milliseconds per step."""
    import torch

    threads = int(os.environ["OMP_NUM_THREADS"])
    keys = {"data__name": "images", "data__path": images(int(side)), "threads": threads, "train__batch_size": 16}
    steps = trainer("vpsde", network__channels=channels, train__total_images=10**9, **keys).steps(10**9)
    next(steps)
    assert torch.get_num_threads() == threads
    for _ in sys.stdin:
        start, num = time.perf_counter(), 0
        while num == 0 or time.perf_counter() - start < SECONDS:
            next(steps)
            num += 1
        print(1e3 * (time.perf_counter() - start) / num, flush=True)


def start(threads: int, policy: str, size: tuple[int, int]) -> subprocess.Popen:
    """Returns a worker with this number of threads and this waiting policy."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_NUM_THREADS": str(threads), **POLICIES[policy]}
    command = [sys.executable, __file__, "worker", *map(str, size)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def step_ms(process: subprocess.Popen) -> float:
    """Returns a new measurement of a worker, in milliseconds per step."""
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def threads() -> None:
    """Print milliseconds per step by threads, policy and network, alone and next to processes that spin."""
    most = os.cpu_count() or 1
    contenders = [(1, "OpenMP's default"), *((most, policy) for policy in POLICIES)]
    print(f"\n{most} cores, load {os.getloadavg()[0]:.1f} before; batches of 16; ms a step\n")
    columns = [f"{n} thread{'s' * (n > 1)}, {policy}" for n, policy in contenders]
    print(f"| network | other processes | {' | '.join(columns)} |")
    print("|---|---" + "|---:" * len(contenders) + "|")
    for name, size in NETWORKS.items():
        workers = [start(n, policy, size) for n, policy in contenders]
        for process in workers:
            step_ms(process)
        for num in (0, 1, most):
            others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(num)]
            taken = [[step_ms(process) for process in workers] for _ in range(ROUNDS)]
            for other in others:
                other.kill()
            cells = " | ".join(f"{statistics.median(column):.1f}" for column in zip(*taken, strict=True))
            load = {0: "none of ours", 1: "1 that spins"}.get(num, f"{num} that spin")
            print(f"| {name} | {load} | {cells} |", flush=True)
        for process in workers:
            process.kill()


def allocator() -> None:
    """Print milliseconds and page faults of the default allocator, and of one that keeps freed memory."""
    print("\n| work | ms, default | ms, kept | ratio | page faults, default | kept |")
    print("|---|---:|---:|---:|---:|---:|")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    for name in JOBS:
        commands = [[sys.executable, __file__, "allocating", name, kept] for kept in ("", "kept")]
        workers = [subprocess.Popen(command, **pipes) for command in commands]
        taken: list[list[list[float]]] = [[], []]
        for _ in range(3 * ROUNDS):
            for process, answers in zip(workers, taken, strict=True):
                process.stdin.write("\n")
                process.stdin.flush()
                answers.append([float(word) for word in process.stdout.readline().split()])
        for process in workers:
            process.kill()
        (plain, faults), (kept, fewer) = ([statistics.median(column) for column in zip(*rows)] for rows in taken)
        print(f"| {name} | {plain:.2f} | {kept:.2f} | {kept / plain:.2f} | {faults:.0f} | {fewer:.0f} |", flush=True)


def steps_of(size: tuple[int, int]) -> Callable[[], object]:
    """Returns a training step for a size: side of the images, channels of the network."""
    keys = {"data__name": "images", "data__path": images(size[0]), "threads": 1, "train__batch_size": 16}
    found = trainer("vpsde", network__channels=size[1], train__total_images=10**9, **keys).steps(10**9)
    return lambda: next(found)


def normals() -> Callable[[], object]:
    """Returns a draw of noise for 16 images of 3x32x32, keyed by their seeds."""
    import torch

    from score_sde.samplers import Noise

    noise, like = Noise(torch.arange(16)), torch.zeros(16, 3, 32, 32)
    return lambda: noise(like)


JOBS = {
    "noise of 16 images": normals,
    **{f"training step, {name}": partial(steps_of, size) for name, size in NETWORKS.items()},
}


def allocating(name: str, kept: str) -> None:
    """Run a job for ``SECONDS`` for each line of the input; prints CPU milliseconds and page faults per repetition."""
    from score_sde.engine.malloc import keep_freed

    if kept:
        keep_freed()
    import torch

    torch.set_num_threads(1)
    work = JOBS[name]()
    for _ in range(3):
        work()
    for _ in sys.stdin:
        start, faults, num = time.process_time(), getrusage(RUSAGE_SELF).ru_minflt, 0
        while num == 0 or time.process_time() - start < SECONDS:
            work()
            num += 1
        print(1e3 * (time.process_time() - start) / num, (getrusage(RUSAGE_SELF).ru_minflt - faults) / num, flush=True)


def memory() -> None:
    """Print the peak memory of a step beyond weights and averages, and its time, without and with train.recompute."""
    from torch.profiler import ProfilerActivity, profile

    path = images(32)
    print("\n| recompute | peak of the tensors of a step, MB | CPU s a step | loss |")
    print("|---|---:|---:|---:|")
    for recompute in (False, True):
        keys = {"data__name": "images", "data__path": path, "data__test_path": "", "threads": 1}
        keys |= {"network__channels": 32, "train__batch_size": 16, "train__precision": "float32"}
        made = trainer("cifar10", train__recompute=recompute, **keys)
        steps = made.steps(10**9)
        next(steps)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            next(steps)
        events = sorted((e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"), key=start_of)
        begin = time.process_time()
        loss = next(steps).loss.item()
        seconds = time.process_time() - begin
        peak = max(itertools.accumulate(e.nbytes() for e in events)) / 2**20
        print(f"| {'yes' if recompute else 'no'} | {peak:.0f} | {seconds:.2f} | {loss:.6f} |", flush=True)


def start_of(event) -> int:  # noqa: ANN001, its class has no public name
    """Returns the start of a profiler event in nanoseconds."""
    return event.start_ns()


def sharding() -> None:
    """Print the memory per process of 1, 2 and 4 processes, and the time of a step relative to an unsharded one."""
    path = images(32)
    print("\nlargest memory of a process; steps over gloo\n")
    print("| processes | parameters, MB | moments, MB | average, MB | together, MB | step, over one unsharded |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for num in (1, 2, 4):
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num}"]
        subprocess.run([*start, __file__, "shard", path], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def shard(path: str) -> None:
    """Run as one of several processes of ``sharding``; the first one prints the line."""
    import torch

    from score_sde.engine import ranks

    keys = {"data__name": "images", "data__path": path, "data__test_path": "", "threads": 1}
    keys |= {"network__channels": 32, "train__batch_size": 4, "train__precision": "float32"}
    both = [trainer("cifar10", train__sharding=sharding, **keys) for sharding in (False, True)]
    steps, taken = [made.steps(10**9) for made in both], ([], [])
    for _ in range(1 + ROUNDS):
        for one, seconds in zip(steps, taken):
            begin = time.perf_counter()
            next(one)
            seconds.append(time.perf_counter() - begin)
    plain, spread = (statistics.median(seconds[1:]) for seconds in taken)
    own = both[1]
    moments = [value for state in own.optimizer.state.values() for value in state.values() if value.ndim]
    parts = [own.parameters, moments, list(own.ema.networks[0].parameters())]
    kept = torch.tensor([sum(ranks.local(tensor).nbytes for tensor in part) / 2**20 for part in parts])
    kept = ranks.joined(torch.cat([kept, kept.sum()[None]])[None]).amax(0).tolist()
    if ranks.rank() == 0:
        print(f"| {ranks.size()} | {' | '.join(f'{part:.2f}' for part in kept)} | {spread / plain:.2f} |", flush=True)


def reading() -> None:
    """Print the time of a step of 40 ms with a dataset that takes 20 ms per batch, without and with prefetching."""
    from score_sde.data.loader import Prefetched

    def read(position: int) -> dict:
        time.sleep(0.02)
        return {}

    def step_time(get: Callable[[int], dict]) -> float:
        taken = []
        for step in range(60):
            begin = time.perf_counter()
            get(16 * step)
            time.sleep(0.04)
            taken.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(taken[1:])

    print("\n| reading | ms a step |\n|---|---:|")
    print(f"| on demand | {step_time(read):.1f} |")
    print(f"| ahead | {step_time(Prefetched(read, 16, ahead=2)):.1f} |", flush=True)


def work() -> None:
    """Print the floating-point operations per image, forward and backward."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from score_sde.configs import default
    from score_sde.engine.config import load
    from score_sde.models import NETWORKS as KINDS

    recipes = {name: (load(name).network, 32) for name in ("cifar10", "cifar10_ddpmpp_vp")}
    recipes["ADM of ImageNet-64"] = (default.choose("network", "adm", **IMAGENET_64), 64)
    print("\n| network | parameters, million | GFLOP an image, forward | forward and backward |\n|---|---:|---:|---:|")
    for name, (section, side) in recipes.items():
        options = section.to_dict()
        with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):  # without computation; counts all of attention
            network = KINDS[options.pop("name")](shape=(3, side, side), **options)
            x, noise = torch.randn(1, 3, side, side), torch.zeros(1)
            more = {"label": torch.zeros(1, dtype=torch.int64)} if options.get("num_classes") else {}
            counts = []
            for backward in (False, True):
                with FlopCounterMode(display=False) as counter:
                    y = network(x, noise, **more)
                    if backward:
                        y.sum().backward()
                counts.append(counter.get_total_flops() / 1e9)
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"| {name} | {parameters:.1f} | {counts[0]:.1f} | {counts[1]:.1f} |", flush=True)


IMAGENET_64 = {
    "channels": 192,
    "channel_mult": (1.0, 2.0, 3.0, 4.0),
    "num_blocks": 3,
    "attention": (32, 16, 8),
    "head_channels": 64,
    "dropout": 0.1,
    "num_classes": 1000,
}
"""Dhariwal, Nichol, 2021, table 11; Karras et al., 2022, table 7: the network of ImageNet-64."""


SECTIONS = {"threads": threads, "allocator": allocator, "memory": memory, "sharding": sharding, "reading": reading}
SECTIONS |= {"work": work}
WORKERS = {"worker": worker, "allocating": allocating, "shard": shard}
"""Worker processes of the sections."""

if __name__ == "__main__":
    if set(sys.argv[1:2]) & set(WORKERS):
        WORKERS[sys.argv[1]](*sys.argv[2:])
    else:
        for section in sys.argv[1:] or SECTIONS:
            SECTIONS[section]()
