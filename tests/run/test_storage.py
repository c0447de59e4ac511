"""Run folders: whole files only, alike on the local disk and on a file system that is not local."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow import fs
from s3_server import s3_server

from coreg_ray.errors import UserError
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import extended, shortened, split_options, without_credentials


@pytest.fixture(scope="module")
def s3() -> Iterator[Callable[[str], str]]:
    with s3_server("bucket") as uri:
        yield uri


@pytest.fixture(params=["local", "remote", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder; `remote` is one that Folder cannot tell from an object store, `s3` lies on a real one."""
    if request.param == "local":
        return Folder.at(tmp_path / "run")
    if request.param == "s3":
        return Folder.at(request.getfixturevalue("s3")(f"{tmp_path.name}/run"))
    return Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "bucket/run")


STORE = "s3://KEY:SECRET@bucket/runs/a?endpoint_override=host:9000&scheme=http"


def test_a_uri_grows_before_its_options() -> None:
    assert extended(STORE, "/ray") == "s3://KEY:SECRET@bucket/runs/a/ray?endpoint_override=host:9000&scheme=http"
    assert extended("runs/why?=x/", "-best") == "runs/why?=x-best"  # a path has no options
    assert shortened(extended(STORE, "/annotations"), "/annotations") == STORE
    assert shortened("runs/a/annotations/", "/annotations") == "runs/a"
    assert split_options("s3://bucket/what?.png") == ("s3://bucket/what?.png", "")


def test_a_file_lies_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: Callable[[str], str]) -> None:
    monkeypatch.chdir(tmp_path)
    for path, folder in (("a.txt", str(tmp_path)), ("/a.txt", "/"), ("/b/a.txt", "/b")):
        above, name = Folder.of_file(path)
        assert (above.path or "/", name) == (folder, "a.txt")
    deep = Folder.at(s3("deep"))
    deep.write("a.txt", "content")
    above, name = Folder.of_file(s3("deep/a.txt"))
    assert (above.path, above.read(name)) == (deep.path, b"content")


def test_a_server_knows_nothing_of_the_one_before_it() -> None:
    for _ in range(2):
        with s3_server("bucket") as uri:
            assert Folder.at(uri("")).entries() == []
            Folder.at(uri("")).write("a.txt", "content")


def test_credentials_are_cut_out_of_every_uri_in_what_is_shown() -> None:
    settings = {"path": STORE, "list": [f"see {STORE}, and http://user:pw@host/v1"], "seed": 1, "mail": "me@home"}
    shown = without_credentials(settings)
    assert shown["path"] == "s3://bucket/runs/a?endpoint_override=host:9000&scheme=http"
    assert shown["list"] == [f"see {shown['path']}, and http://host/v1"]
    assert (shown["seed"], shown["mail"]) == (1, "me@home")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://b/a?access_key=AK&secret_key=SK&scheme=http", "s3://b/a?access_key=***&secret_key=***&scheme=http"),
        ("see 's3://b/a?Session_Token=T', please", "see 's3://b/a?Session_Token=***', please"),
        (
            "https://h/a?X-Amz-Credential=AK%2F1&X-Amz-Signature=0f&x=1",
            "https://h/a?X-Amz-Credential=***&X-Amz-Signature=***&x=1",
        ),
        ("abfs://c@h/a?sig=abc", "abfs://h/a?sig=***"),
        ("s3://KEY:a/b+c/d@bucket/x@y", "s3://bucket/x@y"),
        ("http://host:8000/v1/x@y", "http://host:8000/v1/x@y"),
        ("s3://b/a?region=eu&design=flat", "s3://b/a?region=eu&design=flat"),
        ("no uri: secret_key=SK stays a text of its own", "no uri: secret_key=SK stays a text of its own"),
    ],
)
def test_keys_are_cut_out_wherever_they_stand_in_a_uri(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_both_kinds_are_told_apart(tmp_path: Path) -> None:
    assert Folder.at(tmp_path).local
    assert not Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "run").local


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write("config.yaml", "seed: 1 \u00e9\n")
    folder.write("deep/er/weights", bytes(range(256)))
    assert folder.read("config.yaml").decode() == "seed: 1 \u00e9\n"
    assert (folder / "deep" / "er").read("weights") == bytes(range(256))
    assert folder.size("deep/er/weights") == 256


