"""Texts as arrays of numbers: words, characters and bytes."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8


def words(content: bytes, name: str) -> list[bytes]:
    """The words of a text, with `<eos>` for the end of each line.

    Args:
      content: words in UTF-8 with blanks between them, in lines.
      name: what errors call the text.

    Raises:
      ValueError: `content` is empty, does not end with a line end, or is not UTF-8.
    """
    if not content.endswith(b"\n"):
        raise ValueError(
            f"expected lines of words in {name}, got {content[-20:]!r} at the end of {len(content):,} bytes: "
            "the file is empty or truncated"
        )
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 in {name}, got other bytes: {error}") from error
    # Not of the decoded text, whose other blanks are parts of words.
    return content.replace(b"\n", b" <eos> ").split()


def spaced_characters(content: bytes, name: str) -> UInt8[np.ndarray, " characters"]:
    """The characters of a text in which each, the line end too, has a blank after it; `_` stands for a blank.

    Args:
      content: the text in ASCII.
      name: what errors call the text.

    Raises:
      ValueError: `content` is empty, not ASCII, or a blank is not where it should be.
    """
    _check_not_empty(content, name)
    _check_ascii(content, name)
    pairs = np.frombuffer(content, np.uint8)
    if len(content) % 2:
        raise ValueError(
            f"expected a blank after each character in {name}, got {len(content):,} bytes: it is truncated"
        )
    characters, blanks = pairs[::2], pairs[1::2]
    if (blanks != ord(" ")).any():
        first = int(np.argmax(blanks != ord(" ")))
        got = content[2 * first : 2 * first + 2]
        raise ValueError(f"expected a blank after each character in {name}, got {got!r} at byte {2 * first:,}")
    return characters


def characters(content: bytes, name: str) -> UInt8[np.ndarray, " characters"]:
    """The characters of a text in ASCII.

    Raises:
      ValueError: `content` is empty or not ASCII.
    """
    _check_ascii(content, name)
    return single_bytes(content, name)


def single_bytes(content: bytes, name: str) -> UInt8[np.ndarray, " bytes"]:
    """The bytes of a text.

    Raises:
      ValueError: `content` is empty.
    """
    _check_not_empty(content, name)
    return np.frombuffer(content, np.uint8)


def split_text(symbols: UInt8[np.ndarray, " symbols"]) -> list[UInt8[np.ndarray, " _"]]:
    """Training, validation and test parts: the first 90 %, the next 5 % and the last 5 %.

    Source: Mikolov et al., "Subword Language Modeling with Neural Networks" (2012), for text8: 90, 5 and 5 million.
    """
    return np.split(symbols, [len(symbols) * 90 // 100, len(symbols) * 95 // 100])


def number_words(parts: Sequence[Sequence[bytes]]) -> tuple[list[Int32[np.ndarray, " _"]], tuple[str, ...]]:
    """Replace each word of the parts by its number in the vocabulary, which has the words of all parts, sorted."""
    vocabulary = sorted(set(itertools.chain.from_iterable(parts)))
    numbers = {word: number for number, word in enumerate(vocabulary)}
    numbered = [np.fromiter(map(numbers.__getitem__, part), np.int32, len(part)) for part in parts]
    return numbered, tuple(word.decode() for word in vocabulary)


def number_bytes(
    parts: Sequence[UInt8[np.ndarray, " _"]],
) -> tuple[list[Int32[np.ndarray, " _"]], tuple[bytes, ...]]:
    """Replace each byte of the parts by its number in the vocabulary, which has the bytes of all parts, sorted."""
    counts = sum(np.bincount(part, minlength=256) for part in parts)
    vocabulary = np.flatnonzero(counts)
    numbers = np.zeros(256, np.int32)
    numbers[vocabulary] = np.arange(len(vocabulary))
    return [numbers[part] for part in parts], tuple(bytes([byte]) for byte in vocabulary.tolist())


def _check_not_empty(content: bytes, name: str) -> None:
    if not content:
        raise ValueError(f"expected a text in {name}, got 0 bytes: the file is empty")


def _check_ascii(content: bytes, name: str) -> None:
    if not content.isascii():
        byte = next(byte for byte in content if byte > 127)
        raise ValueError(f"expected ASCII in {name}, got the byte {byte:#x}: it is another text")
