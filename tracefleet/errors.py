"""Every error a consumer of artifacts can meet.

    ArtifactError
    ├── ManifestError         a manifest that is missing, malformed, edited, or not of this schema
    ├── NoSuchVariantError    nothing published under that source, variant or channel
    ├── WithdrawnError        what the channel points to was withdrawn after it was published
    ├── DigestMismatchError   bytes whose digest is not the one in the manifest or the channel
    ├── InputTooLongError     more tokens than the largest standard length
    ├── TextRefusedError      texts for a conversion that takes ids, or has no answers
    ├── AnswerTooLongError    more new tokens were asked for than the largest standard length
    ├── NoGenerationError     a conversion that does not generate; the message has the reason
    ├── NoSamplesError        a conversion without golden samples can't be checked with them
    ├── NoFormError           a conversion that another form, such as Triton's, can't carry
    ├── BenchError            a comparison that was asked for and can't be made here
    └── StoreError            a store that can't be opened, read or written
        └── StoreUnavailableError   transient: network, capacity, another writer

Each message says what happened, what was expected, what was got and what to do next.
"""


class ArtifactError(Exception):
    """Base of every error on the consumer's side of the contract."""


class ManifestError(ArtifactError):
    """A manifest can't be trusted: malformed, wrong schema, unsafe path."""


class NoSuchVariantError(ArtifactError):
    """No conversion is published under the requested source, variant and channel."""


class WithdrawnError(ArtifactError):
    """The conversion that a channel points to was withdrawn: found wrong after it was published.

    Attributes:
        reason: why, as it was written when it was withdrawn.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        self.reason = reason
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the reason when the error crosses a process boundary."""
        return _withdrawn, (str(self), self.reason)


def _withdrawn(message: str, reason: str) -> WithdrawnError:
    return WithdrawnError(message, reason=reason)


class DigestMismatchError(ArtifactError):
    """Bytes don't have the digest that the manifest or the channel entry states.

    Attributes:
        path: path of the file, relative to the store's root, or its URL.
        expected: sha256 in the manifest or the channel entry.
        got: sha256 of the bytes that were read.
    """

    def __init__(self, path: str, *, expected: str, got: str) -> None:
        self.path, self.expected, self.got = path, expected, got
        super().__init__(
            f"{path}: sha256 expected {expected}, got {got}. The file is damaged or was edited; "
            "nothing was loaded. Restore it from a copy, or convert the checkpoint again."
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword-only digests when the error crosses a process boundary."""
        return _digest_mismatch, (self.path, self.expected, self.got)


def _digest_mismatch(path: str, expected: str, got: str) -> DigestMismatchError:
    return DigestMismatchError(path, expected=expected, got=got)


class InputTooLongError(ArtifactError, ValueError):
    """An input has more tokens than the largest standard length of the conversion."""


class TextRefusedError(ArtifactError, ValueError):
    """A conversion can't take texts, or has no answers to give; ids still work."""


class AnswerTooLongError(ArtifactError, ValueError):
    """An answer may have at most as many new tokens as the largest standard length."""


class NoGenerationError(ArtifactError):
    """A conversion has no ``generate``: another task, or none that was proved."""


class NoSamplesError(ArtifactError):
    """A conversion was published without golden samples, so that there is nothing to check."""


class NoFormError(ArtifactError):
    """A conversion can't be given the form that was asked for; the message has the reason."""


class BenchError(ArtifactError, ValueError):
    """A comparison can't be made as it was asked for: unknown peer, no texts, no such folder."""


class StoreError(ArtifactError):
    """The store can't be used: bad URL, unreadable, not writable, full."""


class StoreUnavailableError(StoreError):
    """The store doesn't answer now, or another writer is at the same path.

    It is raised after the client library's own retries. It is the only error of this tree for which
    a retry later makes sense.
    """


class BackendUnavailableError(ArtifactError):
    """This machine lacks what a conversion needs to run: a package, a version or a device."""
