"""What UDXStreamCore.statistics() gives."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UDXStreamStatistics"]


@dataclass(slots=True)
class UDXStreamStatistics:
    """A snapshot; counts are since the stream was created, bytes are UDP payload."""

    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    retransmits: int
    lost: int
    "Packets found lost, also where that turned out to be too early."
    duplicates: int
    "Data packets that were here already."
    malformed: int
    "Datagrams that no honest peer sends: dropped, or their acknowledgement was."
    overflows: int
    "Data packets beyond the receive window, dropped."
    sacks_in: int
    "Acknowledgements with SACK blocks."
    invalid_sacks: int
    "SACK blocks outside of what is in flight."
    dropped_messages: int
    "Unordered messages that found a full queue, in either direction."
    rto_count: int
    tlp_count: int
    srtt: float | None
    "Smoothed round-trip time in seconds."
    rto: float
    "Seconds."
    cwnd: int
    "Packets."
    bandwidth: float
    "Payload bytes per second, as the congestion control estimates it."
    mtu: int
    "Bytes of IP packet."
    rwnd: int
    "Bytes that we advertise now."
    peer_rwnd: int
    "Bytes that the peer advertised last, as far as we use them."
