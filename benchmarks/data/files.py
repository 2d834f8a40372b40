"""Finds the files of a data set, downloads those that are missing, and checks what they hold."""

import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pooch

from benchmarks.data.registry import DATASETS, File

_COMPRESSED = (".gz", ".tgz", ".xz", ".zip")


class MissingDataError(FileNotFoundError):
    """Files of a data set are in none of the folders and were not downloaded."""


class CorruptDataError(ValueError):
    """A file has another content than its name says."""


class Contents(NamedTuple):
    """The files of a data set by name, in the order of the registry, and notes on them for reports."""

    files: dict[str, bytes]
    notes: tuple[str, ...]


def locate(dataset: str, data_dir: Path | None = None) -> dict[str, Path | None]:
    """Find the files of a data set without reading or downloading any.

    The folders `data_dir`, `$PATHSPACE_DATA` and the user's cache are looked through in this order, each for a folder
    named as the data set. There a file lies under its name, compressed under its name and `.xz` or `.gz`, or in the
    archive that it is downloaded in, which may also lie with another data set that is in it.

    Returns:
      For each file by name the path of the file or archive, or None.
    """
    return {
        file.name: next(filter(Path.is_file, _candidates(dataset, file, data_dir)), None)
        for file in DATASETS[dataset].files
    }


def read(dataset: str, data_dir: Path | None = None) -> Contents:
    """Read the files of a data set; those that `locate` does not find are downloaded to the user's cache.

    Raises:
      MissingDataError: a file is not found and has no address, or its download fails.
      CorruptDataError: a file that is found is not what the registry says.
    """
    source, paths = DATASETS[dataset], locate(dataset, data_dir)
    missing = [file for file in source.files if paths[file.name] is None]
    if missing:
        _download(dataset, missing, data_dir)
        paths = locate(dataset, data_dir)
    files: dict[str, bytes] = {}
    notes = list(source.notes)
    for path in dict.fromkeys(path for path in paths.values() if path is not None):
        here = [file for file in source.files if paths[file.name] == path]
        archive = here[0].archive
        if archive is not None and path.name == archive.name:
            content = path.read_bytes()
            _check(archive, content, path)
            files |= _members(content, here)
        else:
            files[here[0].name] = _decompressed(path, here[0])
            notes += _check(here[0], files[here[0].name], path)
    return Contents({file.name: files[file.name] for file in source.files}, tuple(notes))


def _folders(data_dir: Path | None) -> list[Path]:
    folders = (data_dir, os.environ.get("PATHSPACE_DATA"), _cache())
    return [Path(folder) for folder in folders if folder]


def _cache() -> Path:
    return Path(pooch.os_cache("pathspace"))


def _candidates(dataset: str, file: File, data_dir: Path | None) -> Iterable[Path]:
    names = [file.name]
    if not file.name.endswith(_COMPRESSED):
        names += [f"{file.name}.xz", f"{file.name}.gz"]
    places = [(dataset, name) for name in names]
    if file.archive is not None:
        places += [(each, file.archive.name) for each in (dataset, *_datasets_in(file.archive))]
    return (folder / each / name for folder in _folders(data_dir) for each, name in places)


def _datasets_in(archive: File) -> list[str]:
    return [name for name, source in DATASETS.items() if any(file.archive == archive for file in source.files)]


def _download(dataset: str, missing: list[File], data_dir: Path | None) -> None:
    downloads = list(dict.fromkeys(file.archive or file for file in missing))
    if any(each.address is None for each in downloads):
        raise MissingDataError(_what_is_missing(dataset, missing, data_dir, "lay"))
    for each in downloads:
        try:
            pooch.retrieve(each.address, each.hash, fname=each.name, path=_cache() / dataset)
        # Network errors of requests are OSErrors; pooch raises ValueError where the hash is another one.
        except (OSError, ValueError) as error:
            message = _what_is_missing(dataset, missing, data_dir, "go online and try again, or lay")
            raise MissingDataError(f"{message}\nThe download failed: {error}") from error


def _what_is_missing(dataset: str, missing: list[File], data_dir: Path | None, remedy: str) -> str:
    expected = len(DATASETS[dataset].files)
    lines = [f"expected the {expected} files of {dataset}, got {expected - len(missing)}. Missing:"]
    for file in missing:
        archive = file.archive
        packed = f", in {archive.name} ({archive.size:,} bytes)" if archive else ""
        address = (archive or file).address
        lines.append(f"  {file.name} ({file.size:,} bytes){packed}, {address or 'not for download'}")
    folders = dict.fromkeys(str(path.parent) for file in missing for path in _candidates(dataset, file, data_dir))
    lines.append(f"Looked in {', '.join(folders)}.")
    target = f"DIR/{dataset}/ with --data-dir DIR or PATHSPACE_DATA=DIR"
    lines.append(f"Remedy: {remedy} the files or archives named above into {target}.")
    return "\n".join(lines)


def _decompressed(path: Path, file: File) -> bytes:
    content = path.read_bytes()
    if path.name == file.name:
        return content
    try:
        return lzma.decompress(content) if path.suffix == ".xz" else gzip.decompress(content)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise CorruptDataError(
            f"expected {file.name} ({file.size:,} bytes, {file.hash}) compressed in {path}, "
            f"got {len(content):,} bytes that cannot be decompressed ({error}): delete the file and load it anew"
        ) from error


def _check(file: File, content: bytes, path: Path) -> list[str]:
    """The notes on this content; raises CorruptDataError where it is neither the file's nor a variant."""
    notes = {file.hash: [], **{variant.hash: [variant.note] for variant in file.variants}}
    for known, note in notes.items():
        if _hash(content, known.partition(":")[0]) == known:
            return note
    raise CorruptDataError(
        f"expected {file.name} of {file.size:,} bytes, {file.hash}, "
        f"got {len(content):,} bytes, {_hash(content, file.hash.partition(':')[0])}, in {path}: "
        "delete the file and load it anew"
    )


def _hash(content: bytes, algorithm: str) -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def _members(content: bytes, files: Iterable[File]) -> dict[str, bytes]:
    """What these files hold in their archive; read in place, so that no half-extracted file is ever left behind."""
    names = {PurePosixPath(file.member): file.name for file in files}
    stream, found = io.BytesIO(content), {}
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            for member in archive.namelist():
                if name := names.get(PurePosixPath(member)):
                    found[name] = archive.read(member)
    else:
        stream.seek(0)
        # One pass: to go back in a compressed archive is to decompress it again.
        with tarfile.open(fileobj=stream, mode="r|*") as archive_stream:
            for entry in archive_stream:
                name = names.get(PurePosixPath(entry.name))
                extracted = archive_stream.extractfile(entry) if name else None
                if name and extracted:
                    found[name] = extracted.read()
    return found
