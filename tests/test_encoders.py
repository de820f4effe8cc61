"""Pairs of encoders: training on captions, CLIP models of transformers, and both from the command line."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from score_sde import run as command_line
from score_sde.configs.choices import choose
from score_sde.engine.config import Options, load, stored
from score_sde.engine.datasets import read_dataset
from score_sde.engine.drawing import draw_pairs
from score_sde.engine.load import load as load_run
from score_sde.engine.load import load_model
from score_sde.engine.sampler import make_step, make_times
from score_sde.models import Captioned
from score_sde.models.checkpoints.safe import ForeignError
from score_sde.models.clip import Clip
from score_sde.samplers import clean_embedding_guidance, embedding_guidance
from score_sde.sde_lib import SDES, Contrastive, Pair


def command(*words):
    """Runs a command in this process and returns its exit status."""
    return command_line.main(["run.py", *map(str, words)])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A short run of encoders of digits and captions."""
    return trained(tmp_path_factory.mktemp("pair"), "clip", 3200)


def trained(workdir, config, images, *more):
    keys = {"network.channels": 8, "optim.learning_rate": 1e-2, "optim.warmup_images": 0, "train.sample_every": 0}
    keys |= {"train.total_images": images, "train.batch_size": 32}
    words = [f"--config.{key}={value}" for key, value in keys.items()]
    assert command("--mode=train", f"--config={config}", "--device=cpu", f"--workdir={workdir}", *words, *more) == 0
    return workdir


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as written by transformers, with a tiny untrained CLIPModel whose tokens are letters."""
    folder = tmp_path_factory.mktemp("published")
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**layers, **ends, "vocab_size": 64, "max_position_embeddings": 8, "projection_dim": 8}
    vision = {**layers, "image_size": 16, "patch_size": 8, "projection_dim": 8}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    words = ["<|startoftext|>", "<|endoftext|>", *(c + end for c in "abcdefghijklmnopqrst" for end in ("", "</w>"))]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture
def drawn():
    """Samples from a run: (arrays, manifest)."""

    def run(workdir, *words, steps=4, num=5):
        flags = ("--sampler=ddim", f"--steps={steps}", f"--num_samples={num}", "--config.sample.keep_latents=true")
        assert command("--mode=sample", f"--workdir={workdir}", *flags, *words) == 0
        folder = workdir / "samples" / f"ddim-{steps}"
        return dict(np.load(folder / "samples.npz")), json.loads((folder / "manifest.json").read_text())

    return run


def refused(capsys, status, message, *words):
    """Asserts that a command fails with this message, in one line."""
    capsys.readouterr()
    assert command("--mode=sample", "--num_samples=2", "--steps=2", "--sampler=ddim", *words) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def small(**more):
    torch.manual_seed(0)
    options = {"names": ("cat|kitten", "dog|puppy"), "templates": ("{}", "a {}"), "num_classes": 2, "dimensions": 6}
    return Captioned((1, 4, 4), channels=4, channel_mult=(1,), dropout=0.0, **options | more)


# --- captions and words -----------------------------------------------------------------------------------------------


def test_the_vocabulary_comes_from_the_captions():
    network = small(names=("Cat|kitten", "dog"), templates=("{}", "a small {}"))
    assert network.words == ["Cat", "a", "dog", "kitten", "small"]
    assert network.tokens("a small dog").tolist() == [[2, 5, 3]]
    assert network.num_captions.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("text", "message"), [("a three", "was not trained on the word 'three'"), (" ", "needs at least one word")]
)
def test_texts_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=f"the text encoder {message}; its words are a, cat, dog"):
        small().tokens(text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"names": ("one",)}, "names has 1 classes, network.num_classes is 2"),
        ({"templates": ("a thing",)}, "need captions with {}"),
        ({"templates": ()}, "need captions with {}"),
    ],
)
def test_invalid_captions_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        small(**more)


def test_a_caption_is_drawn_evenly():
    """Logits of a label and a number equal those of that caption's text."""
    network = small(templates=("{}", "a {}"))
    x, l = torch.randn(3, 1, 4, 4), torch.zeros(3)
    texts = [network.text(network.tokens(text)) for text in ("cat", "kitten", "a cat", "a kitten")]
    for k in range(4):
        u, label = torch.full((1,), (k + 0.5) / 4), torch.zeros(1, dtype=torch.int64)
        expected = network.sharpness() * network.image(x, l) @ texts[k].mT
        torch.testing.assert_close(network(x, l, label=label, u=u), expected)
    assert torch.equal(network(x, l, label=label, u=torch.ones(1)), network(x, l, label=label, u=torch.tensor([0.9])))


