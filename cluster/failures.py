"""Why work was not done: the closed set of failure codes that messages and data frames carry."""

from __future__ import annotations

from enum import StrEnum


class FailureCode(StrEnum):
    """A stable code for programs, which a sentence for people accompanies.

    A code that this version does not know is decoded as `UNKNOWN`.
    """

    # requests in general
    BUSY = "busy"
    CONFLICT = "conflict"
    FORBIDDEN = "forbidden"
    INTERNAL = "internal"
    NOT_SERVED = "not_served"
    TIMEOUT = "timeout"
    UNDELIVERABLE = "undeliverable"
    UNEXPECTED = "unexpected"
    UNKNOWN = "unknown"
    UNSENDABLE = "unsendable"
    UNSUPPORTED = "unsupported"
    # joining and membership
    BAD_ENDPOINT = "bad_endpoint"
    DUPLICATE = "duplicate"
    FULL = "full"
    NO_KEY = "no_key"
    NOT_ROTATED = "not_rotated"
    REVOKED = "revoked"
    SELF = "self"
    SILENT = "silent"
    STANDALONE = "standalone"
    UNAPPROVED = "unapproved"
    UNKNOWN_NODE = "unknown_node"
    VERSION = "version"
    WRONG_CODE = "wrong_code"
    # placing and loading a model
    DOWNLOAD_FAILED = "download_failed"
    INSUFFICIENT_MEMORY = "insufficient_memory"
    LOAD_FAILED = "load_failed"
    MODEL_NOT_FOUND = "model_not_found"
    NO_ENGINE = "no_engine"
    NO_MEMBER = "no_member"
    NOT_IN_PARTS = "not_in_parts"
    UNREACHABLE = "unreachable"
    WRONG_CARD = "wrong_card"
    # sessions
    ENGINE = "engine"
    FRAMES = "frames"
    NODE_LOST = "node_lost"
    PREFIX_LOST = "prefix_lost"
    QUEUE_FULL = "queue_full"
    REPLACED = "replaced"
    SESSION_LOST = "session_lost"
    STAGE_FAILED = "stage_failed"
    TOKEN_LOST = "token_lost"  # noqa: S105 - not a password
    TOO_LARGE = "too_large"

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed if it is sent again, now or a moment later."""
        return self in _RETRYABLE

    @property
    def transient(self) -> bool:
        """Whether the reason usually passes within seconds: a node heals itself, or one frame was lost.

        A gateway sends such a request again by itself.
        """
        return self in _TRANSIENT

    @classmethod
    def _missing_(cls, value: object) -> FailureCode:
        return cls.UNKNOWN


_RETRYABLE = frozenset(
    {
        FailureCode.BUSY,
        FailureCode.DOWNLOAD_FAILED,
        FailureCode.ENGINE,
        FailureCode.FRAMES,
        FailureCode.LOAD_FAILED,
        FailureCode.NO_MEMBER,
        FailureCode.NODE_LOST,
        FailureCode.NOT_SERVED,
        FailureCode.PREFIX_LOST,
        FailureCode.QUEUE_FULL,
        FailureCode.REPLACED,
        FailureCode.SESSION_LOST,
        FailureCode.SILENT,
        FailureCode.STAGE_FAILED,
        FailureCode.TIMEOUT,
        FailureCode.TOKEN_LOST,
        FailureCode.UNDELIVERABLE,
        FailureCode.UNREACHABLE,
    }
)

_TRANSIENT = frozenset(
    {
        FailureCode.FRAMES,
        FailureCode.NODE_LOST,
        FailureCode.PREFIX_LOST,
        FailureCode.REPLACED,
        FailureCode.SESSION_LOST,
        FailureCode.STAGE_FAILED,
        FailureCode.TOKEN_LOST,
        FailureCode.UNDELIVERABLE,
        FailureCode.UNREACHABLE,
    }
)
