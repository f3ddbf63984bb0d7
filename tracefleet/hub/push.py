"""Publish a copy of a conversion in a repository of the hub, by one commit.

The repository is a store like the one that the conversion comes from, with a model card: what is
downloaded of it can be opened. Files never change there, as in every store.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracefleet.errors import NoFormError, StoreError
from tracefleet.hub.card import MARK, write_card
from tracefleet.hub.repository import CARD, Contents, explaining, make_api, read_contents
from tracefleet.manifest_types import FileEntry
from tracefleet.published import Selection, explaining_missing, open_verified
from tracefleet.single import SingleStore, describe
from tracefleet.store import ReadableStore
from tracefleet.verdict_types import VALIDATED

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


_BLOCK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a push has to do.

    Attributes:
        single: the conversion's files by their paths.
        card: model card, as it is to be written.
        before: what the repository has; None: there is no such repository.
        missing: paths that it lacks, the card's too if that is to be written.
    """

    single: SingleStore
    card: bytes
    before: Contents | None
    missing: tuple[str, ...]


def plan_push(
    store: ReadableStore,
    selection: Selection,
    repository: str,
    *,
    private: bool = False,
    into_others: bool = False,
    api: HfApi | None = None,
) -> Plan:
    """Return what a push would do; nothing is written, and no file of the conversion is read.

    Args:
        store: store of the conversion.
        selection: the conversion.
        repository: ``org/name``.
        private: whether it has to be private.
        into_others: whether a repository may hold files that no push wrote.
        api: the hub's client; None: a new one.

    Raises:
        WithdrawnError: the conversion was withdrawn.
        NoFormError: no device has validated it.
        StoreError: the repository is not one of a push, is public though a private one was asked
            for, holds another file in the place of one, or can't be read.
        ImportError: ``huggingface_hub`` is not installed.
    """
    api = api or make_api()
    single = describe(store, selection)
    _check_verdict(single)
    card = write_card(selection, single.manifest, repository)
    before = read_contents(api, repository)
    if before is not None:
        _check_contents(before, repository, private=private, into_others=into_others)
        other = _find_other(store, selection, single, before)
        if other is not None:
            raise StoreError(
                f"hf://{repository}/{other}: expected none, or this store's bytes, got others: a "
                "conversion of another store was pushed there. Push to another repository."
            )
    missing = _find_missing(before, single)
    if _writes_card(api, repository, before, card):
        missing.append(CARD)
    return Plan(single=single, card=card, before=before, missing=tuple(missing))


def push(
    store: ReadableStore,
    selection: Selection,
    repository: str,
    *,
    private: bool = False,
    into_others: bool = False,
) -> tuple[Plan, str | None]:
    """Copy a conversion into a repository of the hub; its digests are checked before and after.

    The repository is made if it is not there. The arguments and errors are those of `plan_push`.

    Returns:
        What was done, and the commit; None: all of it was there.

    Raises:
        DigestMismatchError: a file in the store is damaged; nothing was uploaded.
        StoreUnavailableError: the hub does not answer, or another commit came first.
    """
    api = make_api()
    plan = plan_push(
        store, selection, repository, private=private, into_others=into_others, api=api
    )
    if not plan.missing:
        return plan, None
    with tempfile.TemporaryDirectory(prefix="tracefleet-push-") as folder:
        operations = _collect(store, selection, plan, Path(folder))
        with explaining(repository):
            commit = _commit(api, repository, plan, operations, private=private)
    _check_uploaded(store, selection, api, repository, plan.single)
    return plan, commit


def _check_verdict(single: SingleStore) -> None:
    manifest = single.manifest
    if manifest.validation.verdict != VALIDATED:
        raise NoFormError(
            f"{manifest.source}: push expected a validated conversion, got one that is "
            f"{manifest.validation.verdict}. Validate it on its device first."
        )


