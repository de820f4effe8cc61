"""Time of a training step and memory of networks, ours and in their published code.

    OMP_NUM_THREADS=1 python benchmarks/networks.py --score_sde PATH --guided_diffusion PATH --edm PATH

The paths are checkouts of yang-song/score_sde_pytorch, openai/guided-diffusion and NVlabs/edm (which needs the package
requests); diffusers is an installed package. Missing ones are skipped.

A step is forward, mean square and backward on a batch of 4 images (3, 32, 32), with 32 channels at the finest level.
Each contender is a separate process, and the two of a row run in turns, so that other load affects both equally. The
table contains medians of CPU time, and the growth of the resident set from before the first step to its peak.
"""

import argparse
import ctypes
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
BATCH, CHANNELS, SIDE, WARM = 4, 32, 32, 3


def ours(name: str, **options: Any) -> Any:
    """Returns a network of the toolkit."""
    sys.path.insert(0, str(ROOT))
    from score_sde.models import NETWORKS

    return NETWORKS[name](shape=(3, SIDE, SIDE), channels=CHANNELS, channel_mult=(1, 2, 2, 2), **options)


def score_sde(path: str, config: str) -> Any:
    """Returns a network of score_sde_pytorch, without its CUDA kernels, which the CPU does not use."""
    sys.path.insert(0, path)
    with mock.patch("torch.utils.cpp_extension.load"):
        from models import ddpm, ncsnpp, utils  # noqa: F401  (they register themselves)
    spec = importlib.util.spec_from_file_location("config", Path(path) / "configs" / f"{config}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = module.get_config()
    settings.model.nf = CHANNELS
    return utils.get_model(settings.model.name)(settings)


def guided_diffusion(path: str) -> Any:
    """Returns the U-Net of guided diffusion."""
    sys.path.insert(0, path)
    from guided_diffusion.unet import UNetModel

    return UNetModel(
        SIDE, 3, CHANNELS, 3, 2, attention_resolutions=(2, 4), dropout=0.1, channel_mult=(1, 2, 2, 2),
        num_head_channels=32, use_scale_shift_norm=True, resblock_updown=True,
    )  # fmt: skip


def edm(path: str, name: str, **options: Any) -> Any:
    """Returns a U-Net of EDM."""
    sys.path.insert(0, path)
    from training import networks

    plain = {"model_channels": CHANNELS, "channel_mult": [1, 2, 2, 2], "num_blocks": 2, "attn_resolutions": [16]}
    network = getattr(networks, name)(SIDE, 3, 3, **plain, **options)
    network.forward = lambda x, noise, forward=network.forward: forward(x, noise, None)
    return network


def diffusers(path: str) -> Any:
    """Returns the U-Net of diffusers with the options of its DDPM checkpoints."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        SIDE, 3, 3, time_embedding_type="positional", freq_shift=1, flip_sin_to_cos=False, downsample_padding=0,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), dropout=0.1,
        block_out_channels=(CHANNELS, *3 * [2 * CHANNELS]), attention_head_dim=None, norm_eps=1e-6,
    )  # fmt: skip
    network.forward = lambda x, noise, forward=network.forward: forward(x, noise).sample
    return network


FIR = {"fir": (1.0, 3.0, 3.0, 1.0)}
SONG = {"name": "song", "num_blocks": 2, "attention": (16,), "dropout": 0.1}
ROWS = {
    "DDPM": ("score_sde", {"config": "vp/ddpm/cifar10"}, {"name": "ddpm", "attend_always": False}),
    "DDPM++": ("score_sde", {"config": "vp/cifar10_ddpmpp_continuous"}, {"name": "ncsnpp"}),
    "NCSN++": (
        "score_sde",
        {"config": "ve/cifar10_ncsnpp_continuous"},
        {
            "name": "ncsnpp",
            **FIR,
            "progressive_input": "residual",
            "embedding": "fourier",
            "centred": False,
            "by_sigma": True,
        },
    ),
    "ADM": (
        "guided_diffusion",
        {},
        {"name": "adm", "num_blocks": 2, "attention": (16, 8), "head_channels": 32, "norm_group": 1, "dropout": 0.1},
    ),
    "EDM's DDPM++": ("edm", {"name": "SongUNet"}, SONG),
    "EDM's NCSN++": (
        "edm",
        {
            "name": "SongUNet",
            "embedding_type": "fourier",
            "channel_mult_noise": 2,
            "encoder_type": "residual",
            "resample_filter": [1, 3, 3, 1],
        },
        {**SONG, **FIR, "embedding": "fourier", "noise_mult": 2, "encoder": "residual"},
    ),
    "EDM's ADM": (
        "edm",
        {"name": "DhariwalUNet"},
        {"name": "adm", "num_blocks": 2, "attention": (16,), "dropout": 0.1},
    ),
    "UNet2DModel": ("diffusers", {}, {"name": "ddpm"}),
}
"""Network -> (published code, its options there, its options here)."""

PEERS = {"score_sde": score_sde, "guided_diffusion": guided_diffusion, "edm": edm, "diffusers": diffusers}


def work(row: str, path: str) -> None:
    """Build one contender, then run a step for each line of the input and print its seconds and the memory growth."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    peer, theirs, options = ROWS[row]
    network = (PEERS[peer](path, **theirs) if path else ours(**options)).train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    x, noise = torch.randn(BATCH, 3, SIDE, SIDE), 0.1 + torch.rand(BATCH)

    def step(num: int) -> None:
        network(x[:num], noise[:num]).square().mean().backward()
        for parameter in parameters:
            parameter.grad = None

    step(1)  # triggers late imports and allocations
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident()
    print(sum(p.numel() for p in parameters), flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        step(BATCH)
        print(time.process_time() - start, peak() - before, flush=True)


def resident() -> float:
    """Returns the resident set size in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def peak() -> float:
    """Returns the peak resident set size in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def contender(row: str, path: str = "") -> subprocess.Popen:
    """Returns the process of one contender; without a path it is ours."""
    command = [sys.executable, __file__, "--worker", row, path]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def compare(row: str, path: str, rounds: int) -> None:
    """Measure both contenders of a row and print the line of the table."""
    pair = contender(row), contender(row, path)
    counts = [process.stdout.readline().strip() for process in pair]
    if not all(counts) or counts[0] != counts[1]:
        raise SystemExit(f"{row}: parameters {' and '.join(c or 'none' for c in counts)}; the network did not build")
    taken = [[], []]
    for _ in range(WARM + rounds):
        for process, found in zip(pair, taken, strict=True):
            process.stdin.write("step\n")
            process.stdin.flush()
            found.append([float(number) for number in process.stdout.readline().split()])
    for process in pair:
        process.communicate()
    (mine, my_peak), (others, their_peak) = (
        (1e3 * statistics.median(seconds for seconds, _ in found[WARM:]), found[-1][1]) for found in taken
    )
    print(
        f"| {row} | {ROWS[row][0]} | {int(counts[0]):,} | {mine:.1f} | {others:.1f} | {mine / others:.2f} "
        f"| {my_peak:.0f} | {their_peak:.0f} | {my_peak / their_peak:.2f} |",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    from benchmarks.command import existing

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("score_sde", "guided_diffusion", "edm"):
        parser.add_argument(f"--{name}", metavar="PATH", type=existing, help=f"checkout of {name}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=ROWS, help="one row")
    given = vars(parser.parse_args())
    given["diffusers"] = "installed" if importlib.util.find_spec("diffusers") else None
    print("| network | of | parameters | ours, ms | theirs, ms | ratio | ours, MB | theirs, MB | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row, (peer, *_) in ROWS.items():
        if given["only"] in (None, row) and given[peer]:
            compare(row, given[peer], given["rounds"])
    for peer in PEERS:
        if not given[peer]:
            print(f"{peer} is not there and left out")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        sys.path.insert(0, str(ROOT))
        from benchmarks.command import end

        end(main)
