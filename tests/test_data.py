"""Datasets, their order, statistics and pictures; every layout of images, and every kind of damage."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import (
    CODECS,
    DATASETS,
    DataError,
    Dataset,
    archives,
    batch_at,
    flips,
    indices,
    measure,
    order,
    read_digits,
    read_images,
    write_png,
)
from score_sde.data import files as data_files
from score_sde.data.statistics import Statistics

POINTS = ["checkerboard", "eight_gaussians", "moons", "swiss_roll"]
CLASSES = ("cat", "dog")


def pixels(number: int, channels: int = 1, height: int = 5, width: int = 4) -> np.ndarray:
    """An image (C, H, W) that is unique to its number."""
    image = np.random.default_rng(number).integers(256, size=(channels, height, width), dtype=np.uint8)
    image[:, 0, 0] = number
    return image


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Encodes an image as the content of a file."""
    content = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(content, format=kind)
    return content.getvalue()


def write_files(path: Path, files: dict[str, bytes]) -> str:
    """Writes files to a zip if ``path`` ends in .zip, else to a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return str(path)


def shown(path: Path) -> np.ndarray:
    """The pixels of a picture, (H, W) or (H, W, C)."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def numbers(dataset: Dataset) -> list[int]:
    """Numbers of a dataset's images, which ``pixels`` writes into their corner."""
    return dataset.batch(range(len(dataset)))["x"][:, 0, 0, 0].tolist()


@pytest.fixture(params=["folder", "archive.zip"])
def place(request, tmp_path) -> Path:
    return tmp_path / request.param


# Contract of all datasets


@pytest.fixture(params=sorted(DATASETS))
def make(request, tmp_path):
    options = {}
    if request.param == "images":
        options["path"] = write_files(tmp_path / "images", {f"{i:02}.png": encoded(pixels(i)) for i in range(20)})
    if request.param == "pairs":
        noise = np.random.default_rng(0).standard_normal((20, 1, 5, 4))
        np.savez(tmp_path / "samples.npz", latents=noise, x0=np.tanh(noise).astype(np.float32), levels=17)
        options["path"] = str(tmp_path / "samples.npz")
    return lambda split: DATASETS[request.param](split=split, **options)


@pytest.mark.parametrize("split", ["train", "test"])
def test_batches_match_the_description_of_the_dataset(make, split):
    dataset = make(split)
    batch = dataset.batch(np.array([len(dataset) - 1, 0, 0]))
    assert batch["x"].shape == (3, *dataset.shape)
    whole = dataset.levels > 0 and dataset.eps is None
    assert batch["x"].dtype == (torch.uint8 if whole else torch.float32)
    assert torch.equal(batch["x"][1], batch["x"][2])
    assert ("label" in batch) == (dataset.num_classes > 0)
    if dataset.num_classes:
        assert batch["label"].dtype == torch.int64
        assert batch["label"].min() >= 0
        assert batch["label"].max() < dataset.num_classes
    assert torch.equal(make(split).batch([1])["x"], dataset.batch([1])["x"])


def test_splits_are_disjoint(make):
    rows = [make(split).batch(range(len(make(split))))["x"].flatten(1) for split in ("train", "test")]
    assert not {tuple(row) for row in rows[0].tolist()} & {tuple(row) for row in rows[1].tolist()}


def test_unknown_split_is_refused(make):
    with pytest.raises(ValueError, match=r"'valid'.*train or test"):
        make("valid")


# Digits and points


def test_digits_equal_scikit_learns():
    from sklearn.datasets import load_digits

    expected = load_digits()
    splits = [read_digits(split) for split in ("train", "test")]
    assert [len(split) for split in splits] == [1437, 360]
    rows = np.concatenate([split.rows for split in splits])
    assert sorted(rows) == list(range(1797))
    for split in splits:
        batch = split.batch(range(len(split)))
        assert np.array_equal(batch["x"][:, 0].numpy(), expected.images[split.rows])
        assert np.array_equal(batch["label"], expected.target[split.rows])
        even = np.bincount(expected.target) * len(split) / 1797
        assert np.all(np.abs(np.bincount(batch["label"]) - even) < 1)
    assert splits[0].levels == 17
    assert splits[0].batch(range(1437))["x"].max() == 16


def test_start_up_imports_nothing_heavy():
    code = "import sys; from score_sde import data; data.read_digits('train'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert "data.digits" in result.stdout, result.stderr
    assert not {"sklearn", "PIL", "matplotlib"} & set(result.stdout.split())


