"""models.files: bounded reads, and writes that are whole or not there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BundleError
from models.files import new_directory, read_regular, write_atomic


def test_reads_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_regular(tmp_path / "a", max_bytes=3) == b"abc"


def test_refuses_one_byte_too_many(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcd")
    with pytest.raises(BundleError, match="a: 4 bytes, at most 3 allowed"):
        read_regular(tmp_path / "a", max_bytes=3)


def _symlink(path: Path) -> None:
    path.with_name("target").write_bytes(b"x")
    path.symlink_to("target")


def _hard_link(path: Path) -> None:
    path.with_name("target").write_bytes(b"x")
    path.hardlink_to(path.with_name("target"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(_symlink, "too many levels of symbolic links", id="symlink"),
        pytest.param(_hard_link, "has 2 hard links", id="hard link"),
        pytest.param(os.mkfifo, "not a regular file", id="pipe"),
        pytest.param(Path.mkdir, "not a regular file", id="folder"),
        pytest.param(lambda path: None, "no such file or directory", id="missing"),
    ],
)
def test_refuses_what_is_no_plain_file(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "a")
    with pytest.raises(BundleError, match=f"a: {message}"):
        read_regular(tmp_path / "a", max_bytes=100)


@pytest.mark.parametrize("make", [_symlink, _hard_link])
def test_what_the_operator_names_may_be_a_link(tmp_path: Path, make) -> None:
    make(tmp_path / "a")
    assert read_regular(tmp_path / "a", max_bytes=1, follow_links=True) == b"x"


def test_refuses_a_device() -> None:
    with pytest.raises(BundleError, match="zero: not a regular file"):
        read_regular(Path("/dev/zero"), max_bytes=100)


def test_refuses_a_file_longer_than_its_size_says() -> None:
    # What a file that grows between the two looks like: /proc says 0, and gives more.
    with pytest.raises(BundleError, match="changed while it was read"):
        read_regular(Path("/proc/self/status"), max_bytes=100)


@settings(deadline=None, max_examples=25)
@given(data=st.binary(max_size=300), mode=st.sampled_from([0o600, 0o644]))
def test_what_is_written_is_read_back(tmp_path_factory, data: bytes, mode: int) -> None:
    path = tmp_path_factory.mktemp("files") / "folder" / "a"
    write_atomic(path, data, mode=mode)
    assert read_regular(path, max_bytes=300) == data
    assert path.stat().st_mode & 0o777 == mode
    assert os.listdir(path.parent) == ["a"]


def test_a_reader_sees_the_old_or_the_new_file_never_half(tmp_path: Path) -> None:
    path = tmp_path / "a"
    versions = [bytes([i]) * 200_000 for i in range(2)]
    write_atomic(path, versions[0])
    done = threading.Event()

    def write() -> None:
        for i in range(40):
            write_atomic(path, versions[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert path.read_bytes() in versions
    writer.join()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inside").write_bytes(b"")
    with pytest.raises(OSError, match="Is a directory"):
        write_atomic(tmp_path / "a", b"data")
    assert os.listdir(tmp_path) == ["a"]


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    with new_directory(tmp_path / "deep" / "new") as folder:
        (folder / "a").write_bytes(b"x")
        assert not (tmp_path / "deep" / "new").exists()
    assert os.listdir(tmp_path / "deep") == ["new"]
    assert os.listdir(tmp_path / "deep" / "new") == ["a"]


def test_a_failed_new_directory_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "new") as folder:
        (folder / "a").write_bytes(b"x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_new_directory_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with (
        pytest.raises(BundleError, match="exists already"),
        new_directory(tmp_path / "new"),
    ):
        pytest.fail("entered")


def test_a_link_that_the_operator_made_is_followed(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "a").write_bytes(b"1")
    (tmp_path / "a").symlink_to(tmp_path / "..data" / "a")
    assert read_regular(tmp_path / "a", max_bytes=3, follow_links=True) == b"1"
    with pytest.raises(BundleError, match="a: "):
        read_regular(tmp_path / "a", max_bytes=3)
