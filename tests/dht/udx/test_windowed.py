from hypothesis import given
from hypothesis import strategies as st

from hyperlog.dht.udx.windowed import WindowedMax, WindowedMin

updates = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e9)), min_size=1, max_size=60)


@given(updates, st.integers(1, 10))
def test_the_value_is_the_best_of_the_window(steps, window):
    largest, smallest = WindowedMax(window), WindowedMin(window)
    assert largest.value == smallest.value == 0
    key = 0
    seen = []
    for step, value in steps:
        key += step
        seen.append((key, value))
        largest.update(key, value)
        smallest.update(key, value)
        recent = [v for k, v in seen if k >= key - window]
        assert largest.value == max(recent)
        assert smallest.value == min(recent)


def test_memory_does_not_grow_with_updates():
    largest = WindowedMax(10)
    for n in range(1000, 0, -1):
        largest.update((1000 - n) // 20, float(n))
    assert len(largest._entries) <= 11