def test_missing_digits_are_explained(monkeypatch):
    monkeypatch.setattr("score_sde.data.digits.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install scikit-learn"):
        read_digits("train")


def test_a_scikit_learn_without_digits_is_explained(monkeypatch, tmp_path):
    package = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr("score_sde.data.digits.find_spec", lambda name: package)
    with pytest.raises(DataError, match=r"digits.csv.gz is missing: reinstall"):
        read_digits("train")


@pytest.mark.parametrize("name", POINTS)
def test_points_are_centred_and_about_one_unit_wide(name):
    x = DATASETS[name](split="train").batch(range(20_000))["x"]
    assert x.mean(0).abs().max() < 4 / 20_000**0.5  # four standard errors at a standard deviation of 1
    assert x.std(0).min() > 0.45
    assert x.std(0).max() < 1
    assert len(DATASETS[name](split="test")) == 2_000
    assert len(DATASETS[name](split="train", num=7)) == 7


def test_checkerboard_fills_the_dark_squares_evenly():
    x = DATASETS["checkerboard"](split="train").batch(range(20_000))["x"]
    column, row = ((x + 1) * 2).long().T
    assert torch.all((column + row) % 2 == 0)
    counts = torch.bincount(4 * column + row, minlength=16)
    assert torch.all((counts == 0) | ((counts - 2500).abs() < 200))


def test_eight_gaussians_stand_on_the_unit_circle():
    x = DATASETS["eight_gaussians"](split="train").batch(range(20_000))["x"].double()
    angle = (torch.atan2(x[:, 1], x[:, 0]) / (torch.pi / 4)).round() * (torch.pi / 4)
    rest = x - torch.stack([angle.cos(), angle.sin()], dim=1)
    assert angle.unique().numel() in (8, 9)  # pi and -pi are the same Gaussian
    torch.testing.assert_close(rest.std(0), torch.full((2,), 0.1, dtype=torch.float64), atol=0.002, rtol=0)


def test_a_number_of_points_below_one_is_refused():
    with pytest.raises(ValueError, match=r"data.num is 0"):
        DATASETS["moons"](split="train", num=0)


# Images: layouts


def test_every_tenth_image_is_in_the_test_split(place):
    path = write_files(place, {f"{i:03}.png": encoded(pixels(i)) for i in reversed(range(25))})
    train, test = read_images("train", path), read_images("test", path)
    assert numbers(test) == [0, 10, 20]
    assert numbers(train) == [i for i in range(25) if i % 10]
    assert train.shape == (1, 5, 4)
    assert train.levels == 256
    assert train.num_classes == 0
    assert np.array_equal(train.batch([3])["x"][0], pixels(4))


@pytest.mark.parametrize("top", ["", "set/"])
def test_train_and_test_folders_are_the_splits(place, top):
    names = [f"{top}{split}/{kind}/{i}.png" for split in ("test", "train") for kind in CLASSES for i in range(2)]
    path = write_files(place, {name: encoded(pixels(i, channels=3)) for i, name in enumerate(names)})
    train, test = read_images("train", path), read_images("test", path)
    assert numbers(test) == [0, 1, 2, 3]
    assert numbers(train) == [4, 5, 6, 7]
    assert test.batch([0, 2])["label"].tolist() == train.batch([1, 3])["label"].tolist() == [0, 1]
    assert train.shape == (3, 5, 4)
    assert train.num_classes == 2


def test_dataset_json_gives_the_labels(place):
    files = {f"0000{i % 2}/img{i}.png": encoded(pixels(i)) for i in range(6)}
    listing = json.dumps({"labels": [[name, i] for i, name in enumerate(files)]})
    path = write_files(place, {**files, "dataset.json": listing.encode()})
    train = read_images("train", path)
    assert train.batch(range(5))["label"].tolist() == numbers(train)
    assert train.num_classes == 6


def test_each_split_may_have_a_dataset_json(place):
    files = {}
    for i, split in enumerate(("test", "train")):
        files[f"{split}/a.png"] = encoded(pixels(i))
        files[f"{split}/dataset.json"] = json.dumps({"labels": [["a.png", 3 + i]]}).encode()
    path = write_files(place, files)
    assert [read_images(split, path).batch([0])["label"].item() for split in ("train", "test")] == [4, 3]
    assert read_images("test", path).num_classes == 5


