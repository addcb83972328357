"""Frames of protomux for property tests."""

from hypothesis import strategies as st

from hyperlog.dht.relay.frames import Close, Data, Open, Reject

numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
some_bytes = st.binary(max_size=40)

data_frames = st.builds(
    Data, channel_id=st.integers(1, 2**64 - 1), type=st.integers(0, 300), body=some_bytes
)
control_frames = st.one_of(
    st.builds(
        Open, channel_id=numbers, protocol=st.text(max_size=20), id=some_bytes, handshake=some_bytes
    ),
    st.builds(Reject, channel_id=numbers),
    st.builds(Close, channel_id=numbers),
)
frames = st.one_of(data_frames, control_frames)
