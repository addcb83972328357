from hyperlog.dht.rpc.tally import OTHER, Tallies


def test_commands_have_their_own_counts_and_those_beyond_share_one():
    tallies = Tallies()
    tallies.of(3, internal=False).received += 1
    tallies.of(3, internal=True).received += 2
    for command in (OTHER, OTHER + 1, 2**64 - 1):
        tallies.of(command, internal=False).received += 1
    assert [tally.received for tally in tallies.user][3] == 1
    assert [tally.received for tally in tallies.internal][3] == 2
    assert tallies.user[OTHER].received == 3
    assert tallies.internal[OTHER].received == 0
