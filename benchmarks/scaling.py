"""What training needs of a machine: threads and how they wait, memory, reading ahead, work an image.

    python benchmarks/scaling.py threads allocator memory sharding reading work

What is timed against each other takes turns in one run; medians.
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
    "as it comes": {},
    "1,000 spins": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
NETWORKS = {"8x8, 16 channels": (8, 16), "32x32, 32 channels": (32, 32)}
ROUNDS, SECONDS = 5, 0.5
SPIN = "import time; end = time.monotonic() + 600\nwhile time.monotonic() < end: pass"


def trainer(config_name: str, **keys: object):  # noqa: ANN201, what it returns comes late
    """The trainer of a config in a folder of its own, on the CPU."""
    from score_sde.engine.config import load, override
    from score_sde.engine.datasets import read_dataset
    from score_sde.engine.training.trainer import Trainer

    config = load(config_name)
    changes = {"device": "cpu"} | {key.replace("__", "."): value for key, value in keys.items()}
    override(config, [(key, str(value)) for key, value in changes.items()])
    return Trainer(config, Path(tempfile.mkdtemp()), read_dataset(config, "train"))


def images(side: int, num: int = 512) -> str:
    """The path of a file of noise."""
    import numpy as np

    path = Path(tempfile.mkdtemp()) / "images.npy"
    np.save(path, np.random.default_rng(0).integers(256, size=(num, side, side, 3), dtype=np.uint8))
    return str(path)


def worker(side: str, channels: str) -> None:
    """Take steps for ``SECONDS`` whenever a line comes in, and answer with milliseconds a step."""
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
    """A worker with so many threads that wait in this way."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_NUM_THREADS": str(threads), **POLICIES[policy]}
    command = [sys.executable, __file__, "worker", *map(str, size)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen) -> float:
    """Milliseconds a step of a worker, now."""
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def threads() -> None:
    """Milliseconds a step by threads, policy and network, alone and beside a process that spins."""
    most = os.cpu_count() or 1
    contenders = [(1, "as it comes"), *((most, policy) for policy in POLICIES)]
    print(f"\n{most} cores, load {os.getloadavg()[0]:.1f} before; batches of 16; ms a step\n")
    print(
        "| network | beside | " + " | ".join(f"{n} thread{'s' * (n > 1)}, {policy}" for n, policy in contenders) + " |"
    )
    print("|---|---" + "|---:" * len(contenders) + "|")
    for name, size in NETWORKS.items():
        workers = [start(n, policy, size) for n, policy in contenders]
        for process in workers:
            ask(process)
        for num in (0, 1, most):
            others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(num)]
            taken = [[ask(process) for process in workers] for _ in range(ROUNDS)]
            for other in others:
                other.kill()
            cells = " | ".join(f"{statistics.median(column):.1f}" for column in zip(*taken, strict=True))
            beside = {0: "nobody of ours", 1: "1 that spins"}.get(num, f"{num} that spin")
            print(f"| {name} | {beside} | {cells} |", flush=True)
        for process in workers:
            process.kill()


def allocator() -> None:
    """Milliseconds and page faults with freed memory kept, over those with the allocator as it comes."""
    print("\n| work | ms, as it comes | ms, kept | ratio | page faults, as it comes | kept |")
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
    """A step of training on images of that side, by a network of so many channels."""
    keys = {"data__name": "images", "data__path": images(size[0]), "threads": 1, "train__batch_size": 16}
    found = trainer("vpsde", network__channels=size[1], train__total_images=10**9, **keys).steps(10**9)
    return lambda: next(found)


def normals() -> Callable[[], object]:
    """Noise of 16 images of 3x32x32, keyed by their seeds."""
    import torch

    from score_sde.samplers import Noise

    noise, like = Noise(torch.arange(16)), torch.zeros(16, 3, 32, 32)
    return lambda: noise(like)


JOBS = {
    "noise of 16 images": normals,
    **{f"training step, {name}": partial(steps_of, size) for name, size in NETWORKS.items()},
}


def allocating(name: str, kept: str) -> None:
    """Work for ``SECONDS`` whenever a line comes in; answer with milliseconds of CPU time and page faults of one."""
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
    """Most memory that a step takes beyond weights and averages, and its time, with train.recompute and without."""
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


def start_of(event) -> int:  # noqa: ANN001, of a class that has no public name
    """When it was."""
    return event.start_ns()


def sharding() -> None:
    """What each of 1, 2 and 4 processes keeps of a network in training, and its time for a step over one unsharded."""
    path = images(32)
    print("\nMB that a process keeps at most; steps over gloo\n")
    print("| processes | parameters | moments | average | together | step, over one unsharded |")
    print("|---:|---:|---:|---:|---:|---:|", flush=True)
    for num in (1, 2, 4):
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num}"]
        subprocess.run([*start, __file__, "shard", path], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def shard(path: str) -> None:
    """One of several processes of ``sharding``; the first one prints the line."""
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
    """Milliseconds a step of 40 ms beside a dataset that takes 20 ms for a batch."""
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
    print(f"| when asked for | {step_time(read):.1f} |")
    print(f"| ahead | {step_time(Prefetched(read, 16, ahead=2)):.1f} |", flush=True)


def work() -> None:
    """Floating-point operations of a step for each image: forward and backward."""
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
        with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):  # nothing is computed; and all of attention is counted
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
"""Processes that a section starts."""

if __name__ == "__main__":
    if set(sys.argv[1:2]) & set(WORKERS):
        WORKERS[sys.argv[1]](*sys.argv[2:])
    else:
        for section in sys.argv[1:] or SECTIONS:
            SECTIONS[section]()
