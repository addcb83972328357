"""What the facts about the network on this side mean, in plain words.

Each function takes what was seen at one step and gives a Finding. Nothing here looks at anything
itself; `doctor` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hyperlog.dht import NameLookup, NATJudgement, NodeProbe
from hyperlog.findings import Finding, Verdict, address_text, counted, milliseconds

__all__ = [
    "judge_bootstrap",
    "judge_joining",
    "judge_names",
    "judge_nat",
    "judge_udp",
]


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
            reason, details = f"there is no such name as {missed[0].node[0]}", ()
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