@pytest.mark.parametrize("listing", [{"labels": None}, {}, {"labels": []}])
def test_dataset_json_without_labels_overrides_folders(place, listing):
    files = {f"{kind}/{i}.png": encoded(pixels(i)) for i, kind in enumerate(CLASSES)}
    path = write_files(place, {**files, "dataset.json": json.dumps(listing).encode()})
    assert read_images("train", path).num_classes == 0


def test_a_single_folder_is_no_class(place):
    path = write_files(place, {f"all/{i}.png": encoded(pixels(i)) for i in range(2)})
    assert read_images("train", path).num_classes == 0


@pytest.mark.parametrize("names", [["a.png", "cat/b.png"], ["cat/a/1.png", "dog/2.png"]])
def test_folders_of_unequal_depth_are_refused_without_a_listing(place, names):
    files = {name: encoded(pixels(i)) for i, name in enumerate(names)}
    with pytest.raises(DataError, match=r"contains images . and . folders deep .*dataset.json") as error:
        read_images("train", write_files(place, files))
    assert_names_the_file(error.value, place.name)
    path = write_files(place, {**files, "dataset.json": b'{"labels": null}'})
    assert read_images("train", path).num_classes == 0


def test_test_path_is_a_separate_set_with_the_same_classes(tmp_path):
    train = {f"{kind}/{i}.png": encoded(pixels(i)) for i, kind in enumerate(("ant", "bee", "cat"))}
    test = {f"{kind}/{i}.png": encoded(pixels(9)) for i, kind in enumerate(("bee", "cat"))}
    paths = write_files(tmp_path / "train.zip", train), write_files(tmp_path / "other", test)
    assert numbers(read_images("train", *paths)) == [0, 1, 2]
    assert numbers(read_images("test", *paths)) == [9, 9]
    assert read_images("test", *paths).batch([0, 1])["label"].tolist() == [1, 2]
    assert read_images("test", *paths).num_classes == read_images("train", *paths).num_classes == 3


def test_labels_need_both_paths(tmp_path):
    train = write_files(tmp_path / "train", {f"{kind}/1.png": encoded(pixels(0)) for kind in CLASSES})
    test = write_files(tmp_path / "test", {"1.png": encoded(pixels(1))})
    found = [read_images(split, train, test) for split in ("train", "test")]
    assert [each.num_classes for each in found] == [0, 0]
    assert [each.notes for each in found] == [(f"no labels: {test} has none",)] * 2


def test_jpeg_black_and_white_and_palettes_are_read(tmp_path):
    write_files(tmp_path, {"gray/0.jpg": encoded(pixels(0, height=8, width=8), "JPEG")})
    write_files(tmp_path, {"gray/1.JPEG": encoded(pixels(0, height=8, width=8), "JPEG")})
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "gray" / "2.png")
    assert read_images("train", str(tmp_path / "gray")).shape == (1, 8, 8)
    assert np.array_equal(read_images("train", str(tmp_path / "gray")).batch([1])["x"][0, 0], 255 * np.eye(8))
    (tmp_path / "colour").mkdir()
    for i in range(2):
        Image.fromarray(np.full((8, 8), 7, dtype=np.uint8)).convert("P").save(tmp_path / "colour" / f"{i}.png")
    assert read_images("train", str(tmp_path / "colour")).batch([0])["x"].unique().tolist() == [7]
    assert read_images("train", str(tmp_path / "colour")).shape == (3, 8, 8)


def test_other_files_are_ignored(place):
    files = {"a.png": encoded(pixels(0)), "b.png": encoded(pixels(1)), "notes.txt": b"", "._a.png": b"not an image"}
    assert len(read_images("train", write_files(place, files))) == 1


def test_files_are_decoded_once(place, monkeypatch):
    path = write_files(place, {f"{i}.png": encoded(pixels(i)) for i in range(4)})
    dataset = read_images("train", path)
    first = dataset.batch([0, 1])["x"]
    monkeypatch.setattr(dataset.x, "read", None)
    assert torch.equal(dataset.batch([1, 0])["x"].flip(0), first)


def test_sets_that_memory_cannot_hold_are_decoded_each_time(place, monkeypatch):
    path = write_files(place, {f"{i}.png": encoded(pixels(i)) for i in range(4)})
    kept = read_images("train", path).batch([2, 0])["x"]
    monkeypatch.setattr(data_files, "MOST_KEPT", 10)
    assert read_images("train", path).x.kept is None
    assert torch.equal(read_images("train", path).batch([2, 0])["x"], kept)


