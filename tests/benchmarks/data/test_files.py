"""Where files are looked for, how they are downloaded and checked, and what the errors say."""

import gzip
import hashlib
import http.server
import io
import lzma
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile

import pooch
import pytest

from benchmarks.data import DATASETS, CorruptDataError, MissingDataError, locate
from benchmarks.data.files import read
from benchmarks.data.registry import File, Source, Variant

CONTENT = b"a small text\n"


def digest(content, algorithm="sha256"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def zip_archive(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"folder/{name}", content)
    return stream.getvalue()


def tar_archive(**members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"./folder/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def archived(archive_name, archive, address=None, **members):
    """The files of a data set that are in this archive."""
    whole = File(archive_name, len(archive), digest(archive, "md5"), address)
    return Source(
        tuple(
            File(name, len(content), digest(content), archive=whole, member=f"folder/{name}")
            for name, content in members.items()
        )
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The user's cache."""
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("PATHSPACE_DATA", raising=False)
    return tmp_path / "cache" / "pathspace"


@pytest.fixture
def register(cache, monkeypatch):
    """Makes `tiny` a data set; by default of one file without an address."""

    def do(source=None, **changes):
        file = File("tiny.txt", len(CONTENT), digest(CONTENT))._replace(**changes)
        monkeypatch.setitem(DATASETS, "tiny", source or Source((file,)))

    do()
    return do


@pytest.fixture
def server():
    """An address whose files are those of a dictionary; one that ends with `...` is cut short, and waits."""
    files, stop = {}, threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path[1:])
            self.send_response(404 if content is None else 200)
            content = content or b""
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if content.endswith(b"..."):
                self.wfile.write(content[:-1])
                self.wfile.flush()
                stop.wait(20)
            else:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", files, stop
        stop.set()
        running.shutdown()
        thread.join()


def lay(folder, name, content):
    path = folder / "tiny" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def left_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_folders_are_looked_through_in_order(tmp_path, cache, register, monkeypatch):
    monkeypatch.setenv("PATHSPACE_DATA", str(tmp_path / "environment"))
    given = tmp_path / "given"
    assert locate("tiny", given) == {"tiny.txt": None}
    for folder in (cache, tmp_path / "environment", given):
        path = lay(folder, "tiny.txt", CONTENT)
        assert locate("tiny", given) == {"tiny.txt": path}
        assert read("tiny", given).files == {"tiny.txt": CONTENT}


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_plain_files_may_be_compressed(suffix, compress, tmp_path, register):
    lay(tmp_path, f"tiny.txt{suffix}", compress(CONTENT))
    assert read("tiny", tmp_path) == ({"tiny.txt": CONTENT}, ())


@pytest.mark.parametrize(("name", "pack"), [("tiny.zip", zip_archive), ("tiny.tar.gz", tar_archive)])
def test_files_are_read_from_their_archive(name, pack, tmp_path, register):
    members = {"one": b"1", "two": b"2"}
    archive = pack(other=b"3", **members)
    register(archived(name, archive, **members))
    path = lay(tmp_path, name, archive)
    assert locate("tiny", tmp_path) == {"one": path, "two": path}
    assert read("tiny", tmp_path).files == members
    assert left_in(tmp_path) == [path]


def test_missing_files_are_all_named_with_the_folders_and_the_remedy(tmp_path, cache, register, monkeypatch):
    monkeypatch.setenv("PATHSPACE_DATA", str(tmp_path / "environment"))
    files = [File(f"{name}.txt", size, digest(b"")) for name, size in (("one", 1), ("two", 2000), ("three", 3))]
    register(Source(tuple(files)))
    lay(tmp_path, "one.txt", b"")
    with pytest.raises(MissingDataError) as error:
        read("tiny", tmp_path)
    message = str(error.value)
    assert message.startswith("expected the 3 files of tiny, got 1. Missing:\n")
    assert "  two.txt (2,000 bytes), not for download\n  three.txt (3 bytes), not for download\n" in message
    assert f"Looked in {tmp_path / 'tiny'}, {tmp_path / 'environment' / 'tiny'}, {cache / 'tiny'}.\n" in message
    assert message.endswith(
        "Remedy: lay the files or archives named above into DIR/tiny/ with --data-dir DIR or PATHSPACE_DATA=DIR."
    )


def test_missing_files_are_downloaded_once(cache, register, server):
    address, files, _ = server
    register(address=f"{address}tiny.txt")
    files["tiny.txt"] = CONTENT
    assert read("tiny").files == {"tiny.txt": CONTENT}
    files.clear()
    assert read("tiny").files == {"tiny.txt": CONTENT}
    assert left_in(cache) == [cache / "tiny" / "tiny.txt"]


@pytest.mark.parametrize(("name", "pack"), [("tiny.zip", zip_archive), ("tiny.tgz", tar_archive)])
def test_archives_are_downloaded_whole(name, pack, cache, register, server):
    address, files, _ = server
    members = {"one": b"1", "two": b"2"}
    files[name] = pack(**members)
    register(archived(name, files[name], f"{address}{name}", **members))
    assert read("tiny").files == members
    assert left_in(cache) == [cache / "tiny" / name]


def test_data_sets_share_their_archive(cache, register, server, monkeypatch):
    address, files, _ = server
    files["both.zip"] = zip_archive(one=b"1", two=b"2")
    one, two = archived("both.zip", files["both.zip"], f"{address}both.zip", one=b"1", two=b"2").files
    register(Source((one,)))
    monkeypatch.setitem(DATASETS, "other", Source((two,)))
    assert read("tiny").files == {"one": b"1"}
    files.clear()
    assert read("other").files == {"two": b"2"}
    assert left_in(cache) == [cache / "tiny" / "both.zip"]


@pytest.mark.parametrize(
    ("served", "cause"),
    [
        (None, "404"),
        (b"another text\n", "does not match the known hash"),
        (CONTENT[:4] + b"...", "6 bytes read, 1 more"),
    ],
)
def test_failed_downloads_name_their_cause_and_leave_nothing(served, cause, cache, register, server):
    address, files, stop = server
    stop.set()
    register(address=f"{address}tiny.txt")
    if served is not None:
        files["tiny.txt"] = served
    with pytest.raises(MissingDataError) as error:
        read("tiny")
    message = str(error.value)
    assert f"  tiny.txt (13 bytes), {address}tiny.txt\n" in message
    assert "Remedy: go online and try again, or lay the files or archives named above into DIR/tiny/" in message
    assert cause in message.partition("\nThe download failed: ")[2]
    assert left_in(cache) == []


def test_message_offline_names_the_archive_and_its_address(register):
    archive = zip_archive(one=b"1")
    address = "http://127.0.0.1:9/tiny.zip"
    register(archived("tiny.zip", archive, address, one=b"1"))
    with pytest.raises(MissingDataError, match="Connection refused") as error:
        read("tiny")
    assert f"  one (1 bytes), in tiny.zip ({len(archive)} bytes), {address}\n" in str(error.value)


def test_message_names_the_folders_of_data_sets_that_share_the_archive(cache, register, monkeypatch):
    source = archived("both.zip", zip_archive(one=b"1"), "http://127.0.0.1:9/both.zip", one=b"1")
    register(source)
    monkeypatch.setitem(DATASETS, "other", source)
    with pytest.raises(MissingDataError) as error:
        read("tiny")
    assert f"Looked in {cache / 'tiny'}, {cache / 'other'}.\n" in str(error.value)


def test_killed_download_is_not_taken_for_the_file(cache, register, server):
    address, files, _ = server
    register(address=f"{address}tiny.txt")
    files["tiny.txt"] = CONTENT + b"..."
    program = f"""
        import pooch
        pooch.retrieve("{address}tiny.txt", None, fname="tiny.txt", path="{cache / "tiny"}")
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not left_in(cache) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert left_in(cache) != []
    assert locate("tiny") == {"tiny.txt": None}
    files["tiny.txt"] = CONTENT
    assert read("tiny").files == {"tiny.txt": CONTENT}


@pytest.mark.parametrize(("name", "compress"), [("tiny.txt", bytes), ("tiny.txt.xz", lzma.compress)])
def test_other_content_is_corrupt(name, compress, tmp_path, register):
    path = lay(tmp_path, name, compress(b"another text"))
    with pytest.raises(CorruptDataError) as error:
        read("tiny", tmp_path)
    assert str(error.value) == (
        f"expected tiny.txt of 13 bytes, {digest(CONTENT)}, got 12 bytes, {digest(b'another text')}, in {path}: "
        "delete the file and load it anew"
    )


@pytest.mark.parametrize(("name", "pack"), [("tiny.zip", zip_archive), ("tiny.tgz", tar_archive)])
def test_truncated_archive_is_corrupt(name, pack, tmp_path, register):
    archive = pack(one=b"1")
    register(archived(name, archive, one=b"1"))
    lay(tmp_path, name, archive[:-9])
    with pytest.raises(
        CorruptDataError, match=f"expected {name} of {len(archive)} bytes, .*got {len(archive) - 9} bytes"
    ):
        read("tiny", tmp_path)


@pytest.mark.parametrize(("suffix", "compress"), [(".xz", lzma.compress), (".gz", gzip.compress)])
def test_what_cannot_be_decompressed_is_corrupt(suffix, compress, tmp_path, register):
    packed = compress(CONTENT)
    for damaged in (packed[:-9], b"no compressed file"):
        path = lay(tmp_path, f"tiny.txt{suffix}", damaged)
        with pytest.raises(CorruptDataError) as error:
            read("tiny", tmp_path)
        assert f"expected tiny.txt (13 bytes, {digest(CONTENT)}) compressed in {path}, got " in str(error.value)
        assert f"got {len(damaged)} bytes that cannot be decompressed" in str(error.value)
        assert str(error.value).endswith("delete the file and load it anew")


def test_notes_are_those_of_the_data_set_and_of_the_variant(tmp_path, register):
    file = File("tiny.txt", 13, digest(CONTENT, "sha1"), variants=(Variant(digest(b"text small a"), "another order"),))
    register(Source((file,), notes=("not official",)))
    path = lay(tmp_path, "tiny.txt", CONTENT)
    assert read("tiny", tmp_path).notes == ("not official",)
    path.write_bytes(b"text small a")
    assert read("tiny", tmp_path).notes == ("not official", "another order")


def test_registry_is_complete():
    assert len(DATASETS) == 10
    for dataset, source in DATASETS.items():
        for file in source.files:
            download = file.archive or file
            assert (download.address is None) == (dataset == "cifar10_jpeg")
            assert bool(file.archive) == bool(file.member)
            for each in (file, download):
                algorithm, _, digits = each.hash.partition(":")
                assert len(bytes.fromhex(digits)) == hashlib.new(algorithm).digest_size
                assert each.size > 0
                assert each.address is None or each.address.endswith(f"/{each.name}")
