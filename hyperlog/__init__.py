"""Traces and logs from many programs to one server, peer to peer and encrypted.

Names are loaded when they are first used (PEP 562): a program that only creates tracers does not
pay for the network.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # the typing module would be the dearest import here
if TYPE_CHECKING:
    from hyperlog.client import Client
    from hyperlog.errors import ConfigError, HyperlogError
    from hyperlog.handler import Handler
    from hyperlog.server import Server
    from hyperlog.trace import (
        Trace,
        Tracer,
        clear_trace_function,
        create_tracer,
        set_trace_function,
    )

__all__ = [
    "Client",
    "ConfigError",
    "Handler",
    "HyperlogError",
    "Server",
    "Trace",
    "Tracer",
    "clear_trace_function",
    "create_tracer",
    "set_trace_function",
]

_HOMES = {
    "Client": "hyperlog.client",
    "ConfigError": "hyperlog.errors",
    "Handler": "hyperlog.handler",
    "HyperlogError": "hyperlog.errors",
    "Server": "hyperlog.server",
    "Trace": "hyperlog.trace",
    "Tracer": "hyperlog.trace",
    "clear_trace_function": "hyperlog.trace",
    "create_tracer": "hyperlog.trace",
    "set_trace_function": "hyperlog.trace",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
