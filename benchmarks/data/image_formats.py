"""Labelled images as arrays: idx files, Python batches of CIFAR, archives of JPEG files."""

import io
import lzma
import math
import pickle
import struct
import tarfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8


class Labelled(NamedTuple):
    """Images and the numbers of their classes."""

    images: UInt8[np.ndarray, "examples height width *channels"]
    labels: Int32[np.ndarray, " examples"]


def idx(content: bytes, name: str, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The array of bytes of an idx file.

    Args:
      content: the file without compression.
      name: what errors call the file.
      dimensions: how many the array has: 3 for images, 1 for labels.

    Raises:
      ValueError: `content` is no such idx file, truncated, too long, or has no example.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998), file formats.
    """
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(
            f"expected an idx header of {header} bytes in {name}, got {len(content)} bytes: "
            "the file is empty or truncated"
        )
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise ValueError(
            f"expected the magic number {magic.hex()} in {name}, got {content[:4].hex()}: "
            f"it is no idx file of bytes in {dimensions} dimensions"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    size = header + math.prod(shape)
    if len(content) != size:
        problem = "truncated" if len(content) < size else "too long"
        raise ValueError(f"expected {size:,} bytes in {name}, got {len(content):,} bytes: the file is {problem}")
    if 0 in shape:
        raise ValueError(f"expected one example or more in {name}, got shape {shape}: the file is empty")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


# Arrays are pickled as calls of these; that of dtype has numbers where NumPy now wants bool.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): lambda code, align, copy: np.dtype(code, bool(align), bool(copy)),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Loads built-in types and NumPy arrays; nothing else that a pickle might call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name}, which is not admitted")
        return _ADMITTED[module, name]


def cifar_batch(content: bytes, name: str, labels: str) -> Labelled:
    """The images, (examples, 32, 32, 3), and labels of a Python batch of CIFAR-10 or CIFAR-100.

    Args:
      content: a pickled dictionary with bytes as keys: `data`, uint8 of shape (examples, 3072), a row for each image
        with its red, green and blue pixels, and lists of labels.
      name: what errors call the file.
      labels: the key of the labels: `labels`, or `fine_labels`.

    Raises:
      ValueError: `content` is no such pickle, has other classes than those of NumPy arrays, or no example.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009), python version.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        data, numbers = batch[b"data"], batch[labels.encode()]
        shape, dtype = data.shape, data.dtype
    # Damaged pickles raise about everything.
    except Exception as error:
        raise ValueError(
            f"expected a pickled dictionary with data and {labels} in {name}, got {type(error).__name__}: {error}"
        ) from error
    if dtype != np.uint8 or shape != (len(numbers), 3072) or len(numbers) == 0:
        raise ValueError(
            f"expected uint8 data with a row of 3072 pixels for each label in {name}, "
            f"got {dtype} of shape {shape} and {len(numbers)} labels"
        )
    images = np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Labelled(images, np.array(numbers, np.int32))


def jpeg_archive(content: bytes, name: str) -> tuple[Labelled, Labelled]:
    """The training and test images, (examples, 32, 32, 3), of a tar archive of JPEG files.

    Their paths are `train/CLASS/NAME.jpg` and `test/CLASS/NAME.jpg`. Classes are numbered in alphabetical order; the
    images are in that of their paths. Other files are left out.

    Args:
      content: the archive; compressed ones are recognised.
      name: what errors call the archive.

    Raises:
      ValueError: `content` is no tar archive, lacks files or classes of training or test, or has a file that is no RGB
        image of 32x32 pixels.
    """
    parts: dict[str, dict[tuple[str, str], np.ndarray]] = {"train": {}, "test": {}}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:*") as archive:
            for entry in archive:
                folders = entry.name.removeprefix("./").split("/")
                if len(folders) == 3 and folders[0] in parts and (file := archive.extractfile(entry)):
                    parts[folders[0]][folders[1], folders[2]] = _jpeg(file.read(), f"{name}: {entry.name}")
    except (tarfile.TarError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"expected a tar archive in {name}, got {len(content):,} bytes: {error}") from error
    for part, files in parts.items():
        if not files:
            raise ValueError(f"expected files {part}/CLASS/NAME.jpg in {name}, got none")
    classes = {part: sorted({folder for folder, _ in files}) for part, files in parts.items()}
    if classes["train"] != classes["test"]:
        raise ValueError(f"expected the classes {classes['train']} in test of {name}, got {classes['test']}")
    train, test = (_sorted_by_path(files) for files in parts.values())
    return train, test


def _sorted_by_path(files: Mapping[tuple[str, str], UInt8[np.ndarray, "32 32 3"]]) -> Labelled:
    paths = sorted(files)
    _, labels = np.unique([folder for folder, _ in paths], return_inverse=True)
    return Labelled(np.stack([files[path] for path in paths]), labels.astype(np.int32))


def _jpeg(content: bytes, name: str) -> UInt8[np.ndarray, "32 32 3"]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            mode, size, pixels = image.mode, image.size, np.asarray(image)
    except OSError as error:
        raise ValueError(f"expected a JPEG image in {name}, got {len(content):,} bytes: {error}") from error
    if (mode, size) != ("RGB", (32, 32)):
        raise ValueError(f"expected RGB pixels, 32x32, in {name}, got {mode}, {size[0]}x{size[1]}")
    return pixels
