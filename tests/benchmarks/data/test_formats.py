"""Small files in the formats of the data sets, whole and damaged."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from benchmarks.data import images, loaders, text
from benchmarks.data.files import Contents
from benchmarks.data.image_formats import cifar_batch, idx, jpeg_archive
from benchmarks.data.text_formats import characters, number_words, single_bytes, spaced_characters, words


def idx_file(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def python_2_batch(data, key, labels):
    """A batch as CIFAR's authors wrote it: protocol 2 of Python 2, whose strings are bytes."""

    def string(value):
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"K" + bytes([value])

    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + number(0) + b"\x85" + string(b"b")
    dtype = b"cnumpy\ndtype\n" + string(b"u1") + number(0) + number(1) + b"\x87R"
    # Version 3 of a dtype's state: byte order, no subarray, no names, no fields, size, alignment and flags as they are.
    dtype += b"(" + number(3) + string(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + number(0) + b"tb"
    shape = b"".join(b"M" + struct.pack("<H", size) for size in data.shape) + b"\x86"
    state = b"(" + number(1) + shape + dtype + b"\x89" + string(data.tobytes()) + b"tb"
    items = string(b"data") + array + b"\x87R" + state + string(key) + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def jpeg_file(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def tar_file(files, compression="xz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def load(monkeypatch):
    """Loads a data set from these files, as if they had been found and checked."""

    def do(loader, dataset, files):
        monkeypatch.setattr(loaders, "read", lambda *_: Contents(files, ("a note",)))
        return loader(dataset)

    return do


def mnist_files(train, labels, test):
    arrays = {"train-images-idx3": train, "train-labels-idx1": labels, "t10k-images-idx3": test}
    arrays["t10k-labels-idx1"] = np.arange(len(test), dtype=np.uint8)
    return {f"{name}-ubyte.gz": gzip.compress(idx_file(array)) for name, array in arrays.items()}


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist"])
def test_mnist_is_read_from_idx_files(dataset, load):
    train, test, labels = noise(3, 28, 28), noise(2, 28, 28), np.array([9, 0, 5], np.uint8)
    data = load(images, dataset, mnist_files(train, labels, test))
    assert_array_equal(data.train_images, train)
    assert_array_equal(data.test_images, test)
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([9, 0, 5], [0, 1])
    assert (data.train_images.dtype, data.train_labels.dtype) == (np.uint8, np.int32)
    assert (data.classes, data.notes) == (10, ("a note",))


@pytest.mark.parametrize("labels", [[1, 2], [1, 2, 10]])
def test_labels_that_do_not_belong_to_the_images_are_an_error(labels, load):
    files = mnist_files(noise(3, 28, 28), np.array(labels, np.uint8), noise(1, 28, 28))
    message = f"from 0 to 9 for each of the 3 training images of mnist, got {len(labels)} labels from 1 to {labels[-1]}"
    with pytest.raises(ValueError, match=message):
        load(images, "mnist", files)


def test_images_of_another_size_are_an_error(load):
    files = mnist_files(noise(3, 27, 28), np.zeros(3, np.uint8), noise(1, 28, 28))
    with pytest.raises(ValueError, match=r"28x28 pixels in train-images-idx3-ubyte.gz, got \(3, 27, 28\)"):
        load(images, "mnist", files)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: b"", "an idx header of 16 bytes in FILE, got 0 bytes: the file is empty or truncated"),
        (lambda file: file[:9], "an idx header of 16 bytes in FILE, got 9 bytes: the file is empty or truncated"),
        (lambda file: file[:-1], "expected 34 bytes in FILE, got 33 bytes: the file is truncated"),
        (lambda file: file + b"x", "expected 34 bytes in FILE, got 35 bytes: the file is too long"),
        (
            lambda file: b"\0\0\x08\1" + file[4:],
            "the magic number 00000803 in FILE, got 00000801: it is no idx file of",
        ),
        (
            lambda file: idx_file(noise(0, 3, 3)),
            r"one example or more in FILE, got shape \(0, 3, 3\): the file is empty",
        ),
    ],
)
def test_damaged_idx_files_are_named(damage, message):
    with pytest.raises(ValueError, match=message):
        idx(damage(idx_file(noise(2, 3, 3))), "FILE", 3)


