"""Replays of recorded scenarios: our core in the place of the JavaScript stream.

What the other side sent is fed at its recorded time, the program's calls are made at the times
named below, and what our core sends must be the recorded bytes at about the recorded times.
"""

import json
from pathlib import Path

import pytest

from hyperlog.dht.errors import StreamReset, StreamTimeout
from hyperlog.dht.udx import (
    ClosedStreams,
    EndReceived,
    MessageReceived,
    StreamClosed,
    UDXStreamCore,
)
from hyperlog.dht.udx.packet import decode_untrusted, encode

VECTORS = Path(__file__).parents[2] / "vectors"
RAW = json.loads((VECTORS / "udx-raw.json").read_text())["scenarios"]
STREAMS = json.loads((VECTORS / "udx-streams.json").read_text())["scenarios"]
A, B = 0x0A0A0A0A, 0x0B0B0B0B
PEER = ("127.0.0.1", 4000)


class Replay:
    def __init__(self, scenario, outgoing: str, local_id: int, *, connect: bool = True):
        self.core = UDXStreamCore(local_id)
        self.local_id = local_id
        self.remote_id = A if local_id == B else B
        self.closed_streams = ClosedStreams()
        self.incoming = [p for p in scenario["packets"] if p["dir"] != outgoing and "hex" in p]
        self.expected = [p for p in scenario["packets"] if p["dir"] == outgoing]
        self.sent: list[tuple[float, bytes]] = []
        self.read = b""
        self.events = []
        if connect:
            self.connect(0.0)

    def connect(self, now: float) -> None:
        self.core.connect(self.remote_id, PEER, now)

    def _flush(self, now: float) -> None:
        self.read += b"".join(self.core.read())
        for _, address, datagrams in self.core.datagrams_to_send(now):
            assert address == PEER
            self.sent += [(now * 1000, datagram) for datagram in datagrams]
        while (event := self.core.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, StreamClosed):
                self.closed_streams.remember(self.core, now)

    def _timers_until(self, until: float) -> None:
        for _ in range(1000):
            timer = self.core.get_timer()
            if timer is None or timer > until:
                return
            self.core.handle_timer(timer)
            self._flush(timer)
        raise AssertionError("the core always wants to do something")

    def run(self, calls=(), until_ms: float = 0.0) -> None:
        """`calls` are (time in ms, callable taking seconds)."""
        steps = [(t, call) for t, call in calls]
        for packet in self.incoming:
            if not packet.get("dropped_by_test"):
                data = bytes.fromhex(packet["hex"])
                steps.append((packet["t_ms"], lambda now, data=data: self._receive(data, now)))
        steps.sort(key=lambda step: step[0])
        for at_ms, step in steps:
            now = at_ms / 1000
            self._timers_until(now)
            step(now)
            self._flush(now)
        self._timers_until(until_ms / 1000)

    def _receive(self, data: bytes, now: float) -> None:
        if self.core.closed:
            answer = self.closed_streams.receive_datagram(data, now)
            if answer is not None:
                self.sent.append((now * 1000, answer[1]))
            return
        # 1-to-1 with the packets, as libudx acknowledges
        self.core.receive_datagram(data, PEER, now)

    def check(self, count: int | None = None, tolerance_ms: float = 12.0) -> None:
        expected = self.expected[:count]
        assert [normal(data) for _, data in self.sent] == [
            normal(bytes.fromhex(packet["hex"])) for packet in expected
        ]
        for (at_ms, _), packet in zip(self.sent, expected, strict=True):
            assert at_ms == pytest.approx(packet["t_ms"], abs=tolerance_ms)


def normal(data: bytes) -> str:
    """JS advertises a constant window; ours counts what is held beyond a gap."""
    packet = decode_untrusted(data)
    assert packet.rwnd > 4_000_000
    packet.rwnd = 0
    return encode(packet).hex()


def test_raw_basic():
    replay = Replay(RAW["raw_basic"], "js->raw", B)
    replay.run([(661, replay.core.destroy)])
    replay.check()
    # The datagrams for another id and of another version never reach a core in a real socket.
    assert replay.core.statistics().malformed == 3
    events = [e for e in RAW["raw_basic"]["events"]]
    assert replay.read.decode() == "".join(e["data"] for e in events if "data" in e)
    messages = [e["message"].encode() for e in events if "message" in e]
    assert replay.events == [*map(MessageReceived, messages), StreamClosed(None)]


def test_raw_destroy_old_seq():
    replay = Replay(RAW["raw_destroy_old_seq"], "js->raw", B)
    replay.run()
    replay.check()
    assert isinstance(replay.events[0].error, StreamReset)


