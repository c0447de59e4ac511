"""Answers over plain HTTP that are cut within their head: nothing is lost that is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from faulty_store import FaultyStore, faulty_store
from pyarrow import fs
from s3_server import put, s3_server

from coreg_ray.images.folder import ImageFolder
from coreg_ray.run.cut_answers import PAGE, ends_with_a_page, sure
from coreg_ray.run.storage import Folder

IMAGES = 2 * PAGE + 300
IN_THE_HEAD = (60, 150)  # bytes


@pytest.fixture(scope="module")
def cut() -> Iterator[tuple[FaultyStore, str]]:
    """A store behind a door that cuts, and the URI of a folder with images in it."""
    with s3_server("pool") as uri:
        direct = Folder.at(uri("images"))
        for number in range(IMAGES):
            put(f"{direct.path}/{number // PAGE}/{number:05d}.png", b"some content")
        direct.write("2/empty.png", b"")
        host, port = re.search(r"endpoint_override=([\d.]+):(\d+)", uri("x")).groups()  # type: ignore[union-attr]
        with faulty_store(host, int(port), 0) as store:
            yield store, uri("images").replace(f"{host}:{port}", f"127.0.0.1:{store.port}")


@pytest.mark.parametrize("at", IN_THE_HEAD)
def test_what_is_there_is_seen_through_cut_answers(cut: tuple[FaultyStore, str], at: int) -> None:
    store, uri = cut
    folder, store.cut_at = Folder.at(uri), at
    looks: list[tuple[Callable[[], object], object]] = [
        (lambda: folder.read("0/00001.png"), b"some content"),
        (lambda: folder.size("1/01500.png"), 12),
        (folder.exists, True),
        (lambda: folder.exists("0/00001.png"), True),
        (folder.entries, ["0", "1", "2"]),
        (lambda: type(ImageFolder.at(uri)), ImageFolder),
    ]
    for look, seen in looks:
        store.to_fail = 1
        assert look() == seen
        assert not store.to_fail


@pytest.mark.parametrize("page", [0, 1, 2])
def test_a_listing_that_ends_early_is_asked_for_again(cut: tuple[FaultyStore, str], page: int) -> None:
    store, uri = cut
    store.first, store.to_fail, store.cut_at = page, 1, 100
    assert len(Folder.at(uri).files(".png")) == IMAGES + 1
    assert not store.to_fail


def test_what_is_not_there_and_what_is_empty_is_said_at_last(cut: tuple[FaultyStore, str]) -> None:
    folder = Folder.at(cut[1])
    assert not folder.exists("9")
    assert (folder / "9").entries() == []
    assert folder.read("2/empty.png") == b""
    assert folder.size("2/empty.png") == 0


def test_only_what_may_be_cut_is_asked_again() -> None:
    asked: list[int] = []

    def ask() -> int:
        asked.append(0)
        return 0

    def always(_: int) -> bool:
        return True

    plain = fs.FileSystem.from_uri("s3://a:b@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")[0]
    safe = fs.FileSystem.from_uri("s3://a:b@bucket/x?region=us-east-1")[0]
    for filesystem, times in ((fs.LocalFileSystem(), 1), (safe, 1), (plain, 3)):
        asked.clear()
        assert sure(filesystem, ask, always) == 0
        assert len(asked) == times
    answers = iter([0, 0, 7, 0, 0, 0])
    assert sure(plain, lambda: next(answers), lambda answer: answer == 0) == 7  # no doubt is left


def test_an_answer_that_changes_for_ever_is_taken_in_the_end() -> None:
    plain = fs.FileSystem.from_uri("s3://a:b@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")[0]
    answers = iter(range(1000))
    assert sure(plain, lambda: next(answers), lambda _: True) == 30


@pytest.mark.parametrize(
    ("files", "folders", "doubtful"),
    [
        *[(0, 0, True), (1, 0, False), (PAGE - 1, 0, True), (PAGE, 0, True), (PAGE + 1, 0, False)],
        *[(PAGE - 20, 10, False), (PAGE - 20, 25, True), (2 * PAGE - 1, 0, True), (300, 2 * PAGE, True)],
    ],
)
def test_listings_that_may_be_whole_pages_are_doubtful(files: int, folders: int, doubtful: bool) -> None:
    infos = [fs.FileInfo(f"f{number}", fs.FileType.File) for number in range(files)]
    infos += [fs.FileInfo(f"d{number}", fs.FileType.Directory) for number in range(folders)]
    assert ends_with_a_page(infos) is doubtful