def test_embeddings_are_unit_vectors_and_do_not_depend_on_padding():
    network = small()
    tokens = network.tokens("a dog")
    padded = torch.nn.functional.pad(tokens, (0, 3))
    torch.testing.assert_close(network.text(padded), network.text(tokens))
    for vectors in (network.image(torch.randn(2, 1, 4, 4), torch.zeros(2)), network.text(tokens)):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_classes_with_fewer_captions_than_others_are_finite():
    network = small(names=("cat|kitten|tom", "dog"))
    found = network(torch.randn(2, 1, 4, 4), torch.zeros(2))
    assert found.shape == (2, 2)
    found.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
    dogs = [network.text(network.tokens(text))[0] for text in ("dog", "a dog")]
    mean = torch.nn.functional.normalize(sum(dogs), dim=0)
    vectors = torch.nn.functional.normalize(torch.randn(3, 6), dim=1)
    torch.testing.assert_close(network.output(vectors)[:, 1], network.sharpness() * vectors @ mean)


# --- the loss ---------------------------------------------------------------------------------------------------------


class Told(torch.nn.Module):
    """A model that returns fixed logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, noise, label=None, u=None):
        return self.logits


def contrast(logits):
    sde, num = SDES["vpsde"](), len(logits)
    t = torch.full((num, 1), 0.5)
    draws = torch.randn(num, 2), torch.randn(num, 2), t
    return Contrastive(sde)(Pair(Told(logits), sde, 0.5), *draws, torch.randn_like, 0.0, label=torch.arange(num))


def test_the_loss_by_hand():
    """Half of it over the captions of a state, half over the states of a caption."""
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    own = logits.diagonal()
    expected = 0.5 * (logits.logsumexp(1) - own) + 0.5 * (logits.logsumexp(0) - own)
    torch.testing.assert_close(contrast(logits), expected)
    torch.testing.assert_close(contrast(torch.zeros(7, 7)), torch.full((7,), math.log(7)))
    assert contrast(100 * torch.eye(4)).max() < 1e-6


def test_training_matches_digits_and_captions(pair):
    """Held-out digits match their captions better than chance, and better than exchanged captions."""
    lines = [json.loads(line) for line in (pair / "metrics.jsonl").read_text().splitlines()]
    found = next(line for line in reversed(lines) if "validation_accuracy" in line)
    assert found["validation_accuracy"] > 0.2
    assert found["validation_loss_of_zero"] == pytest.approx(math.log(360), rel=1e-4)
    assert found["validation_loss"] < 0.95 * math.log(360)
    experiment, model, _ = load_model(stored(pair), pair, Options())
    dataset = read_dataset(stored(pair).data, "test")
    batch = dataset.batch(np.arange(len(dataset)))
    with torch.no_grad():
        vectors = model.embed(experiment.codec.encode(batch["x"]), experiment.sde.t_min)
        aim, text = model.aim(model.network.tokens("a three")), model.network.text(model.network.tokens("a three"))
        torch.testing.assert_close(aim, model.network.sharpness() * text / text.norm(dim=1, keepdim=True))
        alike = vectors @ aim.mT
    assert alike[batch["label"] == 3].mean() > alike[batch["label"] != 3].mean() + 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--config=clip", "--config.network.name=classifier"),
            "'contrastive' does not train the network 'classifier'",
        ),
        (("--config=clip", "--config.network.num_classes=3"), "network.num_classes 3: the data have 10"),
        (
            ("--config=clip", "--config.network.names=('a','b')"),
            "network.names has 2 classes, network.num_classes is 10",
        ),
        (
            ("--config=vpsde", "--config.loss.objective=contrastive"),
            "'contrastive' does not train the network 'unet'",
        ),
    ],
)
def test_invalid_configs_are_refused(tmp_path, capsys, words, message):
    assert command("--mode=train", f"--workdir={tmp_path / 'new'}", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# --- guidance by a run ------------------------------------------------------------------------------------------------


def picture(path, digit):
    """The first held-out image of this digit, in 256 shades."""
    dataset = read_dataset(load("vpsde").data, "test")
    batch = dataset.batch(np.arange(len(dataset)))
    x = batch["x"][batch["label"] == digit][0, 0]
    Image.fromarray((x.numpy() * 255.0 / 16).round().astype(np.uint8)).save(path)
    return x


def by_hand(workdir, guide):
    """Samples (5, *) of a run with a guided denoiser built here."""
    config = stored(workdir)
    config.sample.sampler, config.sample.steps = choose("sample.sampler", "ddim"), 4
    experiment, denoise, _ = load_run(config, workdir, Options())
    step, times = make_step(config.sample, experiment), make_times(config.sample, experiment)
    return draw_pairs(experiment, guide(denoise, experiment), step, times, torch.arange(5))[1]


def test_samples_are_guided_towards_a_text(digits, pair, drawn):
    words = (f"--config.guidance.encoder={pair}", "--config.guidance.text=A three", "--config.guidance.encoder_scale=2")
    found, manifest = drawn(digits, *words)
    _, model, _ = load_model(stored(pair), pair, Options())
    target = model.aim(model.network.tokens("a three"))
    expected = by_hand(digits, lambda d, e: embedding_guidance(d, e.sde, model.embed, target, 2.0))
    np.testing.assert_allclose(found["x0"], expected, rtol=0, atol=1e-5)
    told = {"encoder": str(pair), "text": "A three", "encoder_scale": 2.0, "low": 0.0, "high": 1e9}
    assert manifest["guidance"] == told
    assert manifest["nfe"] == 5
    alike = []
    for scale in (-10, 10):
        arrays, _ = drawn(digits, *words[:2], f"--config.guidance.encoder_scale={scale}", num=16, steps=10)
        with torch.no_grad():
            alike.append((model.embed(torch.from_numpy(arrays["x0"]), 1e-3) @ target.mT).mean().item())
    assert alike[0] < alike[1]
    assert np.array_equal(
        drawn(digits)[0]["x0"], drawn(digits, *words[:2], "--config.guidance.encoder_scale=0")[0]["x0"]
    )


def test_samples_are_guided_towards_an_image(digits, pair, drawn, tmp_path):
    x = picture(tmp_path / "three.png", 3)
    words = (f"--config.guidance.encoder={pair}", f"--config.guidance.image={tmp_path / 'three.png'}")
    found, manifest = drawn(digits, *words)
    experiment, model, _ = load_model(stored(pair), pair, Options())
    with torch.no_grad():
        clean = model.embed(experiment.codec.encode(x[None, None]), experiment.sde.t_min)
        target = model.network.sharpness() * clean
    expected = by_hand(digits, lambda d, e: embedding_guidance(d, e.sde, model.embed, target, 1.0))
    np.testing.assert_allclose(found["x0"], expected, rtol=0, atol=1e-5)
    assert manifest["guidance"]["image"] == str(tmp_path / "three.png")
    assert "text" not in manifest["guidance"]


def test_a_pair_is_a_classifier_too(digits, pair, drawn):
    """Its captions are classes, so it guides by labels and measures samples."""
    found, _ = drawn(digits, f"--config.guidance.classifier={pair}", "--label=3")
    assert not np.array_equal(found["x0"], drawn(digits)[0]["x0"])
    words = ("--num_samples=20", "--sampler=ddim", "--steps=2", "--config.evaluate.subset_size=10")
    assert command("--mode=evaluate", f"--workdir={digits}", f"--config.evaluate.features={pair}", *words) == 0


def test_unsuitable_encoders_are_refused(digits, points, pair, published, tmp_path, tmp_path_factory, capsys, rewrite):
    text, run = "--config.guidance.text=a three", f"--workdir={digits}"
    encoder = f"--config.guidance.encoder={pair}"
    refused(capsys, 2, "error: guidance.text 'a three' needs a guidance.encoder: train one with", run, text)
    image = f"--config.guidance.image={tmp_path}/x.png"
    refused(capsys, 2, f"error: guidance.image '{tmp_path}/x.png' needs", run, image)
    refused(capsys, 2, "guidance.text or guidance.image, and neither is given", run, encoder)
    refused(capsys, 2, "guidance.image, and both are given", run, encoder, text, "--config.guidance.image=x.png")
    refused(capsys, 2, "the text encoder needs at least one word", run, encoder, "--config.guidance.text= ")
    refused(
        capsys,
        2,
        "the text encoder was not trained on the word 'cat'; its words are 0, 1",
        run,
        encoder,
        "--config.guidance.text=a cat",
    )
    refused(
        capsys,
        2,
        "is not a pair of encoders; train one with --config clip",
        run,
        text,
        f"--config.guidance.encoder={digits}",
    )
    refused(capsys, 3, "config.json is missing", run, text, f"--config.guidance.encoder={tmp_path / 'none'}")
    refused(capsys, 3, "x.png does not exist", run, encoder, "--config.guidance.image=x.png")
    refused(capsys, 2, "has data of shape (1, 8, 8) in 17 levels", f"--workdir={points}", encoder, text)
    refused(capsys, 2, "takes images, and the run has examples of shape (2,)", f"--workdir={points}", text,
            f"--config.guidance.encoder={published}")  # fmt: skip
    shutil.copytree(pair, tmp_path / "noise")
    rewrite(tmp_path / "noise", "sde", "beta_max", 15.0)
    message = "has the noise of vpsde, not of this run's vpsde; train one with python run.py --config clip"
    refused(capsys, 2, message, run, text, f"--config.guidance.encoder={tmp_path / 'noise'}")
    np.save(tmp_path / "two.npy", np.zeros((2, 8, 8, 1), np.uint8))
    refused(
        capsys,
        2,
        "two.npy has 2 examples: give a single one",
        run,
        encoder,
        f"--config.guidance.image={tmp_path}/two.npy",
    )


# --- CLIP models of transformers --------------------------------------------------------------------------------------


def test_a_published_model_embeds_as_transformers_does(published):
    """A picture of the model's own size and colours, and a text with start and end tokens."""
    clip = Clip.load(published, torch.device("cpu"))
    model = transformers.CLIPModel.from_pretrained(published)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    tokens = torch.tensor([[0, 3, 6, 2, 41, 1]])
    with torch.no_grad():
        expected = model(input_ids=tokens, pixel_values=(x - mean) / std)
        torch.testing.assert_close(clip.image(2 * x - 1), expected.image_embeds, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clip.text("a cat"), expected.text_embeds, rtol=1e-4, atol=1e-5)
    assert clip.tokenize("A  cat") == clip.tokenize("a cat") == [0, 3, 6, 2, 41, 1]
    assert clip.sharpness == pytest.approx(model.logit_scale.exp().item())


