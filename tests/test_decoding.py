"""Decoding of image files: one rule for each property of a file, and a bound on the work."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import DataError, Dataset, Pixels, loader, read_images, statistics
from score_sde.data.decoding import MOST_SCANS, BrokenImage, count_scans, decode, pixels, square
from score_sde.data.loader import reader
from score_sde.engine.training.fingerprint import fingerprint

FILE = Path("folder/a.png")


def noise(*shape: int) -> np.ndarray:
    """Distinct pixels, (H, W) or (H, W, C) uint8."""
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    """Encodes a picture as the content of a file."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def png(colour: int, samples: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, (H, W, C), of a colour type: 0 gray, 2 RGB, 4 and 6 with alpha."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = samples.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


# --- one rule for each property ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_a_channel_are_refused_and_never_cut(colour, channels):
    with pytest.raises(DataError, match=r"a.png has 16 bits a channel: convert it to gray or RGB of 8 bits"):
        decode(png(colour, np.full((5, 4, channels), 0xFFFF, np.uint16)), FILE)


def transparent(form: str, opaque: bool) -> bytes:
    """An image with an alpha channel or a transparent colour; some or none of its pixels are transparent."""
    x = np.full((5, 4), 7, np.uint8)
    x[0, 0] = 8
    gray = Image.fromarray(x)
    alpha = Image.fromarray(np.where(opaque | (x == 7), 255, 254).astype(np.uint8))
    if form in ("LA", "RGBA", "WEBP"):
        picture = gray.convert("L" if form == "LA" else "RGB")
        picture.putalpha(alpha)
        return saved(picture, "WEBP", lossless=True, exact=True) if form == "WEBP" else saved(picture, "PNG")
    value = 9 if opaque else 8
    if form == "palette":
        return saved(gray.convert("P"), "PNG", transparency=value)
    if form == "gray":
        return saved(gray, "PNG", transparency=value)
    return saved(gray.convert("RGB"), "PNG", transparency=(value, value, value))


@pytest.mark.parametrize("form", ["LA", "RGBA", "WEBP", "palette", "gray", "RGB"])
def test_transparency_is_dropped_where_all_is_opaque_and_else_refused(form):
    with pytest.raises(DataError, match=r"a.png has transparent pixels: flatten it"):
        decode(transparent(form, opaque=False), FILE)
    found = pixels(decode(transparent(form, opaque=True), FILE))
    assert len(found) == (1 if form in ("LA", "gray") else 3)
    assert (found[:, 0, 0] == 8).all()
    assert (found[:, 1:] == 7).all()


UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
    8: lambda x: np.rot90(x),
}
"""EXIF 2.32, table 4.6.4: the displayed position of the stored pixels for each orientation."""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_of_exif_is_applied(kind):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
    x = np.kron(noise(2, 3), np.ones((8, 8), np.uint8))[..., None].repeat(3, axis=2)
    for orientation, upright in UPRIGHT.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = pixels(decode(saved(Image.fromarray(x), kind, exif=exif, **options), FILE)).transpose(1, 2, 0)
        assert found.shape == upright(x).shape
        assert np.abs(found.astype(int) - upright(x)).max() <= 3 * (kind == "JPEG")


def test_webp_is_read_under_any_name(tmp_path):
    x = noise(5, 4, 3)
    (tmp_path / "a.webp").write_bytes(saved(Image.fromarray(x), "WEBP", lossless=True))
    (tmp_path / "b.png").write_bytes(saved(Image.fromarray(x), "WEBP", lossless=True))
    found = read_images("train", str(tmp_path))
    assert np.array_equal(found.batch([0])["x"][0], x.transpose(2, 0, 1))
    assert np.array_equal(read_images("test", str(tmp_path)).batch([0])["x"], found.batch([0])["x"])


def test_gray_images_among_rgb_ones_get_three_equal_channels(tmp_path):
    colour, gray = noise(5, 4, 3), noise(5, 4)
    for name, x in {"0": colour, "1": gray}.items():
        Image.fromarray(x).save(tmp_path / f"{name}.png")
    assert np.array_equal(read_images("train", str(tmp_path)).batch([0])["x"][0], np.stack([gray] * 3))


# --- the size ---------------------------------------------------------------------------------------------------------


def dataset_tool(image: np.ndarray, size: int) -> np.ndarray:
    """The transform center-crop of EDM's dataset_tool.py, (H, W, 3)."""
    crop = min(image.shape[:2])
    image = image[
        (image.shape[0] - crop) // 2 : (image.shape[0] + crop) // 2,
        (image.shape[1] - crop) // 2 : (image.shape[1] + crop) // 2,
    ]
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("shape", [(40, 61), (60, 41), (17, 16), (7, 5), (16, 16), (16, 37)])
def test_the_size_is_made_by_the_rule_of_the_reference_statistics(shape):
    x = noise(*shape, 3)
    found = pixels(square(Image.fromarray(x), 16)).transpose(1, 2, 0)
    assert np.array_equal(found, dataset_tool(x, 16))
    assert shape != (16, 16) or np.array_equal(found, x)


