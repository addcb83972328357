"""Where records can be searched: an embedded store, or MongoDB; both answer alike.

Stores are not written by those who receive records. They follow the log files, each from a position
of its own that it keeps together with what it holds. So ingest never waits for a store, a store
that was away catches up by itself, and one that is lost is made again from the files.

    log files --follow--> lines --records--> StoredRecord --insert--> embedded | mongo
                                                     query --compile--> embedded | mongo --> Page
"""
