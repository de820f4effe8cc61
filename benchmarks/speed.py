"""Speed of the toolkit, score_sde_pytorch and diffusers: Markdown tables with ratios within one run.

    OMP_NUM_THREADS=1 python benchmarks/speed.py --score_sde PATH

PATH is a checkout of yang-song/score_sde_pytorch; diffusers and torchsde are optional packages. Missing ones are
skipped. ``--only training,sampling,batches,likelihood,parts,starting`` selects sections. With one thread the numbers
are CPU time, which depends least on other processes; with more threads they are wall time.

The network is DDPM++ on images (3, 32, 32) with 32 channels at the finest level and 2 blocks per level. Each contender
is a separate process, and all run in turns, so that other load affects them equally. The tables contain medians.
Operations are convolutions and matrix products, counted by torch; the peak is the rate of a convolution of 64 channels,
measured in turns with the contenders.
"""

import argparse
import ctypes
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from networks import peak, resident

ROOT = Path(__file__).parents[1]
SHAPE, NUM_EXAMPLES = (3, 32, 32), 256
PEAK_CHANNELS, PEAK_BATCH = 64, 64

WAITS = "waits"
"""The action that counts how often the host waits for the device in a step; its count is reported, not its time."""

Actions = dict[str, Callable[[], float]]
"""Actions of a contender by name; each returns its number of repetitions."""


def images() -> Any:
    """Returns random images, uint8."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, *SHAPE), dtype=np.uint8)


def ours(given: Mapping[str, Any]) -> tuple[Actions, Any]:
    """Returns the toolkit's trainer, sampler and flow as actions, and its network."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.speed_toolkit import Toolkit

    toolkit = Toolkit(given, images())
    return toolkit.actions(), toolkit.trainer.network