# Images: numpy files


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((11, 5, 4), (1, 5, 4)), ((11, 5, 4, 3), (3, 5, 4)), ((11, 3, 5, 4), (3, 5, 4)), ((11, 5, 4, 1), (1, 5, 4))],
)
def test_npy_holds_images_in_any_usual_layout(tmp_path, shape, expected, dtype):
    x = np.random.default_rng(0).integers(256, size=shape).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    test = read_images("test", str(tmp_path / "x.npy"))
    batch = test.batch([1])["x"]
    assert test.shape == expected
    assert len(test) == 2
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    channels_last = batch[0].permute(1, 2, 0).numpy()
    assert np.array_equal(x[10], channels_last.reshape(shape[1:]) if shape[1] != 3 else batch[0].numpy())


@pytest.mark.parametrize("key", ["x", "images", "samples", "arr_0"])
@pytest.mark.parametrize("label_key", ["labels", "y", None])
def test_npz_holds_images_and_labels(tmp_path, key, label_key):
    arrays = {key: np.arange(12, dtype=np.uint8).repeat(20).reshape(12, 5, 4)}
    if label_key:
        arrays[label_key] = np.arange(12)
    np.savez(tmp_path / "x.npz", **arrays)
    train = read_images("train", str(tmp_path / "x.npz"))
    assert numbers(train) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]  # 0 and 10 are test images
    assert train.num_classes == (12 if label_key else 0)
    if label_key:
        assert train.batch(range(10))["label"].tolist() == numbers(train)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}, None]), "Python objects"),
        (np.full((4, 5, 4), 256), r"outside \[0, 255\]"),
        (np.full((4, 5, 4), -1), r"outside \[0, 255\]"),
        (np.full((4, 5, 4), 0.5), "not whole"),
        (np.full((4, 5, 4), np.nan), "not whole"),
        (np.zeros((4, 5, 4), dtype=bool), "contains bool"),
        (np.zeros((4, 5), dtype=np.uint8), "shape"),
        (np.zeros((4, 5, 4, 2), dtype=np.uint8), "shape"),
        (np.zeros((4, 3, 5, 3), dtype=np.uint8), "shape"),
        (np.zeros((0, 5, 4), dtype=np.uint8), "contains no images"),
        (np.zeros((1, 5, 4), dtype=np.uint8), "too few images to leave any for train"),
    ],
)
def test_npy_with_anything_else_is_refused(tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=message) as error:
        read_images("train", str(tmp_path / "x.npy"))
    assert_names_the_file(error.value, "x.npy")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((4, 5, 4), np.uint8)}, "keys pictures: save the images as x or"),
        ({"x": np.zeros((4, 5, 4), np.uint8), "y": np.zeros(3, np.int64)}, r"labels of shape \(3,\)"),
        ({"x": np.zeros((4, 5, 4), np.uint8), "y": np.zeros((4, 10), np.int64)}, r"labels of shape \(4, 10\)"),
        ({"x": np.zeros((4, 5, 4), np.uint8), "y": np.zeros(4)}, "float64"),
        ({"x": np.zeros((4, 5, 4), np.uint8), "y": np.array([0, 1, -1, 2])}, "from 0 up"),
        ({"x": np.array([{}])}, "Python objects"),
        ({"x": np.zeros((0, 5, 4), np.uint8), "y": np.zeros(0, np.int64)}, "contains no images"),
    ],
)
def test_npz_with_anything_else_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        read_images("train", str(tmp_path / "x.npz"))
    assert_names_the_file(error.value, "x.npz")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
@pytest.mark.parametrize("kept", [0, 10, 100])
def test_truncated_numpy_files_are_refused(tmp_path, name, kept):
    path = tmp_path / name
    (np.save if name == "x.npy" else np.savez)(path, np.zeros((4, 5, 4), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"damaged") as error:
        read_images("train", str(path))
    assert_names_the_file(error.value, name)


# Images: refused data


def assert_names_the_file(error: DataError, name: str) -> None:
    """Asserts that the message is one line with the file's name and, after a colon, the remedy."""
    assert error.exit_status == 3
    assert name in str(error)
    assert "\n" not in str(error)
    assert ": " in str(error)


def test_an_empty_path_is_a_usage_error():
    with pytest.raises(ValueError, match=r"data.path is empty"):
        read_images("train", "")


@pytest.mark.parametrize("name", ["nothing", "nothing.zip", "nothing.npy", "nothing.npz"])
def test_a_missing_path_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=r"does not exist") as error:
        read_images("train", str(tmp_path / name))
    assert_names_the_file(error.value, name)