def test_raw_end_gap_and_the_memory_that_libudx_does_not_have():
    replay = Replay(RAW["raw_end_gap"], "js->raw", B)
    replay.run([(81, replay.core.write_end)])
    at_ms, answer = replay.sent.pop()
    replay.check()
    assert replay.read == b"firstlast"
    assert replay.events == [EndReceived(), StreamClosed(None)]
    # libudx hands the late END to the socket's message handler; we acknowledge it once more.
    assert at_ms == 161
    packet = decode_untrusted(answer)
    assert (packet.flags, packet.seq, packet.ack) == (0, 1, 2)


@pytest.mark.parametrize("name", ["preconnect_firewall", "preconnect_hold"])
def test_preconnect_data_is_kept_and_acknowledged_at_connect(name):
    scenario = RAW[name]
    replay = Replay(scenario, "js->raw", B, connect=False)
    connect_ms, destroy_ms = (packet["t_ms"] for packet in replay.expected)
    replay.run([(connect_ms, replay.connect), (destroy_ms, replay.core.destroy)])
    replay.check(tolerance_ms=1)
    assert replay.read == b"early"


def test_raw_zero_window():
    replay = Replay(RAW["raw_zero_window"], "js->raw", B)
    core = replay.core
    replay.run(
        [
            (1, lambda now: core.write(b"p0", now)),
            (71, lambda now: core.write(b"p1", now)),
            (3757, core.destroy),
        ]
    )
    replay.check()


def test_raw_rto_after_srtt():
    replay = Replay(RAW["raw_rto_after_srtt"], "js->raw", B)
    core = replay.core
    replay.run(
        [
            (1, lambda now: core.write(b"p0", now)),
            (61, lambda now: core.write(b"p1", now)),
        ],
        until_ms=20_000,
    )
    # libudx sends one tail loss probe; ours are up to four, each after twice the time.
    times = [round(at) for at, _ in replay.sent]
    extra = times[3:6]
    assert extra == [181, 341, 661]
    del replay.sent[3:6]
    replay.check()
    assert isinstance(replay.events[0].error, StreamTimeout)


def test_raw_many_gaps():
    scenario = RAW["raw_many_gaps"]
    core = UDXStreamCore(B)
    core.connect(A, PEER, 0.0)
    first = decode_untrusted(bytes.fromhex(scenario["packets"][0]["hex"]))
    answers = []
    for seq in range(1, 121, 2):
        first.seq = seq
        core.receive_datagram(encode(first), PEER, 0.0)
        [(*_, [answer])] = core.datagrams_to_send(0.0)
        answers.append(answer)
    js_first, js_last = (bytes.fromhex(packet["hex"]) for packet in scenario["packets"][1:])
    assert normal(answers[0]) == normal(js_first)
    # libudx stops at 50 blocks, we name all 60 (packet.py MAX_SACK_BLOCKS says why).
    assert normal(answers[-1][: 20 + 50 * 8]) == normal(js_last)
    assert len(decode_untrusted(answers[-1]).sacks) == 60


def test_small_data():
    a = Replay(STREAMS["small_data"], "A->B", A)
    a.run([(4, lambda now: a.core.write(b"hello", now))])
    a.check()
    assert a.read == b"world!"

    b = Replay(STREAMS["small_data"], "B->A", B)
    b.run([(6, lambda now: b.core.write(b"world!", now))])
    b.check(2)
    assert b.read == b"hello"


def test_coalesce():
    replay = Replay(STREAMS["coalesce"], "A->B", A)

    def three_writes(now):
        for data in (b"aaa", b"bbbb", b"ccccc"):
            replay.core.write(data, now)

    replay.run([(0.7, three_writes)])
    replay.check()


def test_message():
    replay = Replay(STREAMS["message"], "A->B", A)
    packets = replay.expected
    calls = [
        (packets[0]["t_ms"], "write"),
        (packets[1]["t_ms"], "send_message"),
        (packets[2]["t_ms"], "write"),
    ]
    replay.run(
        [
            (t, lambda now, n=n, p=p: getattr(replay.core, n)(payload(p), now))
            for (t, n), p in zip(calls, packets, strict=True)
        ]
    )
    replay.check()


def payload(packet) -> bytes:
    return decode_untrusted(bytes.fromhex(packet["hex"])).payload


def test_keepalive():
    replay = Replay(STREAMS["keepalive"], "A->B", A)
    replay.core.set_keep_alive(0.150, 0.0)
    replay.run([(0.8, lambda now: replay.core.write(b"k", now))], until_ms=305)
    replay.check()


def test_keepalive_answers():
    replay = Replay(STREAMS["keepalive"], "B->A", B)
    replay.run()
    replay.check()


