"""How often somebody may try to log in.

Failures are counted for the source and for the account: one source cannot try many passwords, and
many sources cannot try them on one account. An account is never locked: whoever knows the password
waits half a minute at the most.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from hyperlog.limits import TokenBucket

__all__ = ["LoginThrottle"]

SOURCE_FAILURES: Final = 10  # at once
SOURCE_RATE: Final = 1 / 10  # per second after that
ACCOUNT_FAILURES: Final = 20
ACCOUNT_RATE: Final = 1 / 30
MAX_REMEMBERED: Final = 10_000  # sources, and accounts; those that failed longest ago are forgotten


class LoginThrottle:
    """For one server. Times are seconds of a clock that only goes forward."""

    def __init__(self) -> None:
        self.refused = 0
        self._sources: OrderedDict[str, TokenBucket] = OrderedDict()
        self._accounts: OrderedDict[str, TokenBucket] = OrderedDict()

    def refuses(self, source: str, account: str, now: float) -> float | None:
        """Seconds until an attempt is allowed; None if it is now."""
        waits = [
            bucket.spend(0.0, now) if bucket.level < 0 else 0.0
            for bucket in (self._sources.get(source), self._accounts.get(account))
            if bucket is not None
        ]
        wait = max(waits, default=0.0)
        if wait <= 0:
            return None
        self.refused += 1
        return wait

    def failed(self, source: str, account: str, now: float) -> None:
        """A password was wrong, or is being checked: take it back by `succeeded`."""
        _count(self._sources, source, SOURCE_RATE, SOURCE_FAILURES, now)
        _count(self._accounts, account, ACCOUNT_RATE, ACCOUNT_FAILURES, now)

    def succeeded(self, source: str, account: str) -> None:
        """The password was right: the attempt does not count."""
        for buckets, name in ((self._sources, source), (self._accounts, account)):
            bucket = buckets.get(name)
            if bucket is not None:
                bucket.level = min(bucket.level + 1, bucket.burst)


def _count(
    buckets: OrderedDict[str, TokenBucket], name: str, rate: float, failures: int, now: float
) -> None:
    bucket = buckets.pop(name, None)
    if bucket is None:
        # Below nothing one has to wait: the failure that uses up the last one is still free.
        bucket = TokenBucket.full(rate, failures - 1, now)
    buckets[name] = bucket
    bucket.spend(1.0, now)
    if len(buckets) > MAX_REMEMBERED:
        buckets.popitem(last=False)