def test_a_file_of_no_known_kind_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"of an unknown kind"):
        read_images("train", str(tmp_path / "x.tar"))


@pytest.mark.parametrize("files", [{}, {"notes.txt": b""}])
def test_a_place_without_images_is_refused(place, files):
    if place.suffix == "":
        place.mkdir()
    with pytest.raises(DataError, match=r"contains no .png") as error:
        read_images("train", write_files(place, files))
    assert_names_the_file(error.value, place.name)


@pytest.mark.parametrize("content", [b"", b"not a zip"])
def test_an_unreadable_zip_is_refused(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"not a readable zip") as error:
        read_images("train", str(tmp_path / "x.zip"))
    assert_names_the_file(error.value, "x.zip")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(("share", "position"), [(0, 0), (0.1, 5), (0.5, 0), (0.8, 5)])
def test_a_truncated_image_is_refused(place, kind, share, position):
    whole = encoded(pixels(0, height=32, width=32), kind)
    suffix = {"PNG": "png", "JPEG": "jpg"}[kind]
    files = {f"{i}.{suffix}": whole for i in range(8)}
    files[f"{position}.{suffix}"] = whole[: int(share * len(whole))]
    path = write_files(place, files)
    with pytest.raises(DataError, match=r"not a complete PNG, JPEG or WebP") as error:
        read_images("train", path).batch(range(7))
    assert_names_the_file(error.value, f"{place.name}/{position}.{suffix}")


def test_a_zip_whose_content_is_damaged_is_refused(tmp_path):
    path = write_files(tmp_path / "x.zip", {f"{i}.png": encoded(pixels(i)) for i in range(3)})
    content = bytearray(Path(path).read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    Path(path).write_bytes(content)
    with pytest.raises(DataError, match=r"x.zip/0.png is not a complete"):
        read_images("train", path)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (pixels(1, height=6), "is 4 x 6 in gray, unlike 0.png, which is 4 x 5 in gray"),
        (pixels(1, channels=3), "is 4 x 5 in RGB, unlike 0.png, which is 4 x 5 in gray"),
    ],
)
def test_mixed_sizes_and_channels_are_refused(place, odd, message):
    files = {f"{i}.png": encoded(pixels(i)) for i in range(8)} | {"5.png": encoded(odd)}
    train = read_images("train", write_files(place, files))
    with pytest.raises(DataError, match=message) as error:
        train.batch(range(len(train)))
    assert_names_the_file(error.value, f"{place.name}/5.png")


def test_other_colour_modes_are_refused(tmp_path):
    Image.new("CMYK", (4, 5)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"colour mode CMYK.*convert") as error:
        read_images("train", str(tmp_path))
    assert_names_the_file(error.value, "a.jpg")


def test_paths_of_different_shapes_are_refused(tmp_path):
    train = write_files(tmp_path / "train", {"a.png": encoded(pixels(0))})
    test = write_files(tmp_path / "test", {"a.png": encoded(pixels(0, height=6))})
    with pytest.raises(DataError, match=r"different shapes"):
        read_images("train", train, test)


def test_paths_that_label_differently_are_refused(tmp_path):
    files = {f"{kind}/1.png": encoded(pixels(0)) for kind in CLASSES}
    train = write_files(tmp_path / "train", files)
    listing = json.dumps({"labels": [[name, 0] for name in files]}).encode()
    test = write_files(tmp_path / "test", {**files, "dataset.json": listing})
    with pytest.raises(DataError, match=r"both a dataset.json"):
        read_images("train", train, test)


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"", "damaged"),
        (b"[1, 2]", "damaged"),
        (b'{"labels": 3}', "damaged"),
        (b'{"labels": [["a.png"]]}', "damaged"),
        (b'{"labels": [["a.png", 1]]}', "labels b.png None"),
        (b'{"labels": [["a.png", 1], ["b.png", -1]]}', "labels b.png -1"),
        (b'{"labels": [["a.png", 1], ["b.png", [0, 1]]]}', "labels b.png .0, 1."),
        (b'{"labels": [["a.png", 1], ["b.png", 0.5]]}', "labels b.png 0.5"),
    ],
)
def test_a_damaged_dataset_json_is_refused(place, listing, message):
    files = {"a.png": encoded(pixels(0)), "b.png": encoded(pixels(1)), "dataset.json": listing}
    with pytest.raises(DataError, match=message) as error:
        read_images("train", write_files(place, files))
    assert_names_the_file(error.value, "dataset.json")


# Order


