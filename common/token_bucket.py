"""How often somebody may do something: a token bucket for each. Pure; the clock is handed in."""

from __future__ import annotations


class TokenBuckets:
    """At most `rate` a second for each key, and as many at once; for at most `most` keys at a time."""

    def __init__(self, rate: float, most: int) -> None:
        self._rate = rate
        self._most = most
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when that was

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, key: str, now: float) -> bool:
        """Whether this one may, which costs it a token. A new key may not while all places are taken."""
        if key not in self._buckets and not self._has_room(now):
            return False
        tokens, since = self._buckets.get(key, (self._rate, now))
        tokens = min(self._rate, tokens + (now - since) * self._rate)
        self._buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1

    def _has_room(self, now: float) -> bool:
        """Whoever was silent for a second has a full bucket again, and is as good as unknown."""
        if len(self._buckets) >= self._most:
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket[1] < 1}
        return len(self._buckets) < self._most
