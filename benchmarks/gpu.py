"""Training and sampling of DDPM++ at the size of CIFAR-10 on a GPU, compared with score_sde_pytorch.

    python benchmarks/gpu.py --score_sde PATH

PATH is an optional checkout of yang-song/score_sde_pytorch. The network has score_sde's size, 128 channels and 4 blocks
per level. Ours trains in bfloat16, compiled, and samples in float32 and in bfloat16, compiled; score_sde_pytorch runs
as published. The contenders run in turns. Times are medians of wall time, with the device synchronized. Operations are
convolutions and matrix products; the peak is the rate of a bfloat16 matrix product in the same run. Host waits are
reported by torch's sync debug mode in one step. The tables are in Markdown.

    python benchmarks/gpu.py --device cpu --tiny

runs the same code on a CPU with a small network and small batches, in about a minute, as a test.
"""

import argparse
import statistics
from collections.abc import Mapping
from typing import Any

from command import end, existing
from speed import WAITS, Contender, line, table, turns


def main() -> None:
    """Print the tables; exits with status 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--score_sde", metavar="PATH", type=existing, help="checkout of score_sde_pytorch")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small network and small batches")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sample_batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()

    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(2, "no GPU found; --device cpu --tiny runs the same code on the CPU\n")
    if args.tiny:
        args.rounds, args.batch, args.sample_batch = 2, 2, 4
    size = {"channels": 16, "blocks": 1, "side": 512} if args.tiny else {"channels": 128, "blocks": 4, "side": 8192}
    options = {**size, "threads": torch.get_num_threads(), "device": args.device, "moves": 20}
    training(options, args.score_sde, args.batch, args.rounds)
    sampling(options, args.score_sde, args.sample_batch, args.rounds, compiled=not args.tiny)


def training(options: Mapping[str, Any], score_sde: str | None, batch: int, rounds: int) -> None:
    """Print the table of training steps."""
    import torch

    half = {**options, "batch": batch, "precision": "bfloat16", "compile": "auto"}
    machine = Contender("peak", {**half, "who": "machine"})
    contenders = [Contender("ours, bfloat16", {**half, "who": "ours"})]
    contenders.append(Contender("ours, bfloat16, channels_last", {**half, "who": "ours", "channels_last": True}))
    contenders.append(Contender("ours, float32", {**half, "who": "ours", "precision": "float32"}))
    if score_sde:
        theirs = {**half, "who": "score_sde", "precision": "float32", "path": score_sde}
        contenders.append(Contender("score_sde_pytorch", theirs))
    for contender in contenders:  # counts operations of the uncompiled network; compiled ones are not counted
        contender.do("bare step" if contender.options["who"] == "ours" else "train")
    for _ in range(rounds):
        turns([machine], ("matmul",), 1)
        turns(contenders, ("train",), 1)
    best = machine.rate("matmul")
    device = torch.cuda.get_device_name(options["device"]) if torch.cuda.is_available() else options["device"]
    print(f"{device}, torch {torch.__version__}; bfloat16 products of matrices at {best / 1e3:.3g} TFLOP/s")
    print(f"\nTraining step, batch {batch}")
    table(
        "step", "parameters", "ms", "images/s", "TFLOP/s", "of the peak", "as fast as the last row", "MB", "host waits"
    )
    for contender in contenders:
        seconds, ours = contender.median("train"), contender.options["who"] == "ours"
        rate = contender.operations["bare step" if ours else "train"] / seconds / 1e9
        if ours:
            turns([contender], (WAITS,), 3)
        line(
            contender.label,
            f"{contender.parameters:,}",
            f"{1e3 * seconds:.1f}",
            f"{batch / seconds:.0f}",
            f"{rate / 1e3:.3g}",
            f"{rate / best:.1%}",
            f"{contenders[-1].median('train') / seconds:.2f}",
            f"{contender.growth:.0f}",
            f"{statistics.median(contender.seconds[WAITS]):.0f}" if ours else "",
        )
    for contender in [*contenders, machine]:
        contender.close()


def sampling(options: Mapping[str, Any], score_sde: str | None, batch: int, rounds: int, compiled: bool) -> None:
    """Print the table of samplers."""
    mine = {**options, "batch": batch, "precision": "float32", "compile": "auto", "who": "ours"}
    fast = {"inference": "bfloat16", "compiled": compiled}
    contenders = [Contender("ours", mine), Contender("ours, inference in bfloat16, compiled", {**mine, **fast})]
    if score_sde:
        contenders.append(Contender("score_sde_pytorch", {**mine, "who": "score_sde", "path": score_sde}))
    turns(contenders, ("sample",), rounds)
    print(f"\nSampling by euler_maruyama, batch {batch}")
    table("sampler", "ms an evaluation", "images/s per evaluation", "x the last row", "MB")
    for contender in contenders:
        seconds = contender.median("sample")
        line(
            contender.label,
            f"{1e3 * seconds:.1f}",
            f"{batch / seconds:.0f}",
            f"{contenders[-1].median('sample') / seconds:.2f}",
            f"{contender.growth:.0f}",
        )
        contender.close()


if __name__ == "__main__":
    end(main)
