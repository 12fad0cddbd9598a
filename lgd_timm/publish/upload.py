"""Upload a published folder to the Hub: check it, send it in one commit, read it back, tag it."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from .. import settings
from ..errors import WeightsError
from ..hub.api import Snapshot, as_weights_error, client_timeout, resolve, retrying, true_cause
from ..hub.verify import FileFacts, StrPath, facts_of, wrong_files
from ..hub.weights import PUBLISHED_FILES
from ..utils.files import atomic_file
from ..utils.http import Retry, is_transient, open_session
from ..utils.typed_json import parse_json
from .check import check_folder

REFUSED = 400  # the Hub's answer to a card that is not as it should be
MOVED = 412  # and when the branch is no longer at the commit's parent


@dataclass(frozen=True)
class PushResult:
    """What `push` did."""

    commit: str | None  # None: it was a dry run
    url: str
    files: dict[str, FileFacts]  # every published file, as the manifest wants it
    sent: tuple[str, ...]  # the files of the commit, none when the Hub had all (dry run: all that could)


def push(
    folder: StrPath,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Publish a folder as `org/name`: check it, send it in one commit, read it back, tag it.

    The repository is made when it does not exist. The card that is sent names this repository. Files that it already
    has are not sent again, published files that the folder no longer has are deleted, other files are left alone.
    Interrupted anywhere, the repository is as before or as wanted, and pushing again does the rest. A tag is never
    moved.

    Args:
        folder: what `save` wrote.
        repo_id: the repository, `org/name`.
        private: make the repository private; one that is public is refused.
        token: the Hub's, by default the one that its client finds.
        tag: a tag for the commit.
        message: of the commit, by default "Publish <folder>".
        dry_run: check the folder and make no request.

    Returns:
        The commit, and the files that it took.

    Raises:
        WeightsError: the folder, the repository or the connection is not as it must be; the message says what to do.
    """
    folder, url = Path(folder), f"{constants.ENDPOINT}/{repo_id}"
    files = check_folder(folder)
    if dry_run:
        return PushResult(None, url, files, sent=tuple(files))
    if settings.offline():
        raise WeightsError(f"{repo_id}: HF_HUB_OFFLINE is set, so nothing can be sent. Unset it.")
    with client_timeout(settings.hub_timeout()), _named(folder, repo_id, files) as named:
        files["README.md"] = facts_of(named / "README.md")
        return _send(
            named, repo_id, files, private=private, token=token, tag=tag, message=message or f"Publish {folder.name}"
        )


def name_in_card(folder: StrPath, repo_id: str) -> None:
    """Write a repository's name into the folder's own card, which was made before the repository was known."""
    card = Path(folder) / "README.md"
    text = _card(card, repo_id)
    if text != card.read_text(encoding="utf-8"):
        with atomic_file(card) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _card(card: Path, repo_id: str) -> str:
    from .card import retarget  # it knows recipes, and so all the rest: `import lgd_timm` stays light

    return retarget(card.read_text(encoding="utf-8"), repo_id)


@contextmanager
def _named(folder: Path, repo_id: str, files: Iterable[str]) -> Iterator[Path]:
    """Yield a temporary folder of the same files, whose card names the repository; the user's own is not changed."""
    with tempfile.TemporaryDirectory() as temporary:
        named = Path(temporary)
        for name in files:
            (named / name).parent.mkdir(exist_ok=True)
            _link((folder / name).resolve(), named / name)
        (named / "README.md").unlink()
        (named / "README.md").write_text(_card(folder / "README.md", repo_id), encoding="utf-8")
        yield named


def _link(path: Path, target: Path) -> None:
    try:
        target.symlink_to(path)
    except OSError:  # Windows, without the right to
        shutil.copyfile(path, target)


