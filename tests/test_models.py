"""Networks: shapes of every rank, conditions, gradients of every order used by likelihoods, precision."""

import inspect

import pytest
import torch
from torch.func import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from score_sde.models import MLP, NETWORKS, UNet
from score_sde.models.embeddings import Conditioning, LogSNREmbedding

UNET = {"channels": 8, "channel_mult": (1, 2), "attention": (4, 8), "num_classes": 3}
CLASSIFIER = UNET | {"attention": (8,)}
PUBLISHED = UNET | {"attention": (4,), "num_blocks": 1, "dropout": 0.0}
ADM = {"channels": 16, "channel_mult": (1, 2), "attention": (4, 8), "heads": 2}
CASES = {
    "mlp": ("mlp", (2,), {"width": 16, "depth": 2, "num_classes": 3}),
    "mlp of an image": ("mlp", (3, 2, 4), {"width": 16, "depth": 2, "num_classes": 3}),
    "signal": ("unet", (2, 16), UNET),
    "image": ("unet", (1, 8, 8), UNET),
    "non-square": ("unet", (3, 8, 4), UNET | {"num_blocks": 2, "channel_mult": (1, 1, 2)}),
    "padded signal": ("unet", (1, 11), UNET | {"pad": True}),
    "padded image": ("unet", (2, 7, 5), UNET | {"pad": True}),
    "ddpm": ("ddpm", (2, 8, 8), PUBLISHED | {"norm_groups": 4}),
    "ncsnpp": ("ncsnpp", (3, 8, 4), PUBLISHED | {"fir": (1.0, 3.0, 3.0, 1.0), "progressive_input": "residual"}),
    "signal classifier": ("classifier", (2, 16), CLASSIFIER),
    "image classifier": ("classifier", (3, 8, 4), CLASSIFIER),
    "padded classifier": ("classifier", (2, 7, 5), CLASSIFIER | {"pad": True}),
    "captioned": ("captioned", (3, 8, 4), CLASSIFIER | {"names": ("cat", "dog|puppy", "fish")}),
    "adm": ("adm", (3, 8, 4), ADM | {"num_classes": 3}),
    "improved": ("adm", (3, 4, 8), ADM | {"num_classes": 3, "scale_shift": False, "resample_blocks": False}),
    "adm classifier": ("adm_classifier", (3, 8, 4), ADM | {"num_classes": 3}),
    "adaptive classifier": ("adm_classifier", (3, 4, 8), ADM | {"num_classes": 3, "pool": "adaptive"}),
    "song": ("song", (3, 8, 4), UNET),
    "song of skips": ("song", (3, 4, 8), UNET | {"encoder": "skip", "decoder": "skip", "fir": (1, 3, 3, 1)}),
    "song of residuals": ("song", (3, 8, 4), UNET | {"encoder": "residual", "fir": (1, 3, 3, 1)}),
    "dit": ("dit", (3, 8, 4), {"width": 32, "depth": 2, "num_classes": 3}),
}
CLASSIFIERS = {"classifier", "adm_classifier", "captioned"}
SINGLE = [case for case in CASES if case != "captioned"]  # embeds a pair by its direction, which zeros lack
CONDITIONAL = [case for case, (name, *_) in CASES.items() if name not in CLASSIFIERS]


def answer(case):
    """Shape of a network's output for one example: the example's own, or one logit for each class."""
    name, shape, options = CASES[case]
    return (options["num_classes"],) if name in CLASSIFIERS else shape


@pytest.fixture(params=CASES)
def network(request):
    """A network of each kind with its zeros filled, so that every path matters; its shape is an attribute."""
    torch.manual_seed(0)
    name, shape, options = CASES[request.param]
    network = NETWORKS[name](shape, **options).eval()
    network.shape, network.answer = shape, answer(request.param)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def inputs(network, batch=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *network.shape, generator=generator, dtype=dtype)
    return x, torch.linspace(-18, 18, batch, dtype=dtype)


def test_every_network_has_a_case():
    assert {name for name, *_ in CASES.values()} == set(NETWORKS) - {
        "ncsn",
        "ncsnv2",
    }  # these take no log-SNR: test_ncsn