def test_colours_are_normalised_as_in_the_folder(published, tmp_path):
    shutil.copytree(published, tmp_path / "own")
    (tmp_path / "own" / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.3, 0.4]}'
    )
    clip = Clip.load(tmp_path / "own", torch.device("cpu"))
    assert clip.mean.flatten().tolist() == [0.5] * 3
    torch.testing.assert_close(clip.std.flatten(), torch.tensor([0.2, 0.3, 0.4]))


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_pictures_of_other_sizes_and_one_channel(low, published):
    """Gray becomes three equal channels; a wide picture is cropped to its centre; black follows the encoding."""
    clip = Clip.load(published, torch.device("cpu"), low)
    x = low + (1 - low) * torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    torch.testing.assert_close(clip.image(x), clip.image(x.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(clip.image(torch.full((1, 3, 4, 4), low)), clip.image(torch.full((1, 1, 30, 16), low)))
    (slope,) = torch.autograd.grad(clip.image(x)[:, 0].sum(), x)
    assert slope.isfinite().all()
    assert slope[..., 4:8].norm() > 0
    other = Clip.load(published, torch.device("cpu"), -1.0).image(2 * (x - low) / (1 - low) - 1)
    torch.testing.assert_close(clip.image(x), other)


def test_samples_are_guided_towards_a_text_by_a_published_model(digits, published, drawn):
    words = (f"--config.guidance.encoder={published}", "--config.guidance.text=a cat")
    found, manifest = drawn(digits, *words, "--config.guidance.encoder_scale=3")
    clip = Clip.load(published, torch.device("cpu"))
    target = clip.sharpness * clip.text("a cat")
    expected = by_hand(digits, lambda d, e: clean_embedding_guidance(d, e.sde, clip.image, target, 3.0))
    np.testing.assert_allclose(found["x0"], expected, rtol=0, atol=1e-4)
    assert manifest["nfe"] == 5
    plain = torch.from_numpy(drawn(digits)[0]["x0"])
    with torch.no_grad():
        alike = [(clip.image(x) @ target.mT).mean() for x in (plain, torch.from_numpy(found["x0"]))]
    assert alike[1] > alike[0]


def test_samples_are_guided_towards_an_image_by_a_published_model(digits, published, drawn, tmp_path):
    picture(tmp_path / "three.png", 3)
    words = (f"--config.guidance.encoder={published}", f"--config.guidance.image={tmp_path / 'three.png'}")
    found, _ = drawn(digits, *words)
    assert not np.array_equal(found["x0"], drawn(digits)[0]["x0"])


@pytest.mark.parametrize("text", ["", " ", "a long text of letters"])
def test_texts_that_a_published_model_cannot_read(text, published):
    with pytest.raises(ValueError, match="tokens: need at least one word and at most 8 tokens"):
        Clip.load(published, torch.device("cpu")).text(text)


def damaged(folder, what):
    """A copy of a folder with one file or entry missing."""
    if what == "type":
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"model_type": "bert"}))
    elif what == "json":
        (folder / "config.json").write_text("{")
    elif what == "pickle":
        model = transformers.CLIPModel.from_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif what == "tokenizer":
        (folder / "vocab.json").unlink()
    elif what == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-50])
    elif what in ("lacking", "not finite"):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        if what == "lacking":
            del tensors["visual_projection.weight"]
        else:
            tensors["visual_projection.weight"][0, 0] = torch.nan
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("type", "contains a model of type 'bert', not 'clip'"),
        ("json", "config.json is damaged"),
        ("pickle", "contains no .safetensors, and pickles are not read"),
        ("tokenizer", "has no tokenizer"),
        ("truncated", "contains no readable CLIPModel"),
        ("lacking", "no visual_projection.weight"),
        ("not finite", "visual_projection.weight contains NaN or infinity"),
    ],
)
def test_folders_without_a_model_are_refused(what, message, published, tmp_path):
    folder = damaged(shutil.copytree(published, tmp_path / "copy"), what)
    with pytest.raises(ForeignError, match=message):
        Clip.load(folder, torch.device("cpu"))


def test_a_missing_folder_is_not_searched_elsewhere(tmp_path):
    with pytest.raises(ForeignError, match=r"config.json is missing"):
        Clip.load(tmp_path / "openai" / "clip-vit-base-patch32", torch.device("cpu"))


def test_without_transformers(published, monkeypatch):
    monkeypatch.setattr("score_sde.models.clip.find_spec", lambda name: None)
    with pytest.raises(ForeignError, match="needs transformers, which is not installed: pip install transformers"):
        Clip.load(published, torch.device("cpu"))