@pytest.mark.parametrize("key", ["labels", "fine_labels"])
def test_cifar_batch_is_read_from_a_pickle_of_python_2(key):
    data = noise(2, 3072)
    batch = cifar_batch(python_2_batch(data, key.encode(), [7, 3]), "FILE", key)
    assert batch.images.shape == (2, 32, 32, 3)
    assert_array_equal(batch.images[1, 5, 6], data[1, 5 * 32 + 6 :: 1024])
    assert (batch.labels.tolist(), batch.labels.dtype) == ([7, 3], np.int32)


def test_cifar_10_is_its_batches_in_order(load):
    batches = [noise(1, 3072) + number for number in range(6)]
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    files = {
        name: python_2_batch(data, b"labels", [number])
        for number, (name, data) in enumerate(zip(names, batches, strict=True))
    }
    data = load(images, "cifar-10", files)
    assert (data.train_labels.tolist(), data.test_labels.tolist(), data.classes) == ([0, 1, 2, 3, 4], [5], 10)
    assert data.train_images.shape == (5, 32, 32, 3)
    assert_array_equal(data.test_images[0, 0, 0], batches[5][0, ::1024])


def test_cifar_100_has_the_fine_labels(load):
    files = {name: python_2_batch(noise(1, 3072), b"fine_labels", [99]) for name in ("train", "test")}
    data = load(images, "cifar-100", files)
    assert (data.train_labels.tolist(), data.test_labels.tolist(), data.classes) == ([99], [99], 100)


class _Harmful:
    def __reduce__(self):
        return print, ("called",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "data and labels in FILE, got EOFError"),
        (
            python_2_batch(noise(2, 3072), b"labels", [1, 2])[:-900],
            "in FILE, got UnpicklingError: pickle data was trunc",
        ),
        (python_2_batch(noise(1, 3072), b"others", [1]), "in FILE, got KeyError: b'labels'"),
        (pickle.dumps([1]), "in FILE, got TypeError"),
        (pickle.dumps({b"data": _Harmful()}), "in FILE, got UnpicklingError: builtins.print, which is not admitted"),
        (python_2_batch(noise(2, 3072), b"labels", [1]), r"in FILE, got uint8 of shape \(2, 3072\) and 1 labels"),
        (python_2_batch(noise(1, 3071), b"labels", [1]), r"in FILE, got uint8 of shape \(1, 3071\) and 1 labels"),
        (python_2_batch(noise(0, 3072), b"labels", []), r"in FILE, got uint8 of shape \(0, 3072\) and 0 labels"),
    ],
)
def test_damaged_cifar_batches_are_named(content, message, capsys):
    with pytest.raises(ValueError, match=message):
        cifar_batch(content, "FILE", "labels")
    assert capsys.readouterr().out == ""


def test_jpeg_images_are_numbered_by_class(load):
    gray = {name: np.full((32, 32, 3), level, np.uint8) for name, level in (("cat", 50), ("airplane", 200))}
    files = {
        f"{part}/{name}/0001.jpg": jpeg_file(pixels) for part in ("train", "test") for name, pixels in gray.items()
    }
    data = load(images, "cifar10_jpeg", {"FILE": tar_file({"README.md": b"", **files})})
    for pixels, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert (pixels.shape, pixels.dtype) == ((2, 32, 32, 3), np.uint8)
        assert (labels.tolist(), labels.dtype) == ([0, 1], np.int32)
        assert pixels.mean((1, 2, 3)).round().tolist() == [200, 50]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "expected a tar archive in FILE, got 10 bytes"),
        (tar_file({"train/cat/1.jpg": jpeg_file(noise(32, 32, 3))})[:-1000], "expected a tar archive in FILE, got"),
        (tar_file({"README.md": b""}), "expected files train/CLASS/NAME.jpg in FILE, got none"),
        (
            tar_file({"train/cat/1.jpg": jpeg_file(noise(32, 32, 3))}),
            "expected files test/CLASS/NAME.jpg in FILE, got none",
        ),
        (
            tar_file({f"{part}/1.jpg": jpeg_file(noise(32, 32, 3)) for part in ("train/cat", "test/dog")}),
            r"expected the classes \['cat'\] in test of FILE, got \['dog'\]",
        ),
        (tar_file({"train/cat/1.jpg": b"no image"}), "expected a JPEG image in FILE: train/cat/1.jpg, got 8 bytes"),
        (
            tar_file({"train/cat/1.jpg": jpeg_file(noise(32, 32, 3))[:-90]}),
            "expected a JPEG image in FILE: train/cat/1.jpg",
        ),
        (tar_file({"train/cat/1.jpg": jpeg_file(noise(30, 32))}), "RGB pixels, 32x32, in FILE: .*, got L, 32x30"),
    ],
)
def test_damaged_jpeg_archives_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        jpeg_archive(content, "FILE")


