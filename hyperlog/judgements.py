"""What the facts about a network mean, in plain words.

Each function takes what was seen at one step and gives a Finding. Nothing here looks at anything
itself; `doctor` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hyperlog.control import Greeting, ServerOffer
from hyperlog.dht import (
    Announcement,
    ConnectionStatistics,
    NameLookup,
    NATJudgement,
    NodeProbe,
    PeerAnswer,
    PeerProbe,
)
from hyperlog.findings import Finding, Verdict, address_text, counted, milliseconds, path_text

__all__ = [
    "judge_bootstrap",
    "judge_clock",
    "judge_handshake",
    "judge_joining",
    "judge_names",
    "judge_nat",
    "judge_no_path",
    "judge_path",
    "judge_peer_nat",
    "judge_record",
    "judge_server",
    "judge_udp",
]

FEW_HOLDERS: Final = 2  # of three nodes that a peer announces to
RECORD_LIFE: Final = 20  # min that nodes keep a record without hearing of it again
LARGE_SKEW: Final = 5.0  # s between two clocks, from which on times of records mislead

# -- this side ------------------------------------------------------------------------------------


def judge_names(lookups: Sequence[NameLookup]) -> Finding:
    """Whether it is known where the bootstrap nodes are."""
    asked = [lookup for lookup in lookups if lookup.source != "literal"]
    missed = [lookup for lookup in asked if lookup.failure is not None]
    figures = {
        "nodes": [
            {
                "host": lookup.node[0],
                "address": None if lookup.address is None else lookup.address[0],
                "failure": lookup.failure,
                "seconds": round(lookup.seconds, 6),
            }
            for lookup in lookups
        ]
    }
    if not asked:
        text = "nothing to look up: the bootstrap nodes are given by address"
        return Finding("names", Verdict.OK, text, figures=figures)
    if not missed:
        slowest = milliseconds(max(lookup.seconds for lookup in asked))
        text = f"{counted(len(asked), 'name')} of bootstrap nodes found, in {slowest}"
        return Finding("names", Verdict.OK, text, figures=figures)
    details = tuple(f"{lookup.node[0]}  {_NAME_FAILURES[lookup.failure]}" for lookup in missed)
    if all(lookup.failure == "no name service" for lookup in missed):
        reason = "no name server answers"
        advice = "Check that this machine is connected, and which name servers it has been given."
    else:
        reason = f"{len(missed)} of {counted(len(asked), 'name')} cannot be found"
        if len(asked) == 1:
            reason = f"there is no such name as {missed[0].node[0]}"
        advice = "Check the spelling (--bootstrap), and whether other names can be found."
    if any(lookup.address is not None for lookup in lookups):
        if all(lookup.address is not None for lookup in missed):
            reason += ", but their addresses are known to this program"
        return Finding("names", Verdict.WARNING, reason, advice, details, figures)
    return Finding("names", Verdict.FAILED, reason, advice, details, figures)


_NAME_FAILURES: Final = {
    "unknown name": "there is no such name",
    "no name service": "no answer",
    None: "found",
}


def judge_udp(probes: Sequence[NodeProbe], lookups: Sequence[NameLookup]) -> Finding:
    """Whether datagrams get out of here and answers back in."""
    seen = {probe.failure for probe in probes}
    if None in seen:
        return Finding("udp", Verdict.OK, "datagrams go out and answers come back")
    if "refused" in seen:
        text = "datagrams go out, and word comes back that nothing listens there"
        return Finding("udp", Verdict.OK, text)
    if "forbidden" in seen:
        return Finding(
            "udp",
            Verdict.FAILED,
            "this machine's own firewall keeps datagrams from leaving",
            "Allow outgoing UDP for this program, or for this user, in the machine's firewall.",
        )
    if seen == {"unreachable"}:
        return Finding(
            "udp",
            Verdict.FAILED,
            "this machine has no way to any of them: it is not connected",
            "Connect it to a network, and check its default route.",
        )
    text = "not one answer has come back"
    if any(lookup.source == "name service" and lookup.address is not None for lookup in lookups):
        text += ", although names are found: UDP seems to be blocked on the way"
    else:
        text += ": UDP is blocked on the way, or none of the nodes runs"
    return Finding(
        "udp",
        Verdict.FAILED,
        text,
        "Try another network, a telephone's for example. If it works there, allow outgoing UDP "
        "in the router or the firewall here; if not, check that the bootstrap nodes run.",
    )


_PROBE_TEXT: Final = {
    "silent": "no answer",
    "refused": "nothing listens at that port",
    "unreachable": "no way there",
    "forbidden": "not let out by this machine's firewall",
}


def judge_bootstrap(probes: Sequence[NodeProbe]) -> Finding:
    """Which of the nodes that a network is joined through answer."""
    answered = [probe for probe in probes if probe.round_trip_time is not None]
    details = tuple(
        f"{address_text(probe.address)}  "
        + (_PROBE_TEXT[probe.failure] if probe.failure else milliseconds(probe.round_trip_time))
        for probe in probes
    )
    figures = {
        "nodes": [
            {
                "host": probe.address[0],
                "port": probe.address[1],
                "roundTrip": probe.round_trip_time,
                "failure": probe.failure,
            }
            for probe in probes
        ]
    }
    if not answered:
        advice = "Check that they run, and that their addresses and ports are right (--bootstrap)."
        text = f"none of {len(probes)} answers"
        if len(probes) == 1:
            text = f"{address_text(probes[0].address)} does not answer"
        return Finding("bootstrap", Verdict.FAILED, text, advice, details, figures)
    if len(answered) < len(probes):
        return Finding(
            "bootstrap",
            Verdict.WARNING,
            f"{len(answered)} of {len(probes)} answer, which is enough to join",
            "Start the others again, or leave them out (--bootstrap).",
            details,
            figures,
        )
    times = [probe.round_trip_time for probe in probes if probe.round_trip_time is not None]
    if len(probes) == 1:
        text = f"{address_text(probes[0].address)} answers in {milliseconds(times[0])}"
        return Finding("bootstrap", Verdict.OK, text, figures=figures)
    text = f"all {len(probes)} answer, the nearest in {milliseconds(min(times))}"
    return Finding("bootstrap", Verdict.OK, text, details=details, figures=figures)


def judge_joining(nodes: int, seconds: float) -> Finding:
    """Whether the bootstrap nodes led to others."""
    figures = {"nodes": nodes, "seconds": round(seconds, 6)}
    if nodes:
        text = f"joined in {milliseconds(seconds)}; {counted(nodes, 'node')} known"
        return Finding("network", Verdict.OK, text, figures=figures)
    return Finding(
        "network",
        Verdict.WARNING,
        "the bootstrap nodes answer, but are not persistent nodes and know none",
        "Records can be kept by persistent nodes only: run one at an address that can be reached, "
        "`hyperlog node --port 49737`, unless the bootstrap node is the peer itself.",
        figures=figures,
    )


def judge_nat(nat: NATJudgement) -> Finding:
    """What is between this machine and the others, and what that means for connections."""
    seen = ", ".join(sorted({host for host, _ in nat.addresses}))
    figures = {
        "kind": nat.kind,
        "translated": nat.translated,
        "samples": nat.samples,
        "addresses": [address_text(one) for one in nat.addresses],
    }
    if nat.kind == "open":
        text = "none: everybody can reach this machine" + (f" at {seen}" if seen else "")
        return Finding("nat", Verdict.OK, text, figures=figures)
    if nat.kind == "consistent":
        text = (
            f"consistent: all see the same address and port ({seen}), so that both sides can "
            "punch a hole to each other"
            if nat.translated
            else f"a firewall at {seen}, without translation of addresses: both sides can punch a "
            "hole through it"
        )
        return Finding("nat", Verdict.OK, text, figures=figures)
    if nat.kind == "random":
        return Finding(
            "nat",
            Verdict.WARNING,
            f"random: each node sees another port of {seen}, so that peers have to guess",
            "Peers behind the same kind of NAT can be reached through a relay only (--relay KEY). "
            "A server here needs a forwarded port: `hyperlog serve --port`.",
            figures=figures,
        )
    return Finding(
        "nat",
        Verdict.WARNING,
        f"cannot be told: {counted(nat.samples, 'node')} told how this machine looks from outside, "
        "and three that agree are needed",
        "On one machine or in one local network this does no harm. Across the internet a private "
        "network needs four nodes or more.",
        figures=figures,
    )


# -- the peer -------------------------------------------------------------------------------------


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
    "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS": "Both NATs use random ports: connect through a relay "
    "(--relay KEY), or forward a port to the server and name it (`hyperlog serve --port`).",
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
