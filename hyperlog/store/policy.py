"""What a store keeps, and for how long; the log files have a policy of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperlog.errors import ConfigError

__all__ = ["BucketPolicy", "StorePolicy"]


@dataclass(frozen=True, slots=True)
class BucketPolicy:
    """What is kept of one bucket; None for everything."""

    keep_age: float | None = None
    """s since the server received a record"""
    keep_bytes: int | None = None
    """bytes of lines; a database takes up about twice that"""

    def __post_init__(self) -> None:
        _check(keep_age=self.keep_age, keep_bytes=self.keep_bytes)


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """What is kept; the oldest records go first. None for everything."""

    keep_age: float | None = None
    """s since the server received a record"""
    keep_bytes: int | None = None
    """bytes of lines in each bucket; a database takes up about twice that"""
    keep_total: int | None = None
    """bytes of lines in all buckets together"""
    buckets: Mapping[str, BucketPolicy] = field(default_factory=dict)
    """of buckets that are kept for other times and sizes"""

    def __post_init__(self) -> None:
        _check(keep_age=self.keep_age, keep_bytes=self.keep_bytes, keep_total=self.keep_total)

    def of(self, bucket: str) -> BucketPolicy:
        """What is kept of a bucket."""
        return self.buckets.get(bucket) or BucketPolicy(self.keep_age, self.keep_bytes)


def _check(**limits: float | None) -> None:
    for name, value in limits.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} is {value}: a limit is above 0")
