"""Record outputs of diffusers' UNet2DModel in the style of NCSN++, with ScoreSdeVeScheduler: tests/data/diffusers.

    pip install diffusers safetensors && python benchmarks/record_diffusers.py

tiny_ncsnpp is a pipeline written by ``save_pretrained``, with weights in half precision that ran in single precision.
drawn_ncsnpp has attention at a level of 128 channels, the fewest at which ours equals it. Its weights are too many to
store, so ``tests/foreign.py`` draws them again from their names and shapes.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from foreign import drawn  # noqa: E402
from parity.recordings import column  # noqa: E402

DATA = ROOT / "tests" / "data" / "diffusers"
SCHEDULER = {"sigma_min": 0.02, "sigma_max": 90.0, "sampling_eps": 1e-4, "num_train_timesteps": 1000, "snr": 0.17}
STYLE = {
    "sample_size": 8,
    "time_embedding_type": "fourier",
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "mid_block_scale_factor": 2**0.5,
}
NETWORKS = {
    "tiny_ncsnpp": {
        "block_out_channels": (4, 4, 8),
        "down_block_types": ("SkipDownBlock2D",) * 3,
        "up_block_types": ("SkipUpBlock2D",) * 3,
        "layers_per_block": 1,
        "attention_head_dim": None,
        "center_input_sample": True,
    },
    "drawn_ncsnpp": {
        "block_out_channels": (32, 128, 128),
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "layers_per_block": 2,
        "attention_head_dim": 32,
        "num_class_embeds": 3,
    },
}


def main() -> None:
    from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler, UNet2DModel

    warnings.simplefilter("ignore")
    for name, options in NETWORKS.items():
        folder = DATA / name
        network = UNet2DModel(**STYLE, **options).eval()
        shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        network.load_state_dict(drawn(shapes))
        source = np.random.RandomState(1)
        sigma = torch.tensor([0.02, 0.4, 6.0, 90.0])
        noise = torch.from_numpy(source.standard_normal((4, 3, 8, 8))).float()
        x = torch.from_numpy(source.random_sample((4, 3, 8, 8))).float() + column(sigma) * noise
        arrays = {"x": x, "t": sigma}
        if network.config.num_class_embeds:
            arrays["class_labels"] = torch.tensor([0, 2, 1, 2])
        labels = {"class_labels": arrays["class_labels"]} if "class_labels" in arrays else {}
        with torch.no_grad():
            arrays["out"] = network(x, sigma, **labels).sample
            arrays["out_scalar_t"] = network(x, sigma[1], **labels).sample
        pipeline = ScoreSdeVePipeline(unet=network.half(), scheduler=ScoreSdeVeScheduler(**SCHEDULER))
        pipeline.save_pretrained(folder, variant="fp16")
        np.savez_compressed(folder / "io.npz", **{key: value.numpy() for key, value in arrays.items()})
        if name.startswith("drawn"):
            (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
            (folder / "io.npz").rename(folder / "answers.npz")
            (folder / "shapes.json").write_text(json.dumps(shapes) + "\n")


if __name__ == "__main__":
    main()