def test_photos_of_different_sizes_need_a_size(tmp_path):
    sizes = {"0": (40, 61), "1": (60, 41), "2": (7, 5)}
    for name, shape in sizes.items():
        Image.fromarray(noise(*shape, 3)).save(tmp_path / f"{name}.png")
    with pytest.raises(
        DataError, match=r"1.png is 41 x 60 in RGB, unlike 0.png, which is 61 x 40 in RGB: set data.siz"
    ):
        read_images("train", str(tmp_path)).batch([0])
    train = read_images("train", str(tmp_path), size=16)
    assert fingerprint(train) != fingerprint(read_images("train", str(tmp_path), size=15))
    assert train.shape == (3, 16, 16)
    assert "images are cropped to the square at their centre and resized to 16 x 16 (Lanczos)" in train.notes
    found = train.batch([0, 1])["x"].numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(found, [dataset_tool(noise(*sizes[name], 3), 16) for name in ("1", "2")])
    assert train.x.describe_stored() == "3 images decoded, stored as 5 x 7 to 61 x 60 pixels; 1 of them were enlarged"


@pytest.mark.parametrize("size", [-1, 2**20])
def test_an_impossible_size_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=rf"data.size {size}: need 1 to 16,384"):
        read_images("train", str(tmp_path), size=size)


def test_a_size_is_not_for_arrays(tmp_path):
    np.save(tmp_path / "x.npy", noise(11, 5, 4))
    with pytest.raises(ValueError, match=r"data.size 8 is for image files, not for .*x.npy: resize the array"):
        read_images("train", str(tmp_path / "x.npy"), size=8)


# --- bounds -----------------------------------------------------------------------------------------------------------


def with_scans(content: bytes, more: int) -> bytes:
    """A progressive JPEG with its last scan repeated."""
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * more + content[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded():
    whole = saved(Image.fromarray(noise(512, 512)), "JPEG", progressive=True, quality=20)
    assert count_scans(whole) == 6
    assert decode(with_scans(whole, MOST_SCANS - 6), FILE).size == (512, 512)
    with pytest.raises(BrokenImage, match=r"a.png has more than 100 scans: save it again or remove it"):
        decode(with_scans(whole, MOST_SCANS - 5), FILE)


@pytest.mark.parametrize(("options", "scans"), [({}, 1), ({"progressive": True}, 10)])
def test_scans_of_a_thumbnail_and_of_restarts_do_not_count(options, scans):
    picture = Image.fromarray(noise(64, 64, 3))
    thumbnail = b"Exif\0\0" + saved(picture, "JPEG", progressive=True)
    content = saved(picture, "JPEG", exif=thumbnail, restart_marker_blocks=1, **options)
    assert content.count(b"\xff\xda") > scans
    assert count_scans(content) == scans


class Huge:
    """Images that have a shape and must never be read."""

    shape = (400, 3, 4096, 4096)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError(f"{len(rows)} images are read")


def test_a_batch_that_takes_too_many_bytes_is_refused_unread():
    dataset = Dataset(Huge(), np.arange(400), levels=256)
    assert dataset.example_bytes == 3 * 2**24
    for ask in (lambda: dataset.batch(range(43)), lambda: reader(dataset, torch.device("cpu"), 0, 43, 43, False, 2)):
        with pytest.raises(
            DataError, match=r"43 examples of shape .* take 2,164,260,864 bytes at once, of 2,147,483,6"
        ):
            ask()
    with pytest.raises(AssertionError, match="42 images"):
        dataset.batch(range(42))


@pytest.mark.parametrize(("size", "ahead"), [(1, 2), (14, 2), (15, 1), (21, 1), (22, 0), (42, 0)])
def test_fewer_batches_are_read_ahead_where_they_are_large(size, ahead):
    """The waiting batches and the one in use take at most 2 GiB together."""
    assert (
        reader(Dataset(Huge(), np.arange(400), levels=256), torch.device("cpu"), 0, size, size, False, 2).ahead == ahead
    )


class Counting:
    """Images of one shade that record the largest number read at a time."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.most, self.total = shape, 0, 0

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        self.most, self.total = max(self.most, len(rows)), self.total + len(rows)
        return np.zeros((len(rows), *self.shape[1:]), np.uint8)


def test_statistics_read_few_large_images_at_a_time_and_stop_early(monkeypatch):
    monkeypatch.setattr(statistics, "MOST_ENTRIES", 2**14)
    monkeypatch.setattr(statistics, "MOST_MEASURED", 2**16)
    large, small = Counting(300, 1, 64, 64), Counting(300, 1, 4, 4)
    for images in (large, small):
        dataset = Dataset(images, np.arange(300), levels=256)
        measured = statistics.measure(dataset, Pixels(256)).measured
        assert measured == images.total
    assert (large.most, large.total) == (4, 16)
    assert (small.most, small.total) == (300, 300)


def test_data_go_to_a_device_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(loader, "AT_A_TIME", 50)
    x = noise(11, 1, 4, 4)
    dataset = Dataset(x, np.arange(10, 0, -1), levels=256, label=np.arange(11), num_classes=11)
    whole = loader.on_device(dataset, torch.device("cpu"))
    assert np.array_equal(whole["x"], x[:0:-1])
    assert whole["label"].tolist() == list(range(10, 0, -1))
