import random

from hypothesis import given, settings
from hypothesis import strategies as st

from hyperlog.dht.commands.ageing import AgeingCache, TopicRecords


def test_an_entry_lives_two_to_four_thirds_of_its_age():
    for written_at in (0.0, 399.0):
        cache = AgeingCache(100, max_age=600.0)
        cache.get("", 0.0)  # generations of 400 s start here
        cache.set("key", 1, written_at)
        assert cache.get("key", 799.0) == 1
        assert cache.get("key", 800.0) is None
        assert len(cache) == 0


def test_reading_does_not_renew_but_writing_does():
    cache = AgeingCache(100, max_age=600.0)
    cache.set("read", 1, 0.0)
    cache.set("written", 1, 0.0)
    for now in (399.0, 401.0, 799.0):
        assert cache.get("read", now) == 1
        cache.set("written", 2, now)
    assert cache.get("read", 801.0) is None
    assert cache.get("written", 801.0) == 2
    assert len(cache) == 1


def test_a_long_pause_forgets_everything():
    cache = AgeingCache(100, max_age=600.0)
    cache.set("key", 1, 0.0)
    assert cache.get("key", 1e9) is None


def test_the_oldest_entries_go_when_the_cache_is_full():
    cache = AgeingCache(10, max_age=600.0)
    for i in range(1000):
        cache.set(i, str(i), 0.0)
        assert len(cache) <= 10
        assert cache.get(i, 0.0) == str(i)
    assert cache.get(995, 0.0) == "995"
    assert cache.get(0, 0.0) is None
    cache.remove(999)
    assert cache.get(999, 0.0) is None


def records(max_entries=1000):
    return TopicRecords(max_entries, 600.0, random.Random(1))


def test_a_sample_has_different_records_of_one_topic_from_both_generations():
    table = records()
    expected = set()
    for i in range(60):
        table.add(b"topic", b"%d" % i, b"record %d" % i, 0.0 if i < 30 else 401.0)
        table.add(b"other", b"%d" % i, b"another", 401.0)
        expected.add(b"record %d" % i)
    sample = table.sample(b"topic", 20, 401.0)
    assert len(set(sample)) == 20
    assert set(sample) < expected
    seen = set()
    for _ in range(50):
        seen |= set(table.sample(b"topic", 20, 401.0))
    assert seen == expected
    assert table.sample(b"nothing", 20, 401.0) == []


def test_a_new_record_replaces_the_peers_old_one():
    table = records()
    table.add(b"topic", b"peer", b"first", 0.0)
    table.add(b"topic", b"peer", b"second", 1.0)
    assert table.sample(b"topic", 20, 1.0) == [b"second"]
    table.add(b"topic", b"peer", b"third", 500.0)
    assert table.sample(b"topic", 20, 500.0) == [b"third"]
    assert len(table) == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "remove", "sample"]),
            st.integers(0, 2),
            st.integers(0, 5),
            st.floats(0, 500),
        ),
        max_size=60,
    ),
    st.sampled_from([2, 6, 1000]),
)
def test_records_agree_with_a_plain_dictionary(steps, max_entries):
    table, model, now, count = records(max_entries), {}, 0.0, 0
    for action, topic, peer, pause in steps:
        now += pause
        key, count = (b"%d" % topic, b"%d" % peer), count + 1
        if action == "add":
            table.add(*key, b"%d" % count, now)
            model[key] = b"%d" % count, now
        elif action == "remove":
            table.remove(*key)
            model.pop(key, None)
        sample = table.sample(key[0], 100, now)
        assert len(sample) == len(set(sample))
        mine = {record: at for (name, _), (record, at) in model.items() if name == key[0]}
        assert set(sample) <= set(mine)
        assert all(now - mine[record] <= 800.0 for record in sample)
        if max_entries == 1000:
            assert {record for record, at in mine.items() if now - at < 400.0} <= set(sample)
        assert len(table) <= max_entries