def score_sde(given: Mapping[str, Any]) -> tuple[Actions, Any]:
    """Returns step, sampler and likelihood of score_sde_pytorch as actions, and its network of the same size."""
    path = Path(given["path"])
    sys.path.insert(0, str(path))
    with mock.patch("torch.utils.cpp_extension.load"):
        importlib.import_module("models.ncsnpp")  # registers itself
        utils, ema = (importlib.import_module(f"models.{name}") for name in ("utils", "ema"))
    import torch
    from likelihood import get_likelihood_fn
    from losses import get_optimizer, get_step_fn, optimization_manager
    from sampling import EulerMaruyamaPredictor, NoneCorrector, get_pc_sampler

    from score_sde.sde_lib import VPSDE

    spec = importlib.util.spec_from_file_location("config", path / "configs/vp/cifar10_ddpmpp_continuous.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config, device = module.get_config(), torch.device(given["device"])
    config.device, config.model.nf, config.model.num_res_blocks = device, given["channels"], given["blocks"]
    network = utils.get_model(config.model.name)(config).to(device)
    average = ema.ExponentialMovingAverage(network.parameters(), decay=config.model.ema_rate)
    state = {"model": network, "optimizer": get_optimizer(config, network.parameters()), "ema": average, "step": 0}
    sde = VPSDE(config.model.beta_min, config.model.beta_max, config.model.num_scales)
    step = get_step_fn(sde, train=True, optimize_fn=optimization_manager(config), reduce_mean=True)
    x = torch.from_numpy(images()[: given["batch"]]).to(device).float() / 127.5 - 1
    few = VPSDE(config.model.beta_min, config.model.beta_max, given["moves"] + 1)
    sampler = get_pc_sampler(
        few, x.shape, EulerMaruyamaPredictor, NoneCorrector, lambda x: x, 0.16, continuous=True, device=device
    )
    likelihood = get_likelihood_fn(sde, lambda x: (x + 1) / 2, rtol=1, atol=1)

    def train() -> float:
        network.train()
        step(state, x)
        return 1

    def forward() -> float:
        with torch.no_grad():
            network.eval()(x, torch.full((len(x),), 500.0, device=device))
        return 1

    return {
        "train": train,
        "forward": forward,
        "sample": lambda: sampler(network)[1] / 2,  # its count includes a corrector, which is NoneCorrector here
        "one probe": lambda: likelihood(network, x)[2],
    }, network


def diffusers(given: Mapping[str, Any]) -> tuple[Actions, Any]:
    """Returns the loop of diffusers' training script and its DDIM as actions, and the U-Net of its DDPM."""
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    channels, device = given["channels"], given["device"]
    network = UNet2DModel(
        SHAPE[1], 3, 3, time_embedding_type="positional", freq_shift=1, flip_sin_to_cos=False, downsample_padding=0,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), dropout=0.1,
        layers_per_block=given["blocks"], block_out_channels=(channels, *3 * [2 * channels]), norm_eps=1e-6,
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    average, chain, ddim = EMAModel(network.parameters()), DDPMScheduler(), DDIMScheduler()
    x = torch.from_numpy(images()[: given["batch"]]).to(device).float() / 127.5 - 1

    def train() -> float:
        network.train()
        eps, t = torch.randn_like(x), torch.randint(0, 1000, (len(x),), device=device)
        loss = torch.nn.functional.mse_loss(network(chain.add_noise(x, eps, t), t).sample, eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        return 1

    def forward() -> float:
        with torch.no_grad():
            network.eval()(x, torch.full((len(x),), 500, device=device))
        return 1

    def sample() -> float:
        network.eval()
        ddim.set_timesteps(given["moves"] + 1)
        y = torch.randn_like(x)
        with torch.no_grad():
            for t in ddim.timesteps:
                y = ddim.step(network(y, t).sample, t, y).prev_sample
        return given["moves"] + 1

    return {"train": train, "forward": forward, "sample": sample}, network


def machine(given: Mapping[str, Any]) -> tuple[Actions, Any]:
    """Returns the convolution and the matrix product that define the peaks, and no network."""
    import torch

    device, dtype, side = given["device"], getattr(torch, given["precision"]), given.get("side", 1024)
    square = torch.randn(side, side, device=device, dtype=dtype)
    shape = PEAK_BATCH, PEAK_CHANNELS, *SHAPE[1:]
    x, w = torch.randn(shape), torch.randn(PEAK_CHANNELS, PEAK_CHANNELS, 3, 3)
    x, w = (a.to(device, dtype, memory_format=torch.channels_last) for a in (x, w))

    def forward() -> float:
        with torch.no_grad():
            torch.nn.functional.conv2d(x, w, padding=1)
        return 1

    def matmul() -> float:
        for _ in range(10):
            square @ square
        return 10

    return {"forward": forward, "matmul": matmul}, torch.nn.Module()


WHO = {"ours": ours, "score_sde": score_sde, "diffusers": diffusers, "machine": machine}


def work(text: str) -> None:
    """Run as a contender: do the action of each input line, and print seconds, operations and memory growth in MB."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    given = json.loads(text)
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    actions, network = WHO[given["who"]](given)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    on_gpu, alone = given["device"].startswith("cuda"), given["threads"] == 1
    before, clock = resident(), time.process_time if alone and not on_gpu else time.perf_counter

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return clock()

    def growth() -> float:
        return torch.cuda.max_memory_allocated() / 1e6 if on_gpu else peak() - before

    print(sum(p.numel() for p in network.parameters()), flush=True)
    warm = set()
    for line in sys.stdin:
        name, operations = line.strip(), 0.0
        if name not in warm:
            warm.add(name)
            # The counter's hooks fail under torch.autograd.grad, which computes the divergence.
            counts = FlopCounterMode(display=False, custom_mapping=on_cpu())
            with counts if "probe" not in name else nullcontext():
                times = actions[name]()
            operations = counts.get_total_flops() / max(times, 1)
        start = now()
        times = actions[name]()
        print(times if name == WAITS else (now() - start) / times, operations, growth(), flush=True)


def attention(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *others: Any, **more: Any) -> int:
    """Returns the operations of attention forward: two matrix products."""
    batch, heads, positions, width = query
    return 2 * batch * heads * positions * key[2] * (width + value[3])


def attention_backward(gradient: tuple[int, ...], query: tuple[int, ...], *others: Any, **more: Any) -> int:
    """Returns twice the forward's operations, without the first product that the fused kernel recomputes."""
    return 2 * attention(query, *others)


def on_cpu() -> dict[Any, Callable]:
    """Returns counts that torch's counter lacks: attention on a CPU."""
    import torch

    found = torch.ops.aten
    return {
        found._scaled_dot_product_flash_attention_for_cpu: attention,
        found._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }


class Contender:
    """A process that runs actions on request, one at a time.

    Args:
        label: name in the tables.
        options: who (a key of ``WHO``) and its options: batch, channels, blocks, precision, device, threads, path.
    """

    def __init__(self, label: str, options: Mapping[str, Any]) -> None:
        command = [sys.executable, __file__, "--worker", json.dumps(options)]
        self.label, self.options = label, options
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.parameters, self.seconds, self.operations, self.growth = int(self._answer()[0]), {}, {}, 0.0

    def do(self, action: str) -> None:
        """Run an action once and record its time; before its first time it runs once untimed, for late imports."""
        self.process.stdin.write(action + "\n")
        self.process.stdin.flush()
        seconds, operations, self.growth = map(float, self._answer())
        self.operations.setdefault(action, operations)
        self.seconds.setdefault(action, []).append(seconds)

    def _answer(self) -> list[str]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.label} ended; its output is above")
        return line.split()

    def median(self, action: str) -> float:
        """Returns the median seconds of an action."""
        return statistics.median(self.seconds[action])

    def rate(self, action: str) -> float:
        """Returns 10^9 operations per second."""
        return self.operations[action] / self.median(action) / 1e9

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def table(*columns: str) -> None:
    """Print the header of a table."""
    print("\n| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)


def line(*cells: object) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def turns(contenders: list[Contender], actions: tuple[str, ...], rounds: int) -> None:
    """Run all actions of all contenders in turns."""
    for _ in range(rounds):
        for contender in contenders:
            for action in actions:
                contender.do(action)


def peaks(options: Mapping[str, Any], rounds: int) -> dict[str, Contender]:
    """Returns the contenders of the peaks in float32 and, if it is no slower, bfloat16."""
    found = {
        name: Contender(name, {**options, "who": "machine", "precision": name}) for name in ("float32", "bfloat16")
    }
    turns(list(found.values()), ("forward",), rounds)
    single, half = (contender.rate("forward") for contender in found.values())
    print(f"\npeak of a convolution: {single:.0f} GFLOP/s in float32, {half:.0f} in bfloat16", end="")
    if half < single:
        print("; this CPU emulates bfloat16, which is left out", end="")
        found.pop("bfloat16").close()
    print(flush=True)
    return found


def training(options: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], rounds: int) -> None:
    """Print the table of whole training steps, each by its own code."""
    machines, mine = peaks(options, 3), {**options, "who": "ours"}
    contenders = []
    for precision in machines:
        contenders += [
            Contender(f"ours, {precision}", {**mine, "precision": precision}),
            Contender(f"ours, {precision}, channels_last", {**mine, "precision": precision, "channels_last": True}),
        ]
    contenders += [Contender(name, peer) for name, peer in peers.items()]
    for _ in range(rounds):
        turns(list(machines.values()), ("forward",), 1)
        turns(contenders, ("train",), 1)
    print(f"\nTraining step, batch {options['batch']}")
    table("step", "parameters", "GFLOP an image", "ms", "images/s", "GFLOP/s", "of the peak", *PER_FLOP, "MB")
    for contender in contenders:
        rate, precision = contender.rate("train"), contender.options["precision"]
        line(
            contender.label,
            f"{contender.parameters:,}",
            f"{contender.operations['train'] / options['batch'] / 1e9:.2f}",
            f"{1e3 * contender.median('train'):.0f}",
            f"{options['batch'] / contender.median('train'):.1f}",
            f"{rate:.1f}",
            f"{rate / machines[precision].rate('forward'):.0%}",
            *(f"{rate / c.rate('train'):.2f}" for c in others(contenders)),
            f"{contender.growth:.0f}",
        )
    for contender in [*contenders, *machines.values()]:
        contender.close()


PER_FLOP: list[str] = []


def others(contenders: list[Contender]) -> list[Contender]:
    """Returns the contenders of other projects."""
    return [contender for contender in contenders if contender.options["who"] not in ("ours", "machine")]


def sampling(options: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], rounds: int) -> None:
    """Print the table of evaluations within a sampler: the network and the move."""
    contenders = [Contender("ours, euler_maruyama", {**options, "who": "ours"})]
    contenders += [Contender(name, peer) for name, peer in peers.items()]
    turns(contenders, ("forward", "sample"), rounds)
    print(f"\nSampling, batch {options['batch']}")
    table("sampler", "forward, ms", "evaluation, ms", "images/s per evaluation", "GFLOP/s", *PER_FLOP)
    for contender in contenders:
        seconds = contender.median("sample")
        line(
            contender.label,
            f"{1e3 * contender.median('forward'):.1f}",
            f"{1e3 * seconds:.1f}",
            f"{options['batch'] / seconds:.1f}",
            f"{contender.rate('sample'):.1f}",
            *(f"{contender.rate('sample') / c.rate('sample'):.2f}" for c in others(contenders)),
        )
        contender.close()