def test_destroy():
    replay = Replay(STREAMS["destroy"], "A->B", A)
    replay.run([(0.7, lambda now: replay.core.write(b"x", now)), (101.6, replay.core.destroy)])
    replay.check()
    other = Replay(STREAMS["destroy"], "B->A", B)
    other.run()
    other.check()
    assert isinstance(other.events[0].error, StreamReset)


def test_end_both():
    a = Replay(STREAMS["end_both"], "A->B", A)

    def bye(now):
        a.core.write(b"bye", now)
        a.core.write_end(now)

    a.run([(1.4, bye)])
    a.check()
    assert a.events == [EndReceived(), StreamClosed(None)]
    b = Replay(STREAMS["end_both"], "B->A", B)
    b.run([(1.8, b.core.write_end)])
    b.check()
    assert b.events == [EndReceived(), StreamClosed(None)]


def test_end_only():
    a = Replay(STREAMS["end_only"], "A->B", A)
    a.run([(0.7, a.core.write_end), (151.9, a.core.destroy)])
    a.check()
    b = Replay(STREAMS["end_only"], "B->A", B)
    b.run()
    b.check()
    assert b.events[0] == EndReceived()
    assert isinstance(b.events[1].error, StreamReset)


def test_sack_loss_receiver():
    """Only payloads up to 500 bytes are on record whole, so the receiver gets rebuilt packets."""
    scenario = STREAMS["sack_loss"]
    core = UDXStreamCore(B)
    core.connect(A, PEER, 0.0)
    got = []
    for packet in scenario["packets"]:
        if packet["dir"] != "A->B" or packet.get("dropped_by_test"):
            continue
        data = bytes.fromhex(packet.get("hex") or packet["hex_head"])
        data += bytes(packet["length"] - len(data))
        core.receive_datagram(data, PEER, 0.0)
        got += [len(chunk) for chunk in core.read()]
        [(*_, [answer])] = core.datagrams_to_send(0.0)
        expected = next(p for p in scenario["packets"] if p["dir"] == "B->A" and "seen" not in p)
        expected["seen"] = True
        assert normal(answer) == normal(bytes.fromhex(expected["hex"]))
    assert got == scenario["reads"]


def test_blackhole_rto():
    replay = Replay(STREAMS["blackhole_rto"], "A->B", A)
    data = payload(replay.expected[0])
    replay.run([(0.5, lambda now: replay.core.write(data, now))], until_ms=12_999)
    # libudx sends no tail loss probes before its first RTT sample.
    probes = [replay.sent[index] for index in (1, 2, 4)]
    assert [at for at, _ in probes] == pytest.approx([252.5, 756.5, 2008.5])
    replay.sent = [sent for sent in replay.sent if sent not in probes]
    replay.check()
    assert replay.events == []
    replay.run(until_ms=13_010)
    assert isinstance(replay.events[0].error, StreamTimeout)


def test_custom_seq():
    core = UDXStreamCore(A, initial_seq=7)
    core.connect(B, PEER, 0.0)
    core.write(b"seq7", 0.0)
    [(*_, [sent])] = core.datagrams_to_send(0.0)
    data, state = (bytes.fromhex(p["hex"]) for p in STREAMS["custom_seq"]["packets"])
    assert sent == data
    other = UDXStreamCore(B, initial_ack=7)
    other.connect(A, PEER, 0.0)
    other.receive_datagram(data, PEER, 0.0)
    assert b"".join(other.read()) == b"seq7"
    assert other.datagrams_to_send(0.0) == [(0, PEER, [state])]


def test_mtu_probes_of_libudx_deliver_their_payload():
    core = UDXStreamCore(B, initial_ack=18)
    core.connect(A, PEER, 0.0)
    probe = STREAMS["mtu_probe"]["packets"][0]
    data = bytes.fromhex(probe["hex_head"])
    assert data[20:52] == bytes(32)
    core.receive_datagram(data + bytes(probe["length"] - len(data)), PEER, 0.0)
    [chunk] = core.read()
    assert len(chunk) == probe["decoded"]["payloadLength"]
    assert bytes(chunk[:16]) == data[52:]


def test_final_ack_lost_is_repaired_by_the_memory_of_closed_streams():
    replay = Replay(STREAMS["final_ack_lost"], "A->B", A)

    def bye(now):
        replay.core.write(b"bye", now)
        replay.core.write_end(now)

    replay.run([(8.9, bye)])
    assert replay.events == [EndReceived(), StreamClosed(None)]
    # The two answers to B's END were dropped on the way; libudx then stays silent for ever.
    at_ms, answer = replay.sent[len(replay.expected)]
    assert at_ms == 1014.8
    packet = decode_untrusted(answer)
    assert (packet.flags, packet.seq, packet.ack) == (0, 1, 1)