@pytest.mark.parametrize("n", [1, 7, 100])
def test_each_epoch_visits_every_example_once(n):
    seen = indices(seed=3, images_seen=0, batch_size=4 * n, n=n).reshape(4, n)
    assert np.array_equal(np.sort(seen, axis=1), np.tile(np.arange(n), (4, 1)))
    assert n < 100 or len(np.unique(seen, axis=0)) == 4


@pytest.mark.parametrize("batch_size", [1, 5, 16, 250])
def test_order_does_not_depend_on_the_batch_size(batch_size):
    whole = indices(seed=0, images_seen=0, batch_size=1000, n=48)
    cut = [indices(0, start, batch_size, 48) for start in range(0, 1000, batch_size)]
    assert np.array_equal(np.concatenate(cut)[:1000], whole)
    coins = [flips(0, start, batch_size) for start in range(0, 1000, batch_size)]
    assert np.array_equal(np.concatenate(coins)[:1000], flips(0, 0, 1000))


def test_order_is_the_same_on_every_machine():
    assert order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert flips(0, 0, 8).astype(int).tolist() == [0, 0, 0, 1, 0, 1, 0, 0]


def test_seeds_and_epochs_differ_and_any_whole_number_is_a_seed():
    orders = {tuple(order(seed, epoch, 50)) for seed in (-1, 0, 1, 2**64 - 2) for epoch in (0, 1)}
    assert len(orders) == 8
    assert not np.array_equal(flips(0, 0, 64), flips(1, 0, 64))


def test_shuffles_and_flips_are_fair():
    first = [order(seed, 0, 5)[0] for seed in range(2000)]
    assert np.all(np.abs(np.bincount(first) - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5)
    assert abs(flips(0, 0, 10_000).mean() - 0.5) < 4 * 0.005


def test_mirrored_batches_flip_the_last_axis_and_leave_the_data_alone():
    dataset = read_digits("train")
    plain, mirrored = (batch_at(dataset, 0, 1400, 64, mirror=mirror) for mirror in (False, True))
    assert torch.equal(plain["x"], dataset.batch(indices(0, 1400, 64, len(dataset)))["x"])
    assert torch.equal(plain["label"], mirrored["label"])
    flip = flips(0, 1400, 64)
    assert torch.equal(mirrored["x"][flip], plain["x"][flip].flip(-1))
    assert torch.equal(mirrored["x"][~flip], plain["x"][~flip])
    assert torch.equal(batch_at(dataset, 0, 1400, 64)["x"], plain["x"])


# Statistics


def test_statistics_of_known_arrays():
    x = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0], [0.0, 2.0]], dtype=np.float32)
    found = measure(Dataset(x, np.arange(4)), CODECS["identity"](0))
    assert found == Statistics(
        count=4,
        measured=4,
        shape=(2,),
        low=0.0,
        high=4.0,
        mean=pytest.approx(1.5),
        std=pytest.approx(np.std(x)),
        diameter=pytest.approx(5.0),
    )


def test_statistics_describe_the_encoded_data():
    x = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1).repeat(12, axis=3)
    found = measure(Dataset(x, np.arange(2), levels=256), CODECS["pixels"](256))
    edge = 255 / 256
    assert (found.low, found.high, found.shape) == (-edge, edge, (1, 1, 12))
    assert (found.mean, found.std) == (pytest.approx(0), pytest.approx(edge))
    assert found.diameter == pytest.approx(2 * edge * 12**0.5)


def test_statistics_of_many_examples_come_from_a_fixed_sample():
    x = np.random.default_rng(0).standard_normal((12_000, 3)).astype(np.float32)
    found = measure(Dataset(x, np.arange(12_000)), CODECS["identity"](0))
    assert (found.count, found.measured) == (12_000, 10_000)
    assert abs(found.mean) < 4 / 30_000**0.5
    assert abs(found.std - 1) < 4 / 60_000**0.5
    sample = torch.from_numpy(x[order(0, 0, 12_000)[:2000]])
    assert found.diameter == pytest.approx(torch.cdist(sample, sample).max().item(), rel=1e-4)


def test_statistics_of_a_single_example():
    found = measure(Dataset(np.full((1, 2), 3, np.float32), np.arange(1)), CODECS["identity"](0))
    assert (found.mean, found.std, found.diameter) == (3, 0, 0)


# Pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_image_magnified(tmp_path, channels):
    written = np.random.default_rng(0).integers(17, size=(5, channels, 8, 6), dtype=np.uint8)
    write_png(tmp_path / "grid.png", torch.from_numpy(written), levels=17, columns=2)
    grid = shown(tmp_path / "grid.png").reshape(-1, 2 * (53 * 6 + 2) + 2, channels)
    assert grid.shape[0] == 3 * (53 * 8 + 2) + 2
    for i, image in enumerate(written):
        top, left = i // 2 * (53 * 8 + 2) + 2, i % 2 * (53 * 6 + 2) + 2
        expected = np.round(image.transpose(1, 2, 0) * (255 / 16)).repeat(53, axis=0).repeat(53, axis=1)
        assert np.array_equal(grid[top : top + 53 * 8, left : left + 53 * 6], expected)
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(("n", "size"), [(1, 8), (10, 8), (64, 8), (64, 32), (100, 28)])
def test_grids_are_as_wide_as_a_window(tmp_path, n, size):
    write_png(tmp_path / "grid.png", np.zeros((n, 1, size, size), np.uint8))
    assert 450 < shown(tmp_path / "grid.png").shape[1] < 700


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (4, 8, 8), (4, 2), (0, 1, 8, 8)])
def test_grid_refuses_other_shapes(tmp_path, shape):
    with pytest.raises(ValueError, match=r"give .N, C, H, W"):
        write_png(tmp_path / "grid.png", np.zeros(shape, np.uint8))


def test_a_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    write_png(tmp_path / "grid.png", np.zeros((1, 1, 8, 8), np.uint8))
    before = (tmp_path / "grid.png").read_bytes()

    def fill_the_disk(image, file, format):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(OSError, match=r"no space left"):
        write_png(tmp_path / "grid.png", np.ones((1, 1, 8, 8), np.uint8))
    assert (tmp_path / "grid.png").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["grid.png"]