def _check_contents(before: Contents, repository: str, *, private: bool, into_others: bool) -> None:
    where = f"hf://{repository}"
    if private and not before.private:
        raise StoreError(
            f"{where}: expected a private repository, got a public one. Make it private in its "
            "settings, or name another one."
        )
    if before.foreign and not into_others:
        shown = ", ".join(before.foreign[:3])
        raise StoreError(
            f"{where}: expected an empty repository or one of `tracefleet push`, got one with "
            f"{len(before.foreign)} other files ({shown}). Name another one, or add to it with "
            "--into-others, which changes none of these."
        )


def _find_other(
    store: ReadableStore, selection: Selection, single: SingleStore, there: Contents
) -> str | None:
    """Return a path where the repository has other bytes than the store; None: there is none."""
    for path, data in single.small.items():
        if path in there.digests and not there.holds(path, len(data), [data]):
            return path
    for path, file in single.files.items():
        digest = there.digests.get(path, file.sha256)
        if digest == file.sha256:
            continue
        # Of a small file the hub tells git's digest, for which its bytes are needed.
        with open_verified(store, selection, file) as handle:
            if not there.holds(path, file.size, iter(lambda: handle.read(_BLOCK), b"")):
                return path
    return None


def _find_missing(before: Contents | None, single: SingleStore) -> list[str]:
    held = {} if before is None else before.digests
    return sorted(path for path in (*single.small, *single.files) if path not in held)


def _writes_card(api: HfApi, repository: str, before: Contents | None, card: bytes) -> bool:
    """Tell whether the card is to be written: none is there, or another one that push wrote."""
    if before is None or CARD not in before.digests:
        return True
    if before.holds(CARD, len(card), [card]):
        return False
    with explaining(repository):
        path = api.hf_hub_download(repository, CARD, revision=before.commit)
    return MARK.encode() in Path(path).read_bytes()


def _collect(
    store: ReadableStore, selection: Selection, plan: Plan, folder: Path
) -> list[CommitOperationAdd]:
    """Return what is added; files are copied and checked first, so that these bytes are sent."""
    from huggingface_hub import CommitOperationAdd

    small = {**plan.single.small, CARD: plan.card}
    operations = []
    for place, path in enumerate(plan.missing):
        if path in small:
            operations.append(CommitOperationAdd(path_in_repo=path, path_or_fileobj=small[path]))
            continue
        # The library's progress bar shows the file's name.
        copy = folder / str(place) / Path(path).name
        copy.parent.mkdir()
        _copy(store, selection, plan.single.files[path], copy)
        operations.append(CommitOperationAdd(path_in_repo=path, path_or_fileobj=copy))
    return operations


def _copy(store: ReadableStore, selection: Selection, file: FileEntry, copy: Path) -> None:
    with explaining_missing(store, selection, file) as path:
        store.download_to(path, copy, size=file.size, sha256=file.sha256)


def _commit(
    api: HfApi,
    repository: str,
    plan: Plan,
    operations: list[CommitOperationAdd],
    *,
    private: bool,
) -> str:
    manifest = plan.single.manifest
    if plan.before is not None:
        parent: str | None = plan.before.commit
    else:
        api.create_repo(repository, private=private or None, exist_ok=True)
        parent = api.model_info(repository).sha
    made = api.create_commit(
        repository,
        operations,
        commit_message=f"{manifest.variant.label} of {manifest.source}",
        commit_description=f"Conversion {manifest.key}, checkpoint commit {manifest.commit}.",
        parent_commit=parent,
    )
    return str(made.oid)


def _check_uploaded(
    store: ReadableStore, selection: Selection, api: HfApi, repository: str, single: SingleStore
) -> None:
    """Compare what the hub says that it has.

    Raises:
        StoreError: it has something else.
    """
    after = read_contents(api, repository)
    wrong = sorted(single.files)[0] if after is None else None
    if after is not None:
        lost = _find_missing(after, single)
        wrong = lost[0] if lost else _find_other(store, selection, single, after)
    if wrong is not None:
        raise StoreError(
            f"hf://{repository}/{wrong}: expected the bytes that were uploaded, got others. Remove "
            "the commit on the hub's page, and push again."
        )
