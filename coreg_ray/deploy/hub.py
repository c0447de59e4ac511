"""The Hugging Face Hub (extra `hub`): a trained model is put there, and `hf://ORG/NAME[@REVISION]` is read from there.

A push looks first whether everything is in order (name, login, network, who may see the repository), and sends one
commit then, so that a repository holds a whole model or the one before. Reading takes the files it needs from the Hub's
own cache, which serves without a network too.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from coreg_ray.errors import UserError
from coreg_ray.run.storage import Folder
from coreg_ray.run.uris import without_credentials

log = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
_URI = re.compile(r"hf:/{1,2}(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,94}[A-Za-z0-9]|[A-Za-z0-9]")  # of an owner or a repository


def is_on_hub(place: str | Path) -> bool:
    """Whether a place is named as one on the Hub."""
    return str(place).startswith("hf:/")


def fetched(place: str | Path, names: tuple[str, ...]) -> Folder:
    """A local folder of the Hub's cache with these files of a repository, all of one commit.

    Args:
        place: `hf://ORG/NAME`, with `@` and a branch, tag or commit behind it where another than the newest is meant.
        names: of the files.

    Raises:
        UserError: the name is none, `huggingface_hub` is not installed, the repository, revision or a file is not
            there, or the Hub cannot be reached and its cache lacks a file.
    """
    named = _URI.fullmatch(str(place))
    if named is None:
        raise UserError(f"{place} names no model on the Hub; write hf://ORG/NAME or hf://ORG/NAME@REVISION")
    hub = _hub()
    revision, folder = named["revision"], None
    with _explained(f"hf://{named['name']}{f'@{revision}' if revision else ''}"):
        for name in names:
            path = Path(hub.hf_hub_download(named["name"], name, revision=revision, endpoint=_endpoint()))
            folder, revision = path.parent, path.parent.name  # of the commit: the rest comes from there too
    return Folder.at(folder or "")


@dataclass(frozen=True)
class Repository:
    """A repository that may be pushed to, looked at before anything is sent.

    Attributes:
        name: ORG/NAME. private: who may see it afterwards. there: whether it exists, and which files it has then.
    """

    name: str
    kind: Kind
    private: bool
    there: frozenset[str] | None

    @property
    def address(self) -> str:
        """Of its page."""
        return f"{_api().endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def push(self, files: Mapping[str, bytes | Path], message: str, stale: tuple[str, ...] = ()) -> str:
        """Make the repository where there is none, and send the files in one commit; returns the commit.

        Args:
            stale: names of files that go where they are there and no more among `files`.

        Raises:
            UserError: the Hub does not take them, or cannot be reached.
        """
        hub, api = _hub(), _api()
        sent = [
            hub.CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in files.items()
        ]
        gone = [name for name in stale if name in (self.there or ()) and name not in files]
        with _explained(self.name, pushes=True):
            if self.there is None:
                api.create_repo(self.name, repo_type=self.kind, private=self.private)
            done = api.create_commit(
                self.name,
                [*sent, *(hub.CommitOperationDelete(name) for name in gone)],
                commit_message=message,
                repo_type=self.kind,
            )
        return str(done.oid)


def repository(name: str, kind: Kind, private: bool) -> Repository:
    """The repository that is to be pushed to; sends nothing.

    Raises:
        UserError: the name is none, nobody is logged in, the Hub cannot be reached, or the repository is public already
            while a private one is wanted.
    """
    owner, slash, last = name.partition("/")
    if not slash or not (_NAME.fullmatch(owner) and _NAME.fullmatch(last)):
        raise UserError(
            f"{name} is no name of a repository; write ORG/NAME, with letters, digits and single - _ . in each"
        )
    hub, api = _hub(), _api()
    if hub.get_token() is None:
        raise UserError("nobody is logged in to the Hub; give `hf auth login`, or set HF_TOKEN to one that may write")
    with _explained(name, pushes=True):
        api.whoami()
        try:
            info = api.repo_info(name, repo_type=kind)
        except hub.errors.RepositoryNotFoundError:
            return Repository(name, kind, private, None)
    if private and not info.private:
        raise UserError(
            f"{name} is there and public, so everybody would see what is pushed; give --private false if they may, or "
            "another name"
        )
    if info.private and not private:
        log.warning("%s is there and private, and stays so; its settings on the Hub make it public", name)
    return Repository(name, kind, bool(info.private), frozenset(file.rfilename for file in info.siblings or ()))


def for_others(card: dict[str, Any]) -> dict[str, Any]:
    """`model.json` without folders of this machine: of absolute paths in the settings only the last part is left."""
    origin = card.get("provenance") or {}
    return {**card, "provenance": {**origin, "configuration": _short(origin.get("configuration", {}))}}


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _short(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_short(entry) for entry in value]
    local = isinstance(value, str) and value.startswith(("/", "~", "file://"))
    return PurePath(value).name if local else value


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(f'the Hub needs huggingface_hub ({error}); pip install "coreg-ray[hub]"') from error
    return huggingface_hub


def _endpoint() -> str | None:
    """Another Hub than huggingface.co, named as huggingface_hub has it."""
    return os.environ.get("HF_ENDPOINT") or None


def _api() -> Any:
    from coreg_ray import __version__

    return _hub().HfApi(endpoint=_endpoint(), library_name="coreg-ray", library_version=__version__)


@contextmanager
def _explained(name: str, pushes: bool = False) -> Iterator[None]:
    """What the Hub or the way to it refuses, as UserError with the remedy."""
    errors = _hub().errors
    try:
        yield
    except UserError:
        raise
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: there is no such branch, tag or commit; give another behind the @") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{name} is gated; ask for access on its page, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"{name} is no repository that can be seen; look at the name, and `hf auth login` where it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} cannot be fetched, and is not whole in the Hub's cache ({_reason(error)}); try again with a "
            "network, or copy its files and give their folder"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name} lacks a file that a model of coreg-ray has ({_reason(error)})") from error
    except Exception as error:  # what httpx, requests and sockets raise, by the version of huggingface_hub
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            may, remedy = (
                "write there" if pushes else "read it",
                "give a token that may, by `hf auth login` or HF_TOKEN",
            )
            raise UserError(f"{name}: the Hub does not let this login {may} (status {status}); {remedy}") from error
        if status is not None:
            raise UserError(f"{name}: the Hub answers {_reason(error)}; try again later") from error
        if isinstance(error, ValueError | TypeError | KeyError | AttributeError):
            raise UserError(f"{name}: the Hub refuses it ({_reason(error)})") from error
        raise UserError(f"the Hub cannot be reached ({_reason(error)}); what was there is as it was") from error


def _reason(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return str(without_credentials(text))[:200]
