"""What the facts about a peer and the way to it mean, in plain words.

As `judgements`, for the steps beyond the own side of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hyperlog.control import Greeting, ServerOffer
from hyperlog.dht import Announcement, ConnectionStatistics, NATJudgement, PeerAnswer, PeerProbe
from hyperlog.findings import Finding, Verdict, address_text, counted, milliseconds, path_text

__all__ = [
    "judge_clock",
    "judge_handshake",
    "judge_no_path",
    "judge_path",
    "judge_peer_nat",
    "judge_record",
    "judge_server",
]

FEW_HOLDERS: Final = 2  # of three nodes that a peer announces to
RECORD_LIFE: Final = 20  # min that nodes keep a record without hearing of it again
LARGE_SKEW: Final = 5.0  # s between two clocks, from which on times of records mislead


def judge_record(announcement: Announcement, named: int = 0) -> Finding:
    """Whether somebody knows how to reach the key; `named` nodes were told along with it."""
    holders, answered = announcement.holders, announcement.answered
    details = tuple(address_text(holder) for holder in holders)
    figures = {"holders": list(details), "answered": answered, "silent": announcement.silent}
    if named and not holders:
        text = f"not announced; {counted(named, 'node')} named in the address may know the peer"
        return Finding("record", Verdict.WARNING, text, figures=figures)
    if not answered:
        return Finding(
            "record",
            Verdict.FAILED,
            "nobody answered the question for it",
            "The network has gone away meanwhile: try again.",
            figures=figures,
        )
    if not holders:
        return Finding(
            "record",
            Verdict.FAILED,
            f"not announced: none of {counted(answered, 'node')} next to the key has a record",
            "Is the server running, is this the key that it printed when it started, and does it "
            "use the same bootstrap nodes?",
            figures=figures,
        )
    text = f"{counted(len(holders), 'node')} of {answered} next to the key {_have(holders)} it"
    if len(holders) < FEW_HOLDERS < answered:
        return Finding(
            "record",
            Verdict.WARNING,
            text + ": a peer that is well connected announces to three",
            "The server may have started just now, or its connection may be poor: try again in a "
            "minute.",
            details,
            figures,
        )
    return Finding("record", Verdict.OK, text, details=details, figures=figures)


_PEER_ERRORS: Final = {1: "it has given up", 2: "it speaks another version", 3: "try again later"}


def judge_handshake(probe: PeerProbe, our_key: bytes) -> Finding:
    """Whether the peer answers, and to us."""
    answer = probe.answer
    if answer is not None:
        return _judge_answer(answer)
    stopped = list(probe.stopped.values())
    details = tuple(
        f"{address_text(node)}  {_STOPPED[reason]}" for node, reason in probe.stopped.items()
    )
    figures = {"stopped": {address_text(node): reason for node, reason in probe.stopped.items()}}
    if "peer silent" in stopped:
        passed_on = stopped.count("peer silent")
        return Finding(
            "handshake",
            Verdict.FAILED,
            f"{counted(passed_on, 'node')} passed it on, and nothing came back: the peer has gone, "
            "or its firewall refuses this key",
            f"See whether the server runs: nodes keep a record for up to {RECORD_LIFE} minutes "
            "after it has vanished. If it does, see whom it allows: here the key was "
            f"{our_key.hex()}; with --keys FILE it is that of your application.",
            details,
            figures,
        )
    if "unreadable" in stopped:
        return Finding(
            "handshake",
            Verdict.FAILED,
            "what answers cannot prove that it has this key",
            "Check the key; a node on the way may also lie: try other bootstrap nodes.",
            details,
            figures,
        )
    return Finding(
        "handshake",
        Verdict.FAILED,
        "the nodes that have the record do not pass anything on"
        if "unknown to node" in stopped
        else "the nodes that have the record have gone themselves",
        "Wait for the server to announce itself again, within 5 minutes, or start it again.",
        details,
        figures,
    )


_STOPPED: Final = {
    "peer silent": "answers, but the peer does not",
    "node silent": "does not answer any more",
    "unknown to node": "knows no way to the peer",
    "unreadable": "brought an answer that is not the peer's",
}


def _judge_answer(answer: PeerAnswer) -> Finding:
    figures = {
        "node": address_text(answer.node),
        "direct": answer.direct,
        "roundTrip": answer.round_trip_time,
        "error": answer.error,
        "version": answer.version,
    }
    if answer.version != 1:
        return Finding(
            "handshake",
            Verdict.FAILED,
            f"the peer speaks version {answer.version} of HyperDHT, and this program version 1",
            "Use versions of both programs that fit together.",
            figures=figures,
        )
    if answer.error:
        reason = _PEER_ERRORS.get(answer.error, "for a reason that is not known here")
        return Finding(
            "handshake",
            Verdict.FAILED,
            f"the peer answers, and refuses: {reason} (error {answer.error})",
            "See what the peer's own log says, and try again.",
            figures=figures,
        )
    way = "directly" if answer.direct else f"through {address_text(answer.node)}"
    text = f"answered {way} in {milliseconds(answer.round_trip_time)}; the peer has the key"
    return Finding("handshake", Verdict.OK, text, figures=figures)


def judge_peer_nat(answer: PeerAnswer, ours: NATJudgement | None) -> Finding:
    """What is between the peer and the others, and whether both kinds go together."""
    kind = answer.kind
    seen = ", ".join(sorted({host for host, _ in answer.seen_as}))
    figures = {
        "kind": kind,
        "seenAs": [address_text(one) for one in answer.seen_as],
        "localAddresses": [address_text(one) for one in answer.local_addresses],
    }
    if kind == "open":
        return Finding("peerNat", Verdict.OK, "none: everybody can reach the peer", figures=figures)
    if kind == "consistent":
        text = f"consistent: all see the same address and port of it ({seen})"
        if ours is not None and ours.kind == "random":
            text += "; its side can punch through to ours by guessing ports"
        return Finding("peerNat", Verdict.OK, text, figures=figures)
    if kind == "random":
        text = f"random: each node sees another port of {seen}"
        if ours is not None and ours.kind == "random":
            return Finding(
                "peerNat",
                Verdict.WARNING,
                text + ", and so it is on this side: no hole can be punched",
                "Connect through a relay (--relay KEY), or forward a port to the server and name "
                "it: `hyperlog serve --port`.",
                figures=figures,
            )
        return Finding(
            "peerNat",
            Verdict.WARNING,
            text + ", so that connecting takes guesses, and seconds",
            "Forward a port to the server and name it: `hyperlog serve --port`.",
            figures=figures,
        )
    return Finding(
        "peerNat",
        Verdict.OK,
        f"there is a NAT or a firewall; {counted(len(answer.seen_as), 'view')} of it "
        f"{'does' if len(answer.seen_as) == 1 else 'do'} not tell which kind",
        figures=figures,
    )


_CONNECT_ADVICE: Final = {
    "PEER_NOT_FOUND": "The record has gone meanwhile: see whether the server still runs.",
    "PEER_CONNECTION_FAILED": "The handshake goes through, but not what follows it: a firewall on "
    "the way may drop UDP between the two. Try --relay KEY.",
    "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS": "Name a relay (--relay KEY), or forward a port to the "
    "server and tell it so (`hyperlog serve --port`).",
    "REMOTE_ABORTED": "Try again in half a minute, or connect through a relay (--relay KEY).",
    "RELAY_ABORTED": "See whether the relay runs, and whether its limits are reached; or name "
    "another one.",
    "HOLEPUNCH_PROBE_TIMEOUT": "One side cannot tell what NAT it is behind, for lack of nodes that "
    "say so: join a network of four nodes or more.",
    "CANNOT_HOLEPUNCH": "No hole can be punched: try --relay KEY.",
}
_OTHER_CONNECT_ADVICE: Final = (
    "Try again; if it stays, connect through a relay (--relay KEY), or forward a port to the "
    "server and name it (`hyperlog serve --port`)."
)


def judge_path(statistics: ConnectionStatistics, seconds: float, round_trip: float) -> Finding:
    """How the connection came about."""
    address, opening = statistics.remote_address, statistics.opening
    way = path_text(statistics.path, address)
    return Finding(
        "path",
        Verdict.OK,
        f"{way}; open in {milliseconds(seconds)}, round trip {milliseconds(round_trip)}",
        figures={
            "kind": statistics.path,
            "address": None if address is None else address_text(address),
            "seconds": round(seconds, 6),
            "roundTrip": round(round_trip, 6),
            "handshakes": opening.handshakes,
            "punches": opening.punches,
            "relays": opening.relays,
        },
    )


def judge_no_path(code: str, reason: str) -> Finding:
    """Why no connection came about; `code` is that of a DHTError, `reason` its text."""
    advice = _CONNECT_ADVICE.get(code, _OTHER_CONNECT_ADVICE)
    return Finding("path", Verdict.FAILED, reason, advice, figures={"code": code})


def judge_server(greeting: Greeting | None) -> Finding:
    """What listens behind the key, by its first message."""
    if greeting is None:
        text = "whatever listens there does not greet as a log server does"
        return Finding("server", Verdict.SKIPPED, text, figures={"kind": None})
    offer = greeting.hyperlog
    if not isinstance(offer, ServerOffer):
        text = "a hypertrace-logger server, which keeps no promise about what it has stored"
        return Finding("server", Verdict.OK, text, figures={"kind": "hypertrace-logger"})
    survives = "its machine" if offer.durability == "fsync" else "its process"
    text = f"a hyperlog server; what it has acknowledged outlives {survives}"
    figures = {"kind": "hyperlog", "version": offer.version, "durability": offer.durability}
    return Finding("server", Verdict.OK, text, figures=figures)


def judge_clock(skew: float | None, reason: str = "") -> Finding:
    """How far the peer's clock is ahead of ours, in s; None, and why, if that cannot be told."""
    if skew is None:
        return Finding("clock", Verdict.SKIPPED, f"not measurable: {reason}")
    figures = {"skew": round(skew, 3)}
    side = "ahead of" if skew > 0 else "behind"
    if abs(skew) < LARGE_SKEW:
        text = f"agrees with the server's within {max(abs(skew), 1.0):.0f} s"
        return Finding("clock", Verdict.OK, text, figures=figures)
    return Finding(
        "clock",
        Verdict.WARNING,
        f"the server's clock is {abs(skew):.0f} s {side} this one",
        "Records carry the times of both: set the wrong one right (NTP), or searches by time "
        "will mislead.",
        figures=figures,
    )


def _have(holders: Sequence[object]) -> str:
    return "has" if len(holders) == 1 else "have"
