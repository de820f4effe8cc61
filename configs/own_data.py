"""Recipes for data of the user's own: images, signals, fields, tables and points.

    python run.py --config mnist --mode train --config.data.path=mnist.zip
    python run.py --config signals --mode train --config.data.path=signals.npy --workdir runs/signals

Without a path, signals, fields and tables are synthetic.
"""

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    # VP SDE on MNIST: any folder or zip of its images.
    "mnist": {
        "data.name": "images",
        "data.path": "datasets/mnist.zip",
        "network.channels": 32,
        "network.channel_mult": (1, 2, 2),
        "network.num_blocks": 2,
        "network.attention": (7,),
        "optim.learning_rate": 1e-3,
        "optim.beta2": 0.999,
        "optim.warmup_images": 128_000,
        "ema.rates": (0.9999,),
        "train.total_images": 6_000_000,
        "train.batch_size": 128,
    },
    # VP SDE and an MLP on points in the plane: the fastest run, whose density can be drawn.
    "points": {
        "data.name": "moons",
        "codec": "identity",
        "network": "mlp",
        "optim.learning_rate": 2e-3,
        "optim.beta2": 0.999,
        "optim.warmup_images": 25_600,
        "train.total_images": 500_000,
        "train.batch_size": 256,
        "sample.num_samples": 2_000,
        "sample.batch_size": 2_000,
        "likelihood.dequantization": "none",
    },
    # VP SDE and an MLP on a table of real numbers (N, D), in numpy files.
    "table": {"base": "points", "data.name": "table", "codec": "standardize"},
    # VP SDE and a U-Net on real-valued signals (N, C, L), in numpy files.
    "signals": {
        "data.name": "signals",
        "codec": "standardize",
        "network.pad": True,
        "optim.learning_rate": 4e-3,
        "likelihood.dequantization": "none",
    },
    # VP SDE and a U-Net on real-valued images (N, C, H, W) or (N, H, W, C), in numpy files.
    "fields": {"base": "signals", "data.name": "fields"},
}
