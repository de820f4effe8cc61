"""Damaged and hostile files: flipped, truncated and mixed bytes, and well-formed files with invalid content.

All choices use a ``random.Random``, so target, seed and number determine an input.
"""

import copy
import hashlib
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

PIPE = "pipe"
OUTSIDE = "outside"
"""A file of the user, next to the folder of an input."""

LINKS = ["/dev/zero", "/dev/full", "/proc/kmsg", "/proc/self/mem", ".", "..", "nowhere"]
"""Targets of hostile links, besides themselves and ``OUTSIDE``."""

Files = dict[str, bytes | str]
"""Name -> content of a regular file, the target of a link, or ``PIPE``."""

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    256,
    65_536,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
]
HOSTILE = [None, True, False, "", "x", "0", "\0", "../../x", "é" * 9, "9" * 400, [], {}, [[]], [None], {"": {}}]
HOSTILE += [0.0, -0.5, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), [-1], ["a", 1, None], {"name": []}]
NAMES = [
    "../x.png",
    "/etc/x.png",
    "..\\x.png",
    "a/../../b.png",
    "",
    "\x1b[31m.png",
    "x.zip",
    ".png",
    "test/x.png",
    "C:x.png",
]
WORDS = [
    b"\x00" * 4,
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80",
    b"{",
    b"[" * 2000,
    b"9" * 40,
]
WORDS += [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"IHDR", b"IDAT", b"\x93NUMPY", b"c", b"R", b".", b"-1", b"NaN"]


def damaged(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Returns the content with one to four errors.

    An error is a flipped bit, a foreign word, a piece removed, repeated or taken from another file, or a truncation.
    Positions near both ends, where headers and directories are, are as likely as all others together.
    """
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, length = _place(rng, len(found)), rng.choice([1, 2, 8, 64, 1000])
        kind = rng.randrange(7)
        if kind == 0 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and found:
            found[at] = rng.randrange(256)
        elif kind == 2:
            word = rng.choice(WORDS)
            found[at : at + rng.choice([0, len(word)])] = word
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length] * rng.choice([1, 2, 9])
        elif kind == 5:
            start = _place(rng, len(other))
            found[at : at + length] = other[start : start + length]
        else:
            del found[at:]
    return bytes(found)


def _place(rng: random.Random, size: int) -> int:
    reach = min(size, 400)
    return rng.choice([rng.randrange(size + 1), rng.randrange(reach + 1), size - rng.randrange(reach + 1)]) % max(
        size, 1
    )


def hostile_json(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Returns the JSON with one to three values or keys changed, or JSON nested too deeply."""
    try:
        root = [json.loads(content)]
    except (ValueError, RecursionError):
        return damaged(rng, content, other)
    if rng.randrange(40) == 0:
        depth = rng.choice([50, 900, 5000])
        return rng.choice([b'{"a":', b"["]) * depth
    for _ in range(rng.choice([1, 1, 2, 3])):
        holder, key = rng.choice(list(_entries(root)))
        change = rng.randrange(6)
        if change == 0 and holder is not root:
            del holder[key]
        elif change == 1 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "name", "versions", "__class__", "a.b", f"{key} "])] = holder.pop(key)
        elif change == 2 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = rng.choice(
                [-holder[key], holder[key] * 1_000_003, rng.choice(NUMBERS), float(rng.choice(NUMBERS[:12]))]
            )
        else:
            new = rng.choice([rng.choice(HOSTILE), rng.choice(NUMBERS), rng.choice(list(_entries(root)))[1]])
            holder[key] = copy.deepcopy(new)  # a value that contains itself is not JSON
    return json.dumps(root[0]).encode()


