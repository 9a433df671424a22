"""Counting bytes gives the same as bytes.count, for any size and start."""

from unittest.mock import patch

from hypothesis import given, settings, strategies as st

from rootstock.images import byte_counts

FEW = st.lists(st.sampled_from([0xFF, 0xDA, 0x0D, 0x0A, 0]), max_size=80).map(bytes)


@given(FEW, st.integers(0, 90), st.sampled_from([b"\xff\xda", b"\r\n"]), st.integers(1, 9))
@settings(max_examples=300)
def test_counts_equal_those_of_bytes_count(data, start, pair, block):
    with patch.multiple(byte_counts, LARGE=1, BLOCK=block):
        assert byte_counts.count_pair(data, pair, start) == data.count(pair, start)
        assert byte_counts.count_byte(data, pair[:1], start) == data.count(pair[:1], start)
