"""What the two ends say to each other besides records: greeting, hello, welcome, batch, ack.

Each is one JSON object in a message of its own, except for a batch, whose records follow in the
same message, a line each. Fields that are not known are ignored, so that later versions can add
some.

Wire: docs/protocol/session.md sections 2 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from hyperlog.errors import BadAnswer, BadGreeting, BadRecord
from hyperlog.records import MAX_NUMBER, MAX_SESSION_ID

__all__ = [
    "Batch",
    "ClientControl",
    "Greeting",
    "Hello",
    "Refusal",
    "ServerControl",
    "ServerOffer",
    "encode_batch",
    "encode_control",
    "encode_greeting",
    "encode_hello",
    "encode_refusal",
    "encode_resume",
    "hello_of_untrusted",
    "is_hello_untrusted",
    "name_fault",
    "parse_client_control_untrusted",
    "parse_greeting_untrusted",
    "parse_server_control_untrusted",
]

VERSION: Final = 2
MAX_GREETING_SIZE: Final = 64 * 1024  # bytes
MAX_CONTROL_SIZE: Final = 128 * 1024  # bytes; 64 session ids of 128 characters are 10 KiB
MAX_SESSIONS_NAMED: Final = 64  # in one hello or resume
MAX_TOKEN: Final = 8192  # characters
MAX_NAME: Final = 64  # characters of an application or instance

_Number: TypeAlias = Annotated[int, Meta(ge=-1, le=MAX_NUMBER)]
_SessionId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_SESSION_ID)]
_Numbers: TypeAlias = Annotated[dict[_SessionId, _Number], Meta(max_length=MAX_SESSIONS_NAMED)]
_Text: TypeAlias = Annotated[str, Meta(max_length=1024)]


class ServerOffer(Struct, rename="camel", gc=False):
    """What a server says of itself to clients that know this protocol."""

    version: int = VERSION
    """the highest that it speaks"""
    max_message: int = 8 * 1024 * 1024
    """bytes of one message"""
    max_record: int = 1024 * 1024
    """bytes of one record"""
    durability: str = "write"
    """what an acknowledged record survives: `write` the server's process, `fsync` its machine"""
    time: Annotated[int, Meta(ge=0, le=MAX_NUMBER)] | None = None
    """ms since 1970 by the server's clock; None if it does not tell"""

    def at(self, now: float) -> ServerOffer:
        """The same, said now (s since 1970)."""
        return msgspec.structs.replace(self, time=int(now * 1000))


class Greeting(Struct, rename="camel"):
    """A server's first message; clients of the JavaScript rule read the first two fields."""

    last_seen_trace_session_id: str | None = None
    last_seen_trace_number: int | None = None
    hyperlog: ServerOffer | UnsetType | None = UNSET


class Hello(Struct):
    """A client's first message."""

    sessions: _Numbers
    """those it has records of, oldest first; with the number that each is known to be stored to"""
    version: int = VERSION
    application: str | None = None
    """see `name_fault`, which the server asks so that it can tell the client"""
    instance: str | None = None
    token: str | None = None
    """its length is checked where tokens are"""


class Refusal(Struct):
    """Why a client is turned away."""

    code: Literal[
        "TOKEN_INVALID",
        "TOKEN_EXPIRED",
        "TOKEN_REVOKED",
        "TOKEN_MISMATCH",
        "TOKEN_REQUIRED",
        "HELLO",
        "LIMIT",
        "VERSION",
    ]
    reason: _Text


class _RefusalHeard(Struct):
    code: Annotated[str, Meta(max_length=64)]
    """also one that we have never heard of"""
    reason: _Text = ""


class Batch(Struct, rename={"from_number": "from"}, gc=False):
    """The head of a batch: what the lines below it are."""

    session: _SessionId
    from_number: Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
    count: Annotated[int, Meta(ge=1)]
    """lines"""


class _Sessions(Struct):
    sessions: _Numbers


class ClientControl(Struct):
    """A client's message, or the first line of one. Exactly one field is set."""

    batch: Batch | UnsetType = UNSET
    hello: Hello | UnsetType = UNSET
    resume: _Sessions | UnsetType = UNSET