def test_zero_at_initialisation():
    for case in SINGLE:
        name, shape, options = CASES[case]
        out = NETWORKS[name](shape, **options)(torch.randn(2, *shape), torch.zeros(2))
        assert out.shape == (2, *answer(case))
        assert not out.any(), case


def test_examples_do_not_mix(network):
    x, log_snr = inputs(network)
    whole, alone = network(x, log_snr), [network(x[i : i + 1], log_snr[i : i + 1]) for i in range(len(x))]
    assert whole.shape == (len(x), *network.answer)
    assert whole.std() > 0
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_output_depends_on_the_noise_level(network):
    x, log_snr = inputs(network)
    assert (network(x, log_snr) - network(x, log_snr + 0.5)).abs().flatten(1).amax(1).min() > 1e-4


@pytest.mark.parametrize(("name", "shape"), [("mlp", (2,)), ("unet", (1, 8, 8))])
def test_a_noise_unconditional_network_depends_on_the_label_alone(name, shape):
    torch.manual_seed(0)
    network = NETWORKS[name](shape, num_classes=3, noise_unconditional=True).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, log_snr = torch.randn(2, *shape), torch.tensor([-3.0, 3.0])
    label, other = torch.tensor([0, 1]), torch.tensor([2, 2])
    assert torch.equal(network(x, log_snr, label=label), network(x, -log_snr, label=label))
    assert not torch.equal(network(x, log_snr, label=label), network(x, log_snr, label=other))


@pytest.mark.parametrize("network", CONDITIONAL, indirect=True)
def test_keep_chooses_between_label_and_null_label(network):
    x, log_snr = inputs(network)
    label, keep = torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, True, False])
    null, labelled, mixed = (
        network(x, log_snr),
        network(x, log_snr, label=label),
        network(x, log_snr, keep, label=label),
    )
    torch.testing.assert_close(mixed[keep], labelled[keep])
    torch.testing.assert_close(mixed[~keep], null[~keep])
    assert (labelled - null).abs().amax(tuple(range(1, x.ndim))).min() > 1e-4


def test_an_mlp_treats_an_image_as_the_vector_of_its_pixels():
    """With the weights of a network made for vectors, the second half of both outputs is the variance."""
    torch.manual_seed(0)
    made = {"width": 16, "depth": 1, "learned_variance": True}
    images, vectors = MLP((2, 3, 4), **made), MLP((24,), **made)
    for parameter in images.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    vectors.load_state_dict(images.state_dict())
    x, log_snr = torch.randn(5, 2, 3, 4), torch.linspace(-4, 4, 5)
    found = images(x, log_snr)
    assert found.shape == (5, 4, 3, 4)
    assert torch.equal(found.flatten(1), vectors(x.flatten(1), log_snr))


def test_unconditional_network_ignores_the_label():
    network = MLP((2,), width=16)
    torch.nn.init.normal_(network.output[-1].weight)
    x, log_snr = torch.randn(4, 2), torch.zeros(4)
    torch.testing.assert_close(network(x, log_snr, label=torch.arange(4)), network(x, log_snr))


def test_every_parameter_gets_a_gradient(network):
    x, log_snr = inputs(network)
    cond = {"keep": torch.tensor([True, True, True, False]), "label": torch.tensor([0, 1, 2, 0])}
    network(x, log_snr, **(cond if network.answer == network.shape else {})).square().sum().backward()
    assert not [name for name, parameter in network.named_parameters() if not parameter.grad.any()]


def test_double_precision(network):
    x, log_snr = inputs(network, dtype=torch.float64)
    single = network(x.float(), log_snr.float())
    double = network.double()(x, log_snr)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)


def test_derivatives_agree(network):
    """Reverse mode, forward mode, autograd and finite differences give the same directional derivative."""
    network = network.double()
    x, log_snr = inputs(network, dtype=torch.float64)
    v, w = torch.randn_like(x), torch.randn(len(x), *network.answer, dtype=x.dtype)

    def f(x):
        return network(x, log_snr)

    leaf = x.clone().requires_grad_()
    by_autograd = (torch.autograd.grad((f(leaf) * w).sum(), leaf)[0] * v).sum()
    by_reverse = (vjp(f, x)[1](w)[0] * v).sum()
    with sdpa_kernel(SDPBackend.MATH):
        by_forward = (jvp(f, (x,), (v,))[1] * w).sum()
    h = 1e-5
    by_differences = ((f(x + h * v) - f(x - h * v)) / (2 * h) * w).sum()
    for derivative in (by_autograd, by_reverse, by_forward):
        torch.testing.assert_close(derivative, by_differences, rtol=1e-6, atol=1e-8)


