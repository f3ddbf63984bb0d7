"""The way through: request → fetch → untie → trace → validate → publish → manifest."""

from __future__ import annotations

from typing import Any

from flows.engine.record import Conversion, await_device, keep_refused, record, reuse
from flows.engine.remembering import remembering
from tasks.backends.registry import find_backend
from tasks.fetch.checkpoint import fetch, fetch_description, resolve
from tasks.model.preflight import inspect
from tasks.publish.alias import record_alias
from tasks.publish.conversion import publish, validation_of
from tasks.publish.files import collect_files, describe_files
from tasks.publish.find import CANDIDATE_CHANNEL, find_candidate, find_published
from tasks.publish.guard import refuse_publishing
from tasks.publish.schema_limit import read_limit, refuse_name
from tasks.request.candidate import read_candidate
from tasks.request.conversion import ConversionRequest
from tasks.request.identify import complete, identify, make_job, refuse_early
from tasks.steps import Steps
from tracefleet.manifest import Manifest
from tracefleet.store import open_writable


def convert(
    request: ConversionRequest, steps: Steps | None = None, given: Manifest | None = None
) -> Conversion:
    """Carry out one request, or find that it was; ``given`` is a candidate that is to be proved."""
    with steps or Steps(limits=request.limits) as steps:
        backend, store = find_backend(request.backend), open_writable(request.store)
        source = steps.here("resolve", resolve, request.source, **request.permissions)
        request = complete(request, source, steps)
        refuse_publishing(store, request.channel)
        schema = read_limit(store)
        refuse_name(store, schema, request.publish_as)
        identity = identify(request, source, backend.toolchain(), given, schema=schema)  # -> key
        if published := find_published(store, source.source, identity.key):
            record_alias(store, source)
            return reuse(store, published, request.channel, request.publish_as)  # no weights read
        candidate = given or find_candidate(store, source.source, identity.key)
        if candidate and not steps.child("device", backend.has_device):
            return await_device(
                store, candidate, required=given is not None, name=request.publish_as
            )
        with remembering(store, request, source, identity), keep_refused(store, identity, steps):
            described = steps.here("describe", fetch_description, source)
            refuse_early(described, request)
            known = (described, request.load_options, request.known_lengths)
            facts = steps.child("inspect", inspect, *known)
            checkpoint = steps.here("fetch", fetch, source)  # every byte verified
            place = (checkpoint.folder, facts, steps.work)
            job = make_job(request, *place, store, candidate, identity)
            proved = backend.prove(job, steps)  # untie, trace, validate
        if source.is_local:
            steps.here("confirm", fetch, source)  # it is read in place: did anybody write to it?
        made = (proved.traced, proved.inputs, checkpoint.folder, steps.work)
        files = collect_files(*made, request.known_lengths, proved.samples)
        entries = describe_files(files, proved.traced.files)
        verdict = validation_of(proved.report, request.tolerance)
        found = (proved.traced, proved.inputs, entries, verdict)
        manifest = identity.manifest(checkpoint, *found, text=proved.samples.text)
        channel = request.channel if proved.report else CANDIDATE_CHANNEL
        files |= proved.golden
        name = request.publish_as
        publication = steps.publish(publish, store, manifest, files, channel=channel, name=name)
        record_alias(store, source)
        return record(request, store, manifest, publication, proved, steps)


def validate(conversion: str, steps: Steps | None = None, **more: Any) -> Conversion:
    """Prove the candidate at a URL on this host's device; for ``more`` see `read_candidate`."""
    candidate, request = read_candidate(conversion, **more)
    store = open_writable(request.store)
    if published := find_published(store, candidate.source, candidate.key):
        return reuse(store, published, request.channel, request.publish_as)
    return convert(request, steps, candidate)