def batches(options: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], rounds: int) -> None:
    """Print the table of forwards by batch size."""
    contenders = [Contender(str(num), {**options, "who": "ours", "batch": num}) for num in (4, 8, 16, 32, 64, 128, 256)]
    turns(contenders, ("forward",), rounds)
    print("\nForward, by the size of the batch")
    table("batch", "forward, ms", "images/s")
    for contender in contenders:
        seconds = contender.median("forward")
        line(contender.label, f"{1e3 * seconds:.1f}", f"{int(contender.label) / seconds:.1f}")
        contender.close()


def likelihood(options: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], rounds: int) -> None:
    """Print the table of evaluations of the flow with its divergence, in forwards."""
    contenders = [Contender("ours", {**options, "who": "ours"})]
    contenders += [Contender(name, peer) for name, peer in peers.items() if name == "score_sde_pytorch"]
    turns(contenders[:1], ("forward", "one probe", "four probes"), rounds)
    turns(contenders[1:], ("forward", "one probe"), 2)
    print(f"\nLikelihood, batch {options['batch']}, forwards an evaluation")
    table("code", "forward, ms", "one probe", "four probes")
    for contender in contenders:
        bare = contender.median("forward")
        ratios = [contender.median(name) / bare if name in contender.seconds else None for name in PROBED]
        line(contender.label, f"{1e3 * bare:.1f}", *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
        contender.close()


PROBED = ("one probe", "four probes")


def parts(options: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], rounds: int) -> None:
    """Print the table of a sampler's costs beyond its network."""
    tree = "increment of torchsde's BrownianTree"
    names = {
        "ours": (
            "move of ddim",
            "move of euler_maruyama",
            "evaluation of ode",
            "of these, the denoiser",
            "Brownian increment",
            "Brownian motion at any time",
        ),
        "others": (  # a separate process, whose numpy threads do not disturb ours
            "torch.randn",
            "evaluation of scipy's RK45, the denoiser included",
            *[tree] * bool(importlib.util.find_spec("torchsde")),
        ),
    }
    contenders = {name: Contender(name, {**options, "who": "ours"}) for name in names}
    for _ in range(3 * rounds):
        for name, contender in contenders.items():
            turns([contender], names[name], 1)
    print(f"\nBeyond the network, batch {options['batch']}, ms")
    table("part", "ms")
    for name, contender in contenders.items():
        for part in names[name]:
            line(part, f"{1e3 * contender.median(part):.3f}")
        contender.close()