def _entries(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [entry for key in keys for entry in _entries(value[key])]


def hostile_safetensors(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Returns safetensors with a well-formed but wrong header, or a wrong header length."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 + size:
        return damaged(rng, content, other)
    header = hostile_json(rng, content[8 : 8 + size], other)
    length = rng.choice([len(header)] * 6 + [abs(number) for number in NUMBERS if abs(number) < 2**64])
    return struct.pack("<Q", length) + header + content[8 + size :]


def hostile_npy(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Returns an .npy with another header before the same bytes."""
    start = 10 + int.from_bytes(content[8:10], "little")
    descr = rng.choice(
        ["|u1", "<i8", "<f4", "<f2", "|O", "<U9", "|V0", "|S0", ">u4", "<c16", "|b1", "<M8[s]", [("a", "|u1")], 3, ""]
    )
    sizes = [rng.choice([*NUMBERS, 2, 5, 12, 4, 1, 3]) for _ in range(rng.choice([0, 1, 2, 3, 3, 4, 4, 40]))]
    values = {"descr": descr, "fortran_order": rng.choice([True, False, False, 1]), "shape": tuple(sizes)}
    if rng.randrange(8) == 0:
        values[rng.choice(list(values))] = rng.choice(HOSTILE)
    text = (repr(values) + " " * rng.choice([0, 3, 20_000]) + "\n").encode()
    version = rng.choice([b"\x01\x00"] * 6 + [b"\x02\x00", b"\x03\x00", b"\x09\x00"])
    return (
        b"\x93NUMPY"
        + version
        + struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
        + text
        + content[start:]
    )


def hostile_png(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Returns a PNG with valid checksums, but wrong sizes or modes, missing or repeated chunks, or text bombs."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    if content[:4] != b"\x89PNG" or not chunks:
        return damaged(rng, content, other)
    for _ in range(rng.choice([1, 2, 3])):
        chunk, kind = rng.choice(chunks), rng.randrange(5)
        if kind == 0:
            sides = struct.pack(">II", *[rng.choice([0, 1, 5, 4096, 5000, 20_000, 2**31 - 1, 2**32 - 1]) for _ in "wh"])
            chunks[0][1] = sides + bytes(
                [rng.choice([1, 2, 8, 16, 3]), rng.choice([0, 2, 3, 4, 6, 1]), 0, 0, rng.choice([0, 1, 2])]
            )
        elif kind == 1:
            bomb = zlib.compress(bytes(rng.choice([10, 2_000_000])))
            name = rng.choice(
                [b"zTXt", b"iTXt", b"iCCP", b"tEXt", b"eXIf", b"acTL", b"fdAT", b"PLTE", b"tRNS", b"gAMA", b"pHYs"]
            )
            chunks.insert(
                rng.randrange(len(chunks) + 1),
                [name, rng.choice([b"k\0\0", b"", b"\0" * 8]) + bomb[: rng.choice([3, 6, 5000])]],
            )
        elif kind == 2 and len(chunks) > 1:
            chunks.remove(chunk)
        elif kind == 3:
            chunks.append(chunk)
        else:
            chunk[1] = damaged(rng, chunk[1], other)
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return content[:8] + b"".join(packed)


def hostile_zip(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Returns a zip with damaged, renamed, repeated, missing or nested entries, or wrong sizes and methods."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [[name, archive.read(name)] for name in archive.namelist()]
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, zlib.error, EOFError, OSError):
        entries = []
    if not entries:
        return damaged(rng, content, other)
    for _ in range(rng.choice([1, 1, 2])):
        entry, kind = rng.choice(entries), rng.randrange(8)
        if kind == 0:
            entry[0] = rng.choice(NAMES)
        elif kind == 1 and len(entries) > 1:
            entries.remove(entry)
        elif kind == 2:
            entries.append(list(entry))
        elif kind == 3:
            entry[1] = rng.choice([content, bytes(3_000_000), b""])
        else:
            entry[1] = changed(rng, entry[0], entry[1], other)
    packed = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED] * 6 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, body in entries:
            info = zipfile.ZipInfo(name or "x")
            info.compress_type, info.external_attr = method, rng.choice([0, 0, 0, 0o120777 << 16])
            archive.writestr(info, body)
    found = bytearray(packed.getvalue())
    if rng.randrange(4) == 0:  # in the directory: sizes, flags, method, offset
        at = [k for k in range(len(found) - 46) if found[k : k + 4] == b"PK\x01\x02"]
        field = rng.choice(at or [0]) + rng.choice([8, 10, 20, 24, 42])
        found[field : field + 4] = struct.pack("<I", rng.choice([0, 1, 99, 2**31, 2**32 - 1, 2**32 - 2, 10**9]))
    return bytes(found)


WHOLE: dict[str, Callable[[random.Random, bytes, bytes], bytes]] = {
    ".json": hostile_json,
    ".safetensors": hostile_safetensors,
    ".npy": hostile_npy,
    ".png": hostile_png,
    ".zip": hostile_zip,
    ".npz": hostile_zip,
    ".pt": hostile_zip,
    ".pth": hostile_zip,
}
"""Suffix -> function that returns a hostile but well-formed file of this format."""


def changed(rng: random.Random, name: str, content: bytes, other: bytes) -> bytes:
    """Returns the content of a file, damaged, or hostile in the format of its suffix."""
    hostile = next((make for ending, make in WHOLE.items() if name.lower().endswith(ending)), damaged)
    return rng.choice([hostile, hostile, damaged])(rng, content, other)


def changed_files(rng: random.Random, seeds: list[Files]) -> Files:
    """Returns one of the seeds with one or two of its files changed, exchanged, removed, or made a link or pipe."""
    files = dict(rng.choice(seeds))
    for _ in range(rng.choice([1, 1, 1, 2])):
        name, other = rng.choice(sorted(files)), rng.choice(seeds)
        content = other[rng.choice(sorted(other))]
        if not isinstance(files[name], bytes) or not isinstance(content, bytes):
            continue
        if rng.randrange(12) == 0:
            linked(files, rng, name)
        elif rng.randrange(20) == 0:
            files[name] = rng.choice([b"", content])
        elif rng.randrange(20) == 0 and len(files) > 1:
            del files[name]
        else:
            files[name] = changed(rng, name, files[name], content)
    return files


def linked(files: Files, rng: random.Random, name: str) -> None:
    """Replace a file by a pipe or a link, or one of its parent folders by a link."""
    kind = rng.randrange(4)
    if kind == 0:
        files[name] = PIPE
    elif kind == 1 and "/" in name:
        folder = "/".join(name.split("/")[: rng.randrange(1, name.count("/") + 1)])
        for other in [other for other in files if other.startswith(f"{folder}/")]:
            del files[other]
        files[folder] = _target(rng, folder)
    else:
        files[name] = _target(rng, name)


def _target(rng: random.Random, name: str) -> str:
    return rng.choice([*LINKS, name.rpartition("/")[2], "../" * (1 + name.count("/")) + OUTSIDE])


def signed(files: Files, meta: str) -> Files:
    """Returns the files of a checkpoint with valid digests in its meta.json, as an attacker would provide them."""
    try:
        values = json.loads(files[meta])
        digests = dict.fromkeys(values["sha256"])
        rest = {key: value for key, value in values.items() if key != "sha256"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return files
    folder = meta.rpartition("/")[0]
    for name in digests:
        content = json.dumps(rest).encode() if name == "meta.json" else files.get(f"{folder}/{name}", b"")
        content = content if isinstance(content, bytes) else b""
        digests[name] = hashlib.sha256(content).hexdigest()
    return files | {meta: json.dumps({**rest, "sha256": digests}).encode()}


def expression(rng: random.Random, depth: int = 0) -> str:
    """Returns the text of a value for a command line, or similar text."""
    words = [
        "1",
        "-1",
        "0.5",
        "true",
        "None",
        "nan",
        "inf",
        "1e400",
        "9" * 400,
        "''",
        "'a'",
        "x",
        "",
        "(",
        ")",
        "\0",
        "é",
        "1_0",
    ]
    words += [
        "vpsde",
        "vesde",
        "unet",
        "dit",
        "0x1f",
        "1j",
        "b'x'",
        "...",
        "lambda: 0",
        "__import__('os').mkdir('x')",
        "1 + 1",
    ]
    if depth > 3 or rng.randrange(2):
        return rng.choice(words)
    parts = ",".join(expression(rng, depth + 1) for _ in range(rng.randrange(4)))
    forms = ["(@,)", "[@]", "{@}", "{@: 1}", "-@", "@@@"]
    deep = ["(" * 300 + "@", "[" * 90 + "@", "-" * 9000 + "@"]
    return rng.choice(deep if rng.randrange(30) == 0 else forms).replace("@", parts)


def command(rng: random.Random, flags: Mapping[str, list[str]], keys: list[str]) -> list[str]:
    """Returns words of a command line: flags and keys, valid and misspelt, with valid and invalid values."""
    words = [f"--{name}={rng.choice(flags[name])}" for name in ("mode", "config")] if rng.randrange(4) else []
    for _ in range(rng.choice([0, 1, 1, 2, 3, 7])):
        name = rng.choice(list(flags))
        value = rng.choice([rng.choice(flags[name] or [""]), rng.choice(flags[name] or [""]), expression(rng)])
        key = rng.choice(keys)
        words += rng.choice(
            [
                [f"--{name}={value}"],
                [f"--{name}={value}"],
                [f"--{name}", value],
                [f"--config.{key}={expression(rng)}"],
                [f"--config.{rng.choice(['', key[1:], f'{key}.x', key.split('.')[0], '.', 'é'])}={value}"],
                [f"--config.{key}", value],
                [
                    rng.choice(
                        ["--", "-", "", f"--{name}", f"--no{name}", f"-{name}", value, f"--{name[1:]}", "\0", "\udcff"]
                    )
                ],
            ]
        )
    return words
