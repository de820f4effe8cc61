"""Folders and zips in common layouts: splits, classes, and a line about everything left out."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from score_sde.data import DataError, Dataset, read_images
from score_sde.data.layout import is_hidden, natural


def image(number: int) -> bytes:
    """A PNG of 2 x 2 pixels of that shade."""
    content = io.BytesIO()
    Image.new("L", (2, 2), number).save(content, "PNG")
    return content.getvalue()


def write(path: Path, names: list[str], others: dict[str, bytes] | None = None) -> str:
    """Writes files to a zip if ``path`` ends in .zip, else to a folder; images have the shade of their number."""
    contents = {name: image(k) if name.lower().endswith(".png") else b"" for k, name in enumerate(names)}
    contents |= others or {}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        for name, content in contents.items():
            folder = path / name if name.endswith("/") else (path / name).parent
            folder.mkdir(parents=True, exist_ok=True)
            if folder != path / name:
                (path / name).write_bytes(content)
    return str(path)


def shades(dataset: Dataset) -> list[int]:
    """Shades of a dataset's images."""
    return dataset.batch(range(len(dataset)))["x"][:, 0, 0, 0].tolist()


@pytest.fixture(params=["folder", "archive.zip"])
def place(request, tmp_path) -> Path:
    return tmp_path / request.param


HIDDEN = [".ipynb_checkpoints/1.png", "cat/.thumbnails/1.png", "__MACOSX/cat/._1.png", "@eaDir/1.png", "cat/.1.png"]


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_caches_are_neither_images_nor_classes(place, name):
    found = read_images("train", write(place, [name, "cat/1.png", "cat/2.png", "dog/3.png"]))
    assert is_hidden(name)
    assert shades(found) == [2, 3]
    assert found.classes == ("cat", "dog")
    assert found.notes == ("files left out: 1 hidden; images are .png, .jpg, .jpeg, .webp",)


def test_a_hidden_folder_above_the_data_is_allowed(tmp_path):
    assert len(read_images("train", write(tmp_path / ".cache" / "set", ["1.png", "2.png"]))) == 1


def test_a_hidden_listing_is_not_read(place):
    path = write(place, [".old/dataset.json", "cat/1.png", "dog/2.png"])
    assert read_images("train", path).classes == ("cat", "dog")


def test_numbered_class_folders_are_sorted_by_value(place):
    names = [f"{k}/{i}.png" for k in range(12) for i in range(11)]
    found = read_images("train", write(place, names))
    assert found.classes == tuple(map(str, range(12)))
    assert found.num_classes == 12
    expected = np.repeat(np.arange(12), 11)[shades(found)]
    assert found.batch(range(len(found)))["label"].tolist() == expected.tolist()


def test_natural_order_has_no_ties_and_takes_any_name():
    names = ["10", "9", "a10", "a9b", "a", "01", "1", "", "10a", "²", "a-1"]
    assert sorted(names, key=natural) == ["", "01", "1", "9", "10", "10a", "a", "a9b", "a10", "a-1", "²"]


def test_classes_without_images_are_named(place):
    path = write(place, ["ant/1.png", "bee/2.png", "cow/", "dog/notes.tif", "bee/3.png"])
    train, test = (read_images(split, path) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee")
    empty = "folders without images, which are not classes: cow, dog"
    assert train.notes[1:] == (empty, "classes without images in train: 0 ant")
    assert test.notes[1:] == (empty, "classes without images in test: 1 bee")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"),
        ("Train", "Test"),
        ("TRAINING", "validation"),
        ("training", "testing"),
        ("set/train", "set/Val"),
    ],
)
def test_folders_of_splits_have_many_names(place, train, test):
    path = write(place, [f"{test}/cat/1.png", f"{test}/dog/2.png", f"{train}/cat/3.png", f"{train}/dog/4.png"])
    found = {split: read_images(split, path) for split in ("train", "test")}
    assert {split: shades(each) for split, each in found.items()} == {"train": [2, 3], "test": [0, 1]}
    assert all(each.classes == ("cat", "dog") for each in found.values())


def test_images_outside_of_train_and_test_are_left_out_and_counted(place):
    path = write(place, ["masks/1.png", "test/1.png", "train/1.png", "val/1.png", "val/2.png", "0.png"])
    found = [read_images(split, path) for split in ("train", "test")]
    assert [shades(each) for each in found] == [[2], [1]]
    beside = "4 images left out, which are neither in train nor in test: 0.png, masks/1.png, val/1.png and 1 more"
    assert found[0].notes == (beside,)


