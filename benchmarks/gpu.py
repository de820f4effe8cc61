"""Training and sampling of DDPM++ at the size of CIFAR-10 on a GPU, beside score_sde_pytorch; a Markdown table.

    python benchmarks/gpu.py --score_sde PATH

PATH is a checkout of yang-song/score_sde_pytorch, and may be left out. The network has score_sde's size, 128 channels
and 4 blocks a level. Ours trains in bfloat16, compiled, and samples both so and as it comes; theirs as they publish it.
The contenders take turns; medians of wall time, the device waited for. Operations are those of convolutions and
products of matrices, and the peak is that of a product of matrices in bfloat16 in the same run. Host waits are what
torch's sync debug mode reports in a step.

    python benchmarks/gpu.py --device cpu --tiny

runs the same code on a CPU, with a network and batches that take a minute, to see that it works.
"""

import argparse
import statistics

from command import end, existing
from speed import WAITS, Contender, line, table, turns


def main() -> None:
    """Print the table, or say that there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--score_sde", metavar="PATH", type=existing, help="checkout of score_sde_pytorch")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small network and small batches")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sample_batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()

    import torch

    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(2, "no GPU is here; --device cpu --tiny runs the same code on the CPU\n")
    small = {"channels": 16, "blocks": 1, "side": 512}
    large = {"channels": 128, "blocks": 4, "side": 8192}
    options = {
        **(small if asked.tiny else large),
        "threads": torch.get_num_threads(),
        "device": asked.device,
        "moves": 20,
    }
    rounds, batch, sample_batch = asked.rounds, asked.batch, asked.sample_batch
    if asked.tiny:
        rounds, batch, sample_batch = 2, 2, 4

    half = {**options, "batch": batch, "precision": "bfloat16", "compile": "auto"}
    machine = Contender("peak", {**half, "who": "machine"})
    contenders = [Contender("ours, bfloat16", {**half, "who": "ours"})]
    contenders.append(Contender("ours, bfloat16, channels_last", {**half, "who": "ours", "channels_last": True}))
    contenders.append(Contender("ours, float32", {**half, "who": "ours", "precision": "float32"}))
    if asked.score_sde:
        theirs = {**half, "who": "score_sde", "precision": "float32", "path": asked.score_sde}
        contenders.append(Contender("score_sde_pytorch", theirs))
    for contender in contenders:  # of the network as it is, for those of a compiled one are not counted
        contender.do("bare step" if contender.options["who"] == "ours" else "train")
    for _ in range(rounds):
        turns([machine], ("matmul",), 1)
        turns(contenders, ("train",), 1)
    best = machine.rate("matmul")
    device = torch.cuda.get_device_name(asked.device) if torch.cuda.is_available() else asked.device
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

    mine = {**half, "who": "ours", "batch": sample_batch, "precision": "float32"}
    fast = {"inference": "bfloat16", "compiled": not asked.tiny}
    contenders = [Contender("ours", mine), Contender("ours, inference in bfloat16, compiled", {**mine, **fast})]
    if asked.score_sde:
        contenders.append(Contender("score_sde_pytorch", {**theirs, "batch": sample_batch}))
    turns(contenders, ("sample",), rounds)
    print(f"\nSampling by euler_maruyama, batch {sample_batch}")
    table("sampler", "ms an evaluation", "images/s per evaluation", "x the last row", "MB")
    for contender in contenders:
        seconds = contender.median("sample")
        line(
            contender.label,
            f"{1e3 * seconds:.1f}",
            f"{sample_batch / seconds:.0f}",
            f"{contenders[-1].median('sample') / seconds:.2f}",
            f"{contender.growth:.0f}",
        )
        contender.close()


if __name__ == "__main__":
    end(main)