def _send(
    folder: Path,
    repo_id: str,
    files: dict[str, FileFacts],
    *,
    private: bool,
    token: str | None,
    tag: str | None,
    message: str,
) -> PushResult:
    api, url = HfApi(token=token), f"{constants.ENDPOINT}/{repo_id}"
    with as_weights_error(repo_id, None, remedy=""):
        _validate_card(folder / "README.md", token)
        retrying(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    tagged = _tagged(api, repo_id, tag)
    before = resolve(repo_id, None, token)
    if private and not before.private:
        raise WeightsError(f"{repo_id} exists and is public. Nothing was sent. Make it private at {url}/settings.")
    commit, sent, stale = before.commit, _changed(folder, files, before), _stale(files, before)
    if tagged and (sent or stale or tagged != commit):
        raise WeightsError(f"{repo_id}: the tag {tag!r} is at {tagged}, other weights. Give another tag.")
    if sent or stale:
        with as_weights_error(repo_id, None, remedy=""):
            commit = _commit(api, folder, files, before, token=token, message=message)
    if wrong := _changed(folder, files, resolve(repo_id, commit, token)):
        raise WeightsError(
            f"{repo_id} at {commit}, read back, has another {', '.join(wrong)} than was sent. It was not tagged. "
            "Did the folder change meanwhile? Push again."
        )
    if tag and not tagged:
        with as_weights_error(repo_id, commit, remedy=""):
            # exist_ok: a try before may have set it, and its answer was lost
            retrying(lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True))
        if (tagged := _tagged(api, repo_id, tag)) != commit:
            raise WeightsError(
                f"{repo_id}: somebody else set the tag {tag!r} meanwhile, at {tagged}. {commit} is on main. "
                "Give another tag."
            )
    return PushResult(commit, f"{url}/tree/{commit}", files, sent)


def _tagged(api: HfApi, repo_id: str, tag: str | None) -> str | None:
    """Return the commit of a tag; None where there is no such tag."""
    with as_weights_error(repo_id, None, remedy=""):
        tags = retrying(lambda: api.list_repo_refs(repo_id)).tags
    return next((ref.target_commit for ref in tags if ref.name == tag), None)


class _Validation(TypedDict, total=False):
    errors: list[dict[str, Any]]


def _validate_card(card: Path, token: str | None) -> None:
    """Let the Hub check the card's front matter. Raises: WeightsError with its words."""
    body = {"repoType": "model", "content": card.read_text(encoding="utf-8")}
    headers = build_hf_headers(token=token, library_name="lgd_timm")

    def ask() -> Any:
        answer = open_session().post(f"{constants.ENDPOINT}/api/validate-yaml", json=body, headers=headers)
        if answer.status_code != REFUSED:
            hf_raise_for_status(answer)
        return parse_json(answer.content, _Validation)

    if errors := [str(error.get("message", error)) for error in retrying(ask).get("errors", [])]:
        raise WeightsError(
            f"{card}: the Hub refuses its front matter: {'; '.join(errors)}. Correct it, and push again."
        )


def _changed(folder: Path, files: Mapping[str, FileFacts], there: Snapshot) -> tuple[str, ...]:
    """List files of the folder that the Hub, by its own hashes, does not have."""
    return tuple(n for n in files if n not in there.files or wrong_files(folder, {n: there.files[n]}))


def _stale(files: Mapping[str, FileFacts], there: Snapshot) -> tuple[str, ...]:
    """List published files that the Hub has and the folder no longer."""
    return tuple(name for name in PUBLISHED_FILES if name in there.files and name not in files)


def _commit(
    api: HfApi, folder: Path, files: Mapping[str, FileFacts], before: Snapshot, *, token: str | None, message: str
) -> str:
    """Send all that differs in one commit on top of `before`, and return the commit.

    The Hub's answer can be lost after the commit was made, so the repository is read again before another try.
    """
    retry = Retry(2 * settings.push_timeout())  # so that a try which takes all its time is not the last
    while True:
        try:
            with client_timeout(settings.push_timeout()):
                return _commit_once(api, folder, files, before, message)
        except (HTTPError, OSError, RuntimeError) as error:
            cause = true_cause(error)
            if not is_transient(cause) and _status(cause) != MOVED:
                raise
            now = resolve(before.repo_id, None, token)
            if not _changed(folder, files, now) and not _stale(files, now):
                return now.commit
            if not retry.wait(cause):
                raise


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _commit_once(api: HfApi, folder: Path, files: Mapping[str, FileFacts], before: Snapshot, message: str) -> str:
    """Make one commit. Files are passed open: of paths the client uploads through Xet, which can hang for minutes."""
    with ExitStack() as stack:
        stack.enter_context(_unsaid("Falling back to HTTP upload"))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=stack.enter_context((folder / name).open("rb")))
            for name in _changed(folder, files, before)
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in _stale(files, before)]
        return api.create_commit(before.repo_id, operations, commit_message=message, parent_commit=before.commit).oid


@contextmanager
def _unsaid(words: str) -> Iterator[None]:
    """Suppress a warning of the client's that speaks of what is wanted here."""

    def others(record: logging.LogRecord) -> bool:
        return words not in record.getMessage()

    logger = logging.getLogger("huggingface_hub._commit_api")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