# Untrusted files


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Writes a compressed zip."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def lying(path: Path, size: int) -> Path:
    """Replaces the unpacked size of the first entry in a zip's directory."""
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02") + 24
    content[at : at + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def header(shape: tuple[int, ...]) -> bytes:
    """Header of an .npy of uint8."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return content.getvalue()


GOOD = {f"{i}.png": encoded(pixels(i)) for i in range(1, 9)}


@pytest.mark.parametrize("true", [True, False])
def test_a_zip_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch, true):
    """The declared size is over the limit, whether or not it is true."""
    monkeypatch.setattr(archives.unpack, "__defaults__", (1_000_000,))
    path = zipped(tmp_path / "x.zip", {"0.png": bytes(5_000_000) if true else b"", **GOOD})
    lying(path, 5_000_000)
    with pytest.raises(DataError, match=r"x.zip/0.png unpacks to 5,000,000 bytes, of 1,000,000 allowed") as error:
        read_images("train", str(path))
    assert_names_the_file(error.value, "x.zip/0.png")


def test_a_zip_larger_than_declared_is_read_to_the_declared_size(tmp_path):
    path = lying(zipped(tmp_path / "x.zip", {"0.png": bytes(5_000_000), **GOOD}), 1000)
    with pytest.raises(DataError, match=r"x.zip/0.png is not a complete PNG"):
        read_images("train", str(path))


def test_a_zip_in_a_zip_is_not_opened(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"0.png": bytes(5_000_000)}).read_bytes()
    assert numbers(read_images("test", str(zipped(tmp_path / "x.zip", {"inner.zip": inner, **GOOD})))) == [1]
    with pytest.raises(DataError, match=r"x.zip/0.png is not a complete PNG"):
        read_images("train", str(zipped(tmp_path / "x.zip", {"0.png": inner, **GOOD})))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_methods_without_a_size_limit_are_refused(tmp_path, method):
    with pytest.raises(DataError, match=r"a compression other than deflate: pack it again"):
        read_images("train", str(zipped(tmp_path / "x.zip", GOOD, method)))


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../outside.png"])
def test_names_that_lead_outside_a_zip_are_refused(tmp_path, name):
    path = zipped(tmp_path / "x.zip", {name: encoded(pixels(0)), **GOOD})
    with pytest.raises(DataError, match=r"outside.png', which leads outside it") as error:
        read_images("train", str(path))
    assert_names_the_file(error.value, "x.zip")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_with_too_large_a_header_are_refused_before_allocation(tmp_path, name):
    """A header claims 100 GB, and so does an .npz whose directory agrees with it."""
    import tracemalloc

    content = header((10**5, 1000, 1000)) + b"\0" * 99
    path = tmp_path / name
    path.write_bytes(content) if name == "x.npy" else zipped(path, {"x.npy": content})
    tracemalloc.start()
    with pytest.raises(DataError, match=r"damaged"):
        read_images("train", str(path))
    if name == "x.npz":
        with pytest.raises(DataError, match=r"damaged"):
            read_images("train", str(lying(path, 2**32 - 2)))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_arrays_that_unpack_to_too_much_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_UNPACKED", 1300)
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((40, 5, 4), np.uint8), labels=np.zeros(40, np.int64))
    assert (tmp_path / "x.npz").stat().st_size < 1300
    with pytest.raises(DataError, match=r"x.npz/labels.npy unpacks to 448 bytes"):
        read_images("train", str(tmp_path / "x.npz"))


@pytest.mark.parametrize("change", ["shorter", "other", "gone"])
def test_an_npy_that_changes_while_it_is_read_is_noticed(tmp_path, change):
    """A memory-mapped file that becomes shorter would end the process."""
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((20, 50, 40), np.uint8))
    train = read_images("train", str(path))
    train.batch([0])
    if change == "shorter":
        path.write_bytes(path.read_bytes()[:9000])
    elif change == "other":
        np.save(path, np.ones((20, 50, 40), np.uint8))
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"has changed since it was opened|is no longer readable") as error:
        train.batch([15])
    assert_names_the_file(error.value, "x.npy")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(place, monkeypatch):
    path = write_files(place, {**GOOD, "0.png": encoded(pixels(0, height=300, width=400))})
    with pytest.raises(DataError, match=r"0.png has 400 x 300 pixels: .* raise data.max_pixels from 1000") as error:
        read_images("train", path, max_pixels=1000)
    assert_names_the_file(error.value, f"{place.name}/0.png")
    assert read_images("train", path, max_pixels=120_000).shape == (1, 300, 400)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"0.png has more pixels than Pillow opens"):
        read_images("train", path, max_pixels=10**9)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP"])
def test_other_formats_under_the_name_of_a_png_are_refused(place, kind):
    with pytest.raises(DataError, match=r"0.png is not a complete PNG, JPEG or WebP"):
        read_images("train", write_files(place, {"0.png": encoded(pixels(0), kind), **GOOD}))


def test_broken_images_are_left_out_on_demand_and_counted(place, capsys):
    """The remaining images keep their split and order."""
    files = GOOD | {"0.png": b"text", "3.png": GOOD["3.png"][:50], "9.png": encoded(pixels(9))}
    path = write_files(place, {f"{name[0]:0>2}.png": content for name, content in files.items()})
    assert numbers(read_images("train", path, skip_broken=True)) == [1, 2, 4, 5, 6, 7, 8, 9]
    told = "1 of 9 images are broken and left out: 03.png"
    assert capsys.readouterr().err == f"{path}: {told}\n"
    with pytest.raises(DataError, match=r"too few images to leave any for test"):
        read_images("test", path, skip_broken=True)
    with pytest.raises(DataError, match=r"00.png is not a complete"):
        read_images("train", path)


def test_a_set_of_broken_images_alone_is_refused(place):
    with pytest.raises(DataError, match=r"2.png is not a complete"):
        read_images("train", write_files(place, {f"{i}.png": b"text" for i in range(3)}), skip_broken=True)


def test_links_to_files_are_followed_and_pipes_do_not_block(tmp_path):
    write_files(tmp_path / "real", GOOD)
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "around").symlink_to(folder)
    for name in GOOD:
        (folder / name).symlink_to(tmp_path / "real" / name)
    assert numbers(read_images("train", str(folder))) == [2, 3, 4, 5, 6, 7, 8]
    os.mkfifo(folder / "0.png")
    with pytest.raises(DataError, match=r"links/0.png is not an image: it is a pipe and not a regular file; remove it"):
        read_images("train", str(folder))
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to("nowhere")
    assert numbers(read_images("train", str(folder), skip_broken=True)) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("label", [10**6, 2**63])
def test_labels_without_an_embedding_row_are_refused(tmp_path, label):
    listing = json.dumps({"labels": [[name, label] for name in GOOD]}).encode()
    with pytest.raises(DataError, match=r"below 1,000,000"):
        read_images("train", write_files(tmp_path / "x", {**GOOD, "dataset.json": listing}))
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 5, 4), np.uint8), y=np.full(4, label, np.uint64))
    with pytest.raises(DataError, match=r"below 1,000,000"):
        read_images("train", str(tmp_path / "x.npz"))