class ServerControl(Struct):
    """A server's message after its greeting. All fields may be unset: a later version's."""

    ack: _Sessions | UnsetType = UNSET
    welcome: _Sessions | UnsetType = UNSET
    refused: _RefusalHeard | UnsetType = UNSET


class _First(Struct):
    hello: msgspec.Raw | UnsetType = UNSET


_encode = msgspec.json.Encoder().encode
_decode_greeting = msgspec.json.Decoder(Greeting).decode
_decode_server_control = msgspec.json.Decoder(ServerControl).decode
_decode_client_control = msgspec.json.Decoder(ClientControl).decode
_decode_first = msgspec.json.Decoder(_First).decode
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# -- client


def encode_hello(hello: Hello) -> bytes:
    return _encode({"hello": hello})


def encode_resume(sessions: Mapping[str, int]) -> bytes:
    return _encode({"resume": {"sessions": sessions}})


def encode_batch(session_id: str, from_number: int, lines: Sequence[bytes]) -> bytes:
    """One message with records of a session, the first of them with the number `from_number`."""
    head = _encode({"batch": Batch(session_id, from_number, len(lines))})
    return b"\n".join((head, *lines))


def parse_greeting_untrusted(data: bytes) -> Greeting:
    """The server's first message.

    Raises:
        BadGreeting: it is none.
    """
    if len(data) > MAX_GREETING_SIZE:
        raise BadGreeting(f"greeting of {len(data)} bytes")
    try:
        return _decode_greeting(data)
    except _NOT_JSON as error:
        raise BadGreeting(f"the server's first message is no greeting: {error}") from None


def parse_server_control_untrusted(data: bytes) -> ServerControl:
    """A later message of a server that speaks version 2.

    Raises:
        BadAnswer: it breaks the rules.
    """
    if len(data) > MAX_CONTROL_SIZE:
        raise BadAnswer(f"message of {len(data)} bytes from the server")
    try:
        return _decode_server_control(data)
    except _NOT_JSON as error:
        raise BadAnswer(f"not understood: {error}") from None


# -- server


def encode_control(kind: Literal["welcome", "ack"], sessions: Mapping[str, int]) -> bytes:
    return _encode({kind: {"sessions": sessions}})


def encode_greeting(greeting: Greeting) -> bytes:
    return _encode(greeting)


def encode_refusal(refusal: Refusal) -> bytes:
    return _encode({"refused": refusal})


def is_hello_untrusted(data: bytes) -> bool:
    """Whether a client's first message decides for version 2; never raises."""
    if len(data) > MAX_CONTROL_SIZE:
        return False
    try:
        return _decode_first(data).hello is not UNSET
    except _NOT_JSON:
        return False


def hello_of_untrusted(data: bytes) -> Hello | None:
    """The hello that a client's first message is; None if it is none."""
    if not is_hello_untrusted(data):
        return None
    try:
        hello = parse_client_control_untrusted(data).hello
    except BadRecord:
        return None
    return None if hello is UNSET else hello


def name_fault(field: str, name: str) -> str | None:
    """What is wrong with the name of an application or instance; None if nothing is.

    Names go into lines and tables, never into paths: a printable one may be any.
    """
    if 0 < len(name) <= MAX_NAME and name.isprintable() and not name.isspace():
        return None
    return f"{field} has 1 to {MAX_NAME} printable characters"


def parse_client_control_untrusted(head: bytes) -> ClientControl:
    """A client's message of version 2, of a batch its first line.

    Raises:
        BadRecord: it is nothing that is known. The text tells nothing of the content.
    """
    if len(head) > MAX_CONTROL_SIZE:
        raise BadRecord(f"no record and no batch in a message of {len(head)} bytes")
    try:
        control = _decode_client_control(head)
    except msgspec.DecodeError as error:
        raise BadRecord(str(error)) from None
    except UnicodeDecodeError:
        raise BadRecord("not UTF-8 text") from None
    except RecursionError:
        raise BadRecord("nested too deep") from None
    if (control.batch, control.hello, control.resume).count(UNSET) != 2:
        raise BadRecord("neither batch nor resume")
    return control