def test_writing_again_replaces(folder: Folder) -> None:
    folder.write("history.csv", "a longer first text")
    folder.write("history.csv", "short")
    assert folder.read("history.csv") == b"short"
    assert folder.entries() == ["history.csv"]


def test_json_is_sorted_and_comes_back(folder: Folder) -> None:
    content = {"b": [1, 2.5, None], "a": {"d": "\u00e9", "c": True}}
    folder.write_json("state.json", content)
    assert folder.read_json("state.json") == content
    text = folder.read("state.json").decode()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder.at(tmp_path)
    folder.write("state.json", "old")

    def killed(self: Path, target: str) -> None:
        assert Path(target).read_text() == "old"
        assert self.read_text() == "new"
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write("state.json", "new")
    monkeypatch.undo()
    assert folder.read("state.json") == b"old"
    folder.write("state.json", "new")
    assert folder.read("state.json") == b"new"
    assert folder.entries() == ["state.json"]


def test_entries_are_the_names_directly_below(folder: Folder) -> None:
    assert folder.entries() == []
    for name in ("b/c/1", "a", "b/2"):
        folder.write(name, "x")
    assert folder.entries() == ["a", "b"]
    assert (folder / "b").entries() == ["2", "c"]
    assert (folder / "none").entries() == []


def test_files_are_found_at_any_depth(folder: Folder) -> None:
    assert folder.files(".parquet") == []
    for name in ("b/c/1.parquet", "a.parquet", "b/2.json"):
        folder.write(name, "x")
    paths = folder.files(".parquet")
    assert [path.removeprefix(folder.path + "/") for path in paths] == ["a.parquet", "b/c/1.parquet"]
    with folder.filesystem.open_input_stream(paths[1]) as stream:
        assert stream.read() == b"x"
    assert len(folder.files()) == 3


def test_what_is_not_there(folder: Folder) -> None:
    assert not folder.exists()
    assert not folder.exists("state.json")
    assert folder.size("state.json") == -1
    with pytest.raises(FileNotFoundError):
        folder.read("state.json")
    folder.write("a/b", "x")
    assert folder.exists()
    assert folder.exists("a")
    assert folder.exists("a/b")
    assert folder.size("a") == -1


def test_a_folder_that_goes_while_it_is_read_is_listed_anew(tmp_path: Path) -> None:
    class Changing:
        def __init__(self, failures: int) -> None:
            self.failures = failures

        def get_file_info(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
            if self.failures:
                self.failures -= 1
                raise FileNotFoundError(2, "Cannot list directory")
            return fs.LocalFileSystem().get_file_info(selector)

    (tmp_path / "a").write_text("")
    assert Folder(Changing(2), str(tmp_path)).entries() == ["a"]
    assert Folder(Changing(2), str(tmp_path)).files() == [f"{tmp_path}/a"]
    with pytest.raises(FileNotFoundError):
        Folder(Changing(99), str(tmp_path)).entries()


def test_deleting_a_file_a_folder_and_nothing(folder: Folder) -> None:
    for name in ("a/1", "a/2", "b"):
        folder.write(name, "x")
    folder.delete("b")
    assert folder.entries() == ["a"]
    (folder / "a").delete()
    assert folder.entries() == []
    folder.delete("b")
    (folder / "a").delete()


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder.at("runs/x").path == str(tmp_path / "runs/x")
    assert Folder.at("~/x").path == str(tmp_path / "x")
    assert Folder.at(f"file://{tmp_path}/a%20b").path in (f"{tmp_path}/a b", f"{tmp_path}/a%20b")
    assert Folder.at(f"file://{tmp_path}/x/").path == f"{tmp_path}/x"
    assert (Folder.at("runs") / "x").name == "x"


@pytest.mark.parametrize("uri", ["ftp://host/x", "nonsense://x", "file://host", "~nobody-of-this-name/x", "a\0b"])
def test_what_cannot_be_reached_is_a_persons_mistake(uri: str) -> None:
    with pytest.raises(UserError, match=r"is not a folder that can be reached.*give a path or a URI"):
        Folder.at(uri)
