"""Data sets: found or downloaded, checked, and read into arrays."""

from benchmarks.data.digits import Dataset, Examples, digit_rows
from benchmarks.data.files import CorruptDataError, MissingDataError, locate
from benchmarks.data.loaders import Images, Text, images, text
from benchmarks.data.registry import DATASETS

__all__ = [
    "DATASETS",
    "CorruptDataError",
    "Dataset",
    "Examples",
    "Images",
    "MissingDataError",
    "Text",
    "digit_rows",
    "images",
    "locate",
    "text",
]
