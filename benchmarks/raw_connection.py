"""Megabytes (10^6 bytes) and messages a second over one encrypted connection, loopback.

100 MB in messages of 64 KiB, and 20 MB in messages of 400 bytes, from the reader's opening of the
connection to its end of stream; the writer is the server. A round with checksums of all bytes on
both ends comes first; the rounds that count check the number of bytes and messages.
"""

from __future__ import annotations

from benchmarks.figures import (
    JS,
    JS_TO_PYTHON,
    PYTHON,
    PYTHON_TO_JS,
    Measured,
    Run,
    Target,
    WrongResult,
    alternate,
)
from benchmarks.peers import Address, js, network, python, run_peer

LARGE = "100 MB in messages of 64 KiB"
SMALL = "20 MB in messages of 400 bytes"
SIZES = {LARGE: (100_000_000, 65536), SMALL: (20_000_000, 400)}
MESSAGES = "messages of 400 bytes"
UNITS = {LARGE: "MB/s", SMALL: "MB/s", MESSAGES: "messages/s"}
TARGETS = {(LARGE, PYTHON): Target(60.0), (LARGE, JS_TO_PYTHON): Target(60.0)}
PAIRS = {  # writer, reader
    JS: ("js", "js"),
    PYTHON: ("python", "python"),
    JS_TO_PYTHON: ("js", "python"),
    PYTHON_TO_JS: ("python", "js"),
}


def _command(language: str, bootstrap: list[Address], **options: object) -> list[object]:
    if language == "js":
        return js("echo.js", bootstrap, **options)
    return python("raw_peer", bootstrap, **options)


class _Rounds:
    def __init__(self, bootstrap: list[Address]) -> None:
        self._bootstrap = bootstrap
        self._checked: set[tuple[str, str]] = set()

    async def run(self, pair: tuple[str, str]) -> Run:
        """One round of a pair, its first one with checksums."""
        checksum = pair not in self._checked
        self._checked.add(pair)
        run = Run({})
        for what, (size, chunk) in SIZES.items():
            seconds = await self._transfer(pair, what, size, chunk, checksum, run)
            run.values[what] = size / 1e6 / seconds
            if what == SMALL:
                run.values[MESSAGES] = size / chunk / seconds
        return run

    async def _transfer(
        self, pair: tuple[str, str], what: str, size: int, chunk: int, checksum: bool, run: Run
    ) -> float:
        writer_language, reader_language = pair
        writing = {"bytes": size, "chunk": chunk, "checksum": checksum}
        source = _command(writer_language, self._bootstrap, role="server", mode="source", **writing)
        async with run_peer(source) as writer:
            idle = writer.cost()
            sink = _command(
                reader_language,
                self._bootstrap,
                role="client",
                mode="sink",
                key=writer.public_key,
                checksum=checksum,
            )
            async with run_peer(sink) as reader:
                await reader.event("open")
                begun = reader.cost()
                received = await reader.event("received")
                run.costs[f"reader, {what}"] = reader.cost().since(begun)
                run.costs[f"writer, {what}"] = writer.cost().since(idle)
                sent = await writer.event("sent")
        if (received["bytes"], received["messages"]) != (size, -(-size // chunk)):
            raise WrongResult(f"{what} became {received} on the way")
        if checksum and (received["sha256"] is None or received["sha256"] != sent["sha256"]):
            raise WrongResult(f"{what} arrived with another checksum: {sent} {received}")
        return received["seconds"]


async def measure(repeats: int) -> Measured:
    measured = Measured()
    async with network() as bootstrap:
        rounds = _Rounds(bootstrap)
        runs = await alternate(
            "raw_connection",
            repeats,
            {peers: lambda pair=pair: rounds.run(pair) for peers, pair in PAIRS.items()},
        )
    for peers, some in runs.items():
        measured.add(peers, some, UNITS, TARGETS)
    return measured
