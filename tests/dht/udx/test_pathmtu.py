import pytest

from hyperlog.dht.udx.pathmtu import BASE_MTU, MAX_MTU, PathMTU, header_overhead


@pytest.mark.parametrize(
    ("host", "overhead"), [("127.0.0.1", 48), ("::1", 68), ("::ffff:10.0.0.1", 68)]
)
def test_header_overhead(host, overhead):
    assert header_overhead(host) == overhead


def test_the_search_climbs_by_32_bytes_to_1500():
    mtu = PathMTU(enabled=True)
    assert not mtu.wants_probe
    mtu.start_search()
    sizes = []
    while mtu.wants_probe:
        padding = mtu.padding_for(mtu.mtu)
        mtu.on_probe_sent(len(sizes))
        assert not mtu.wants_probe
        mtu.on_probe_acked()
        sizes.append(mtu.mtu)
        assert sizes[-1] - padding in (BASE_MTU, *sizes)
    assert sizes == [*range(1232, 1500, 32), MAX_MTU]


def test_three_losses_in_a_row_end_the_search():
    mtu = PathMTU(enabled=True)
    mtu.start_search()
    mtu.on_probe_sent(1)
    mtu.on_probe_acked()
    for seq in (2, 3, 4):
        assert mtu.wants_probe
        mtu.on_probe_sent(seq)
        mtu.on_probe_lost()
    assert not mtu.wants_probe
    assert mtu.mtu == 1232
    mtu.start_search()
    assert not mtu.wants_probe


def test_a_packet_too_small_for_the_padding_byte_is_no_probe():
    mtu = PathMTU(enabled=True)
    assert mtu.padding_for(1232 - 255) == 255
    assert mtu.padding_for(1232 - 256) == 0
    assert mtu.padding_for(1232) == 0


def test_probing_can_be_switched_off():
    mtu = PathMTU(enabled=False)
    mtu.start_search()
    assert not mtu.wants_probe
