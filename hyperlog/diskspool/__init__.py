"""The client's spool on disk: what was accepted survives the application, also SIGKILL.

    <folder>/                     one for each application and server
        8734….lock                 locked by the process that owns the session
        8734…/                     one session
            00000000000000000000.seg   records from this number on, at most about 4 MiB
            00000000000000009841.seg
            acknowledged           the highest number that the server holds
            lost                   ranges of numbers that were given up, and why

`SpoolFolder` makes sessions, finds those that dead processes left, and keeps the whole within its
limit. `SpooledSession` is one session's records, wherever they lie.
"""

from __future__ import annotations

from hyperlog.diskspool.folder import (
    DEFAULT_MAX_SPOOL_BYTES,
    LEAST_MAX_SPOOL_BYTES,
    SpoolFolder,
)
from hyperlog.diskspool.session import SpooledSession

__all__ = ["DEFAULT_MAX_SPOOL_BYTES", "LEAST_MAX_SPOOL_BYTES", "SpoolFolder", "SpooledSession"]