FIRST_STEP = """
import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1])
from score_sde.engine.config import load
from score_sde.engine.training.trainer import Trainer
from score_sde.engine.datasets import read_dataset
config = load("vpsde"); trainer = Trainer(config, Path(sys.argv[2]), read_dataset(config.data, "train"))
next(trainer.steps(1)); print(time.process_time())
"""


def starting(options: Mapping[str, Any], peers: Mapping[str, Mapping[str, Any]], rounds: int) -> None:
    """Print the CPU time of --help, of importing torch, and of a start up to the first training step of vpsde."""
    step = [sys.executable, "-c", FIRST_STEP, str(ROOT), tempfile.mkdtemp()]
    commands = {
        "run.py --help": [sys.executable, str(ROOT / "run.py"), "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "the first training step of vpsde": step,
    }
    taken = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            before = os.times()
            subprocess.run(command, check=True, capture_output=True)
            after = os.times()
            user, system = (
                after.children_user - before.children_user,
                after.children_system - before.children_system,
            )
            taken[name].append(user + system)
    print("\nFrom the command to its end, s of CPU time")
    table("command", "s")
    for name, seconds in taken.items():
        line(name, f"{statistics.median(seconds):.2f}")


SECTIONS = {
    "training": training,
    "sampling": sampling,
    "batches": batches,
    "likelihood": likelihood,
    "parts": parts,
    "starting": starting,
}


def main() -> None:
    """Print the tables."""
    from benchmarks.command import existing

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--score_sde", metavar="PATH", type=existing, help="checkout of score_sde_pytorch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    args = parser.parse_args()
    options = {
        "threads": args.threads,
        "batch": args.batch,
        "channels": args.channels,
        "blocks": 2,
        "moves": 2,
        "precision": "float32",
        "device": "cpu",
    }
    peers = {}
    if args.score_sde:
        peers["score_sde_pytorch"] = {**options, "who": "score_sde", "path": args.score_sde}
    if importlib.util.find_spec("diffusers"):
        peers["diffusers"] = {**options, "who": "diffusers"}
    PER_FLOP.extend(f"per FLOP, {name} = 1" for name in peers)
    clock = "CPU time" if args.threads == 1 else "wall time"
    print(f"{args.threads} thread(s), {clock}; load of the machine at the start {os.getloadavg()[0]:.1f}")
    for name in args.only.split(","):
        SECTIONS[name](options, peers, args.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
    else:
        sys.path.insert(0, str(ROOT))
        from benchmarks.command import end

        end(main)
