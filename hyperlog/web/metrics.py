"""The server's counts in the text format of Prometheus.

Who asks from this machine, and not by way of a proxy, needs no token; everybody else one that can
read everything. Labels have few values: names of applications and instances are none of them, but
for `trace_counter`, whose series are bounded.

Spec: Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeAlias

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from hyperlog.errors import TokenError
from hyperlog.limits import LimitStatistics
from hyperlog.store.answers import StoreStatistics
from hyperlog.tokens import EVERY_APPLICATION
from hyperlog.web.auth import bearer_token, claims_of, token_problem
from hyperlog.web.endpoint import Answer, Endpoint, arguments_of
from hyperlog.web.linecount import TRACE_LABELS
from hyperlog.web.service import Service
from hyperlog.web.state import Shared, shared_of

__all__ = ["ENDPOINTS", "exposition"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
PROXY_HEADERS: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")
STARTED_AT: Final = time.time()

Labels: TypeAlias = Mapping[str, str]
Sample: TypeAlias = tuple[Labels, float]
Metric: TypeAlias = tuple[str, str, str, Iterable[Sample]]
"""name, type, what it is, samples"""

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


async def get_metrics(request: Request) -> Response:
    arguments_of(request, ())
    _check_reader(request)
    text = exposition(shared_of(request))
    return Response(text, media_type=None, headers={"Content-Type": CONTENT_TYPE})


def _check_reader(request: HTTPConnection) -> None:
    if bearer_token(request) is None and _is_local(request):
        return
    if claims_of(request, "read").application != EVERY_APPLICATION:
        raise token_problem(
            TokenError("TOKEN_MISMATCH", "metrics are of all applications: issue a token for '*'")
        )


def _is_local(request: HTTPConnection) -> bool:
    if request.client is None or any(name in request.headers for name in PROXY_HEADERS):
        return False
    return ip_address(request.client.host.partition("%")[0]).is_loopback


# -- the text


def exposition(shared: Shared) -> str:
    """All metrics."""
    parts: list[str] = []
    for name, kind, text, samples in _metrics(shared):
        parts.append(f"# HELP {name} {text}\n# TYPE {name} {kind}\n")
        parts += [f"{name}{_labels(labels)} {value:.17g}\n" for labels, value in samples]
    return "".join(parts)


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def _one(value: float) -> list[Sample]:
    return [({}, value)]


def _by(label: str, counts: Iterable[tuple[str, float]]) -> list[Sample]:
    return [({label: name}, value) for name, value in counts]


def _metrics(shared: Shared) -> Iterator[Metric]:
    service, lines = shared.service, shared.lines
    server = service.statistics()
    files, gate = server.files, server.gate
    refusals = Counter(server.refusals) + shared.refusals
    info = {
        "version": importlib.metadata.version("hyperlog-p2p"),
        "public_key": service.public_key.hex(),
    }
    yield "hyperlog_info", "gauge", "The server.", [(info, 1)]
    yield (
        "hyperlog_records_total",
        "counter",
        "Records taken and made into lines.",
        _one(server.records),
    )
    yield (
        "hyperlog_repeats_total",
        "counter",
        "Records that had been taken before.",
        _one(server.repeats),
    )
    yield (
        "hyperlog_bad_messages_total",
        "counter",
        "Messages that could not be taken.",
        _one(server.bad_messages),
    )
    yield (
        "hyperlog_lost_records_total",
        "counter",
        "Records told to be lost, by reason.",
        _by("reason", sorted(lines.lost.items())),
    )
    yield (
        "hyperlog_requests_total",
        "counter",
        "Requests of their own that brought records.",
        _one(server.requests),
    )
    yield (
        "hyperlog_connections",
        "gauge",
        "Open connections that bring records, by transport.",
        _by("transport", sorted(_transports(service).items())),
    )
    yield (
        "hyperlog_refused_total",
        "counter",
        "Senders that were turned away, by reason.",
        _by("reason", [("PLACES", server.refused), *sorted(refusals.items())]),
    )
    yield (
        "hyperlog_refused_keys_total",
        "counter",
        "Handshakes of keys that are not allowed.",
        _one(gate.refused_keys),
    )
    yield (
        "hyperlog_limit_reached_total",
        "counter",
        "How often a limit was reached.",
        _by("limit", _limits(gate.limits)),
    )
    yield (
        "hyperlog_slowed_seconds_total",
        "counter",
        "Time that senders were not read for.",
        _one(gate.limits.delayed),
    )
    yield "hyperlog_written_lines_total", "counter", "Lines written.", _one(files.lines)
    yield "hyperlog_written_bytes_total", "counter", "Bytes written.", _one(files.bytes)
    yield "hyperlog_cut_lines_total", "counter", "Lines that were too long.", _one(files.cut_lines)
    yield (
        "hyperlog_write_failures_total",
        "counter",
        "Batches that could not be written in full.",
        _one(files.failures),
    )
    yield (
        "hyperlog_sink_behind_bytes",
        "gauge",
        "Bytes of lines that wait to be written.",
        _by("sink", [("files", files.queued_bytes)]),
    )
    yield (
        "hyperlog_sink_slowest_round_seconds",
        "gauge",
        "The longest time that one write took.",
        _by("sink", [("files", files.slowest_round)]),
    )
    yield "hyperlog_folder_bytes", "gauge", "Size of all log files.", _one(files.folder_bytes)
    yield "hyperlog_folder_files", "gauge", "Log files.", _one(files.folder_files)
    yield from _store_metrics(server.stores)
    tail = service.tail.statistics()
    yield "hyperlog_viewers", "gauge", "Viewers of the live tail.", _one(tail.viewers)
    yield (
        "hyperlog_viewers_left_out_total",
        "counter",
        "Lines that no viewer was shown.",
        _one(tail.left_out),
    )
    yield (
        "hyperlog_http_requests_total",
        "counter",
        "Requests by endpoint and status.",
        [
            ({"endpoint": name, "status": str(status)}, count)
            for (name, status), count in sorted(shared.answers.items())
        ],
    )
    if shared.server is not None:
        http = shared.server.statistics()
        yield "hyperlog_http_connections", "gauge", "Open connections.", _one(http.connections)
        yield (
            "hyperlog_http_connections_refused_total",
            "counter",
            "Because there were too many.",
            _one(http.refused),
        )
        yield (
            "hyperlog_http_connections_cut_off_total",
            "counter",
            "Because they did not read.",
            _one(http.cut_off),
        )
    traces = lines.traces()
    yield (
        "trace_counter",
        "counter",
        "Counts how many times a function has been traced",
        [(_trace_labels(values), count) for values, count in traces],
    )
    yield (
        "hyperlog_trace_counter_left_out_total",
        "counter",
        "Traces beyond the series it may have.",
        _one(lines.left_out),
    )
    yield from _process_metrics()


def _store_metrics(stores: Sequence[StoreStatistics]) -> Iterator[Metric]:
    for name, kind, text, member in (
        ("behind_bytes", "gauge", "Bytes of log files that it does not hold yet.", "behind"),
        ("records", "gauge", "Records held.", "records"),
        ("bytes", "gauge", "Size.", "bytes"),
        ("inserted_total", "counter", "Records taken over from the log files.", "inserted"),
        ("failures_total", "counter", "Attempts to write that failed.", "failures"),
    ):
        samples = [(store.kind, getattr(store, member)) for store in stores]
        if samples:
            yield f"hyperlog_store_{name}", kind, text, _by("store", samples)


def _process_metrics() -> Iterator[Metric]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield (
        "process_cpu_seconds_total",
        "counter",
        "CPU time used.",
        _one(usage.ru_utime + usage.ru_stime),
    )
    yield "process_start_time_seconds", "gauge", "Since 1970.", _one(STARTED_AT)
    resident = _resident_bytes()
    if resident is not None:
        yield "process_resident_memory_bytes", "gauge", "Memory.", _one(resident)


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _transports(service: Service) -> Counter[str]:
    counts: Counter[str] = Counter({"hyperdht": 0, "http": 0, "websocket": 0})
    for application in service.connections.applications().values():
        for instance in application["instances"].values():
            counts[instance["transport"]] += instance["connections"]
    return counts


def _limits(limits: LimitStatistics) -> list[tuple[str, float]]:
    return [
        (field.name, getattr(limits, field.name))
        for field in fields(limits)
        if field.name != "delayed"
    ]


def _trace_labels(values: tuple[str, ...]) -> Labels:
    """Without those that the trace does not have, as in the original."""
    return {name: value for name, value in zip(TRACE_LABELS, values, strict=True) if value}


ENDPOINTS: Final = (
    Endpoint(
        "GET",
        "/metrics",
        get_metrics,
        "Counts for Prometheus",
        {200: Answer("Text exposition format", {"type": "string"}, "text/plain")},
        scope="read",
    ),
)
