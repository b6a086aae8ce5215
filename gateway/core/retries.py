"""Whether a request that failed before its first token is tried again, and when. Times are passed in."""

from __future__ import annotations

from cluster.failures import FailureCode
from gateway.core.errors import GatewayError
from gateway.core.session import SessionFailed

RETRY_FOR_S = 8.0  # from the first failure on: what a node needs to start an actor or an engine again, and more
PAUSES_S = (0.1, 0.3, 0.6, 1.0)  # the last one repeats
MAX_LOSSES = 3  # of sessions with a stage that ended: the request itself may be what ends it


class Retries:
    """The tries of one request. Each failure is reported to `pause_s`."""

    def __init__(self) -> None:
        self._tries = 0
        self._losses = 0
        self._until = 0.0

    def pause_s(self, failure: SessionFailed | GatewayError, now: float) -> float | None:
        """Return the seconds to wait before the next try; None if this failure is the request's.

        That is so if its reason does not pass by itself, after RETRY_FOR_S, or after MAX_LOSSES stages that ended.
        """
        code = failure.code
        if not isinstance(code, FailureCode) or not code.transient:
            return None
        if not self._tries:
            self._until = now + RETRY_FOR_S
        pause = PAUSES_S[min(self._tries, len(PAUSES_S) - 1)]
        self._tries += 1
        self._losses += isinstance(failure, SessionFailed) and code is FailureCode.NODE_LOST
        return None if self._losses > MAX_LOSSES or now + pause > self._until else pause