def test_evaluation_is_deterministic_and_training_drops():
    network = UNet((1, 8, 8), dropout=0.5)
    torch.nn.init.normal_(network.output[-1].weight)
    for block in (network.middle[0].block, network.encoder[0][0].block):
        torch.nn.init.normal_(block.conv2.weight)
    x, log_snr = torch.randn(2, 1, 8, 8), torch.zeros(2)
    network.train()
    assert not torch.equal(network(x, log_snr), network(x, log_snr))
    network.eval()
    assert torch.equal(network(x, log_snr), network(x, log_snr))


@pytest.mark.parametrize("network", SINGLE, indirect=True)
def test_autocast_keeps_the_embedding_in_single_precision(network):
    absent = [None] * (len(inspect.signature(network.conditioning.forward).parameters) - 1)
    x, log_snr = inputs(network)
    expected = network.conditioning(log_snr, *absent)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.conditioning(log_snr, *absent), expected)
        out = network(x, log_snr)
    torch.testing.assert_close(out.float(), network(x, log_snr), rtol=0.2, atol=0.2)


def test_embedding_is_smooth_and_separates_levels():
    torch.manual_seed(0)
    embedding = LogSNREmbedding(64).double()
    levels = torch.linspace(-20, 20, 401, dtype=torch.float64)
    rows = embedding(levels)
    steps = (rows[1:] - rows[:-1]).norm(dim=1)
    assert steps.max() < 4 * steps.median()
    distances = torch.cdist(rows, rows) + torch.eye(len(rows)) * 1e9
    assert distances.min() > 0.2 * steps.min()


def test_null_label_is_a_separate_entry():
    conditioning = Conditioning(8, num_classes=3)
    assert conditioning.label.table.weight.shape == (4, 8)
    rows = conditioning.label(None, torch.arange(3))
    assert not (rows == conditioning.label(None, None)).all(dim=1).any()


@pytest.mark.parametrize("shape", [(1, 10), (1, 9, 8), (3, 8, 30)])
def test_shape_that_does_not_divide_names_the_nearest_that_do(shape):
    with pytest.raises(ValueError, match="does not divide by 4") as error:
        UNet(shape, channel_mult=(1, 1, 2))
    smaller = (shape[0], *(side // 4 * 4 for side in shape[1:]))
    larger = (shape[0], *(-(-side // 4) * 4 for side in shape[1:]))
    assert str(smaller) in str(error.value)
    assert str(larger) in str(error.value)
    assert "pad" in str(error.value)
    UNet(smaller, channel_mult=(1, 1, 2))
    UNet(larger, channel_mult=(1, 1, 2))


def test_padding_does_not_change_shapes_that_divide():
    torch.manual_seed(0)
    plain = UNet((1, 8, 8))
    padded = UNet((1, 8, 8), pad=True)
    padded.load_state_dict(plain.state_dict())
    torch.nn.init.normal_(plain.output[-1].weight)
    padded.output[-1].weight = plain.output[-1].weight
    x, log_snr = torch.randn(2, 1, 8, 8), torch.zeros(2)
    torch.testing.assert_close(plain.eval()(x, log_snr), padded.eval()(x, log_snr))


@pytest.mark.parametrize("num_classes", [0, 1])
def test_a_classifier_needs_classes(num_classes):
    with pytest.raises(ValueError, match=f"num_classes {num_classes}: a classifier needs at least 2"):
        NETWORKS["classifier"]((1, 8, 8), num_classes=num_classes)


@pytest.mark.parametrize(("name", "shape"), [("unet", (2,)), ("unet", (1, 4, 4, 4)), ("classifier", (2,))])
def test_wrong_rank_is_refused(name, shape):
    with pytest.raises(ValueError, match="shape"):
        NETWORKS[name](shape)