def test_a_test_path_with_a_path_that_has_split_folders(tmp_path):
    path = write(tmp_path / "own", ["train/1.png", "test/2.png"])
    flat = write(tmp_path / "flat", ["1.png", "2.png", "3.png"])
    assert [shades(read_images(split, path, flat)) for split in ("train", "test")] == [[0], [0, 1, 2]]
    assert [shades(read_images(split, flat, path)) for split in ("train", "test")] == [[0, 1, 2], [1]]


def test_splits_within_classes_are_refused(place):
    path = write(place, [f"{kind}/{split}/1.png" for kind in ("cat", "dog") for split in ("Train", "val")])
    with pytest.raises(DataError, match=r"has the folders Train and val within others, which mixes the splits: give"):
        read_images("train", path)


def test_a_class_may_be_called_train(place):
    assert read_images("train", write(place, ["plane/1.png", "train/2.png"])).classes == ("plane", "train")


def test_unequal_depths_are_refused_by_name(place):
    with pytest.raises(DataError, match=r"contains images 1 and 2 folders deep \(cat/1.png, dog/a/2.png\), so folders"):
        read_images("train", write(place, ["cat/1.png", "dog/a/2.png"]))


def test_labels_missing_from_a_split_or_nested_too_deep_are_reported(place, tmp_path):
    uneven = read_images("train", write(place, ["test/1.png", "train/cat/1.png", "train/dog/2.png"]))
    assert uneven.num_classes == 0
    assert uneven.notes == ("no labels: images lie 0 and 1 folders deep, and class folders must contain them directly",)
    deep = read_images("train", write(tmp_path / "deep", ["a/b/1.png", "c/d/2.png"]))
    assert deep.notes == ("no labels: images lie 2 folders deep, and class folders must contain them directly",)


def test_zips_of_windows_are_read(tmp_path):
    path = write(tmp_path / "x.zip", ["train\\cat\\1.png", "train\\dog\\2.png", "test\\cat\\3.png", "test\\dog\\4.png"])
    assert shades(read_images("test", path)) == [2, 3]
    assert read_images("train", path).classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"which leads outside it"):
        read_images("train", write(tmp_path / "y.zip", ["..\\1.png"]))


def test_other_formats_and_other_files_are_counted(place):
    names = ["1.png", "2.png", "a.gif", "b.TIF", "c.tif", "d.gif", "e.gif", "README"]
    found = read_images("train", write(place, names))
    counts = "3 .gif, 2 .tif, 1 without an ending"
    assert found.notes == (f"files left out: {counts}; images are .png, .jpg, .jpeg, .webp",)


def test_linked_folders_are_read_once_each(tmp_path):
    """A class may be a link; a folder precedes a link to it; cycles end."""
    write(tmp_path / "store", ["cat/1.png", "dog/2.png", "dog/3.png"])
    folder = tmp_path / "set"
    write(folder, ["bee/4.png"])
    for name in ("cat", "dog"):
        (folder / name).symlink_to(tmp_path / "store" / name)
    (folder / "also bee").symlink_to(folder / "bee")
    (tmp_path / "store" / "dog" / "around").symlink_to(folder)
    found = read_images("train", str(folder))
    assert found.classes == ("bee", "cat", "dog")
    assert shades(found) == [0, 1, 2]
    note = "links to folders already read, left out: also bee, dog/around"
    assert found.notes == (note, "classes without images in train: 0 bee")


def test_an_unreadable_folder_is_refused(tmp_path, monkeypatch):
    path, scandir = write(tmp_path / "set", ["cat/1.png", "dog/2.png"]), os.scandir

    def forbid(place):
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(DataError, match=r"set/dog cannot be listed \(Permission denied\): make it readable"):
        read_images("train", path)


@pytest.mark.parametrize(
    ("numbers", "classes"), [([1, 1, 0, 0], ("dog", "cat")), ([1, 0, 1, 0], ()), ([0, 0, 2, 2], ()), ([0, 0, 0, 0], ())]
)
def test_a_listing_with_one_number_for_each_folder_names_its_classes(place, numbers, classes):
    names = ["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"]
    labels = json.dumps({"labels": [*map(list, zip(names, numbers, strict=True))]}).encode()
    found = read_images("train", write(place, names, {"dataset.json": labels}))
    assert found.classes == classes
    assert found.batch(range(3))["label"].tolist() == numbers[1:]


def test_guided_diffusion_s_npz_has_labels(tmp_path):
    np.savez(tmp_path / "x.npz", np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3), np.array([2, 0, 1, 1]))
    assert read_images("train", str(tmp_path / "x.npz")).batch([0, 1, 2])["label"].tolist() == [0, 1, 1]
