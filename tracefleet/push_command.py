"""``tracefleet push``: publish a copy of a conversion on the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys

from tracefleet.hub.push import Plan, plan_push, push
from tracefleet.hub.repository import SCHEME, check_repository
from tracefleet.printing import format_count, format_size, print_json
from tracefleet.selecting import select_one
from tracefleet.spelling import option

EPILOG = """\
The repository becomes a store of its own: what the channel points to, its files, and a model card
(README.md) made of the manifest. It is made if it is not there. A repeat commits nothing; a newer
conversion is added beside the older one. A card without the line that names this command is left
as it is. Digests are compared before and after the upload.

The token is the one of huggingface_hub: HF_TOKEN, or what `hf auth login` has saved. HF_ENDPOINT
names another hub. Readers download the repository: hf download org/name --local-dir ./model

exit codes: 0 done, or nothing to do; 1 an error (see standard error); 2 wrong usage.

examples:
  tracefleet push ./store support hf://org/support --private
  tracefleet push s3://bucket/models org/name hf://org/name-jit --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser, source: str) -> None:
    """Add what ``push`` takes beside STORE; ``source`` says what a SOURCE is."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help=source)
    kind = option(check_repository, "REPOSITORY")
    add("repository", metavar="REPOSITORY", type=kind, help="hf://org/name")
    add("--private", action="store_true", help="one that only its owners see (default: the hub's)")
    add(
        "--dry-run",
        action="store_true",
        help="print what would be done and the card; write nothing",
    )
    text = "add to a repository with files that no push wrote; none of them is changed"
    add("--into-others", action="store_true", help=text)


def push_command(arguments: argparse.Namespace) -> int:
    """Publish a copy, or print what would be published."""
    store, selection = select_one(arguments)
    repository = arguments.repository.removeprefix(SCHEME)
    asked = {"private": arguments.private, "into_others": arguments.into_others}
    if arguments.dry_run:
        plan, commit = plan_push(store, selection, repository, **asked), None
    else:
        plan, commit = push(store, selection, repository, **asked)
    _warn(plan)
    if arguments.json:
        print_json(_describe(plan, repository, commit))
    else:
        _print(plan, repository, commit, dry_run=arguments.dry_run)
    return 0


def _warn(plan: Plan) -> None:
    source = plan.single.manifest.source
    if not source.startswith("hf://"):
        print(
            f"push: whoever sees the repository sees the source in its manifest: {source}",
            file=sys.stderr,
        )
    if plan.single.manifest.license is None:
        print("push: the checkpoint declares no license, and so does the card", file=sys.stderr)


def _describe(plan: Plan, repository: str, commit: str | None) -> dict[str, object]:
    return {
        "repository": f"hf://{repository}",
        "key": plan.single.manifest.key,
        "created": plan.before is None,
        "commit": commit,
        "added": list(plan.missing),
    }


def _print(plan: Plan, repository: str, commit: str | None, *, dry_run: bool) -> None:
    where, count = f"hf://{repository}", format_count(len(plan.missing), "file")
    if not plan.missing:
        there = plan.before.commit if plan.before is not None else ""
        print(f"{where}: all of it is there, at commit {there}")
    elif not dry_run:
        print(f"{where}: {count} in commit {commit}")
    else:
        state = "would be made" if plan.before is None else f"is at commit {plan.before.commit}"
        print(f"{where}: {state}; {count} would be committed:")
        for path in plan.missing:
            print(f"  {path}{_tell_size(plan, path)}")
        print(plan.card.decode())


def _tell_size(plan: Plan, path: str) -> str:
    file = plan.single.files.get(path)
    return "" if file is None else f"  {format_size(file.size)}"