@pytest.mark.parametrize("dataset", ["ptb", "wikitext-2"])
def test_words_are_numbered_and_lines_end_with_eos(dataset, load):
    # No-break spaces are parts of words.
    files = {"train": b" the cat\n \n", "valid": "the caf\u00e9\u00a0noir \n".encode(), "test": b"the \n"}
    data = load(text, dataset, files)
    assert data.vocabulary == ("<eos>", "caf\u00e9\u00a0noir", "cat", "the")
    assert (data.train.tolist(), data.validation.tolist(), data.test.tolist()) == ([3, 2, 0, 0], [3, 1, 0], [3, 0])
    assert {data.train.dtype, data.validation.dtype, data.test.dtype} == {np.dtype(np.int32)}
    assert data.notes == ("a note",)


def test_numbers_do_not_depend_on_the_order_of_articles():
    parts = [[b"b", b"a"], [b"c"]]
    assert number_words(parts)[1] == number_words([part[::-1] for part in parts[::-1]])[1] == ("a", "b", "c")


def test_spaced_characters_include_the_line_end(load):
    data = load(text, "ptb_char", {"train": b"a _ b \n ", "valid": b"b ", "test": b"c \n "})
    assert data.vocabulary == ("\n", "_", "a", "b", "c")
    assert (data.train.tolist(), data.validation.tolist(), data.test.tolist()) == ([2, 1, 3, 0], [3], [4, 0])
    assert data.train.dtype == np.int32


def test_text8_and_enwik8_are_split_90_5_5(load):
    data = load(text, "text8", {"text8": b"a b " * 10})
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 2, 2)
    assert (data.vocabulary, data.train[:4].tolist(), data.test.tolist()) == ((" ", "a", "b"), [1, 0, 2, 0], [2, 0])
    data = load(text, "enwik8", {"enwik8": bytes(range(200, 240))})
    assert data.vocabulary == tuple(bytes([byte]) for byte in range(200, 240))
    assert (data.train.tolist(), data.validation.tolist()) == (list(range(36)), [36, 37])
    assert (data.train.dtype, data.test.tolist()) == (np.int32, [38, 39])


@pytest.mark.parametrize(
    ("parse", "content", "message"),
    [
        (words, b"", "expected lines of words in FILE, got b'' at the end of 0 bytes: the file is empty or truncated"),
        (words, b"a wor", "expected lines of words in FILE, got b'a wor' at the end of 5 bytes"),
        (words, b"\xff\n", "expected UTF-8 in FILE, got other bytes"),
        (spaced_characters, b"", "expected a text in FILE, got 0 bytes: the file is empty"),
        (spaced_characters, b"a b", "expected a blank after each character in FILE, got 3 bytes: it is truncated"),
        (spaced_characters, b"a bc", "expected a blank after each character in FILE, got b'bc' at byte 2"),
        (spaced_characters, b"\xe9 ", "expected ASCII in FILE, got the byte 0xe9"),
        (characters, b"\xe9 ", "expected ASCII in FILE, got the byte 0xe9"),
        (characters, b"", "expected a text in FILE, got 0 bytes"),
        (single_bytes, b"", "expected a text in FILE, got 0 bytes"),
    ],
)
def test_damaged_texts_are_named(parse, content, message):
    with pytest.raises(ValueError, match=message):
        parse(content, "FILE")


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match=r"expected a data set of images, one of mnist, .*cifar10_jpeg, got 'ptb'"):
        images("ptb")
    with pytest.raises(ValueError, match=r"expected a text, one of ptb, .*enwik8, got 'mnist'"):
        text("mnist")
