"""What a host waits with."""

from __future__ import annotations

from dora_state.futures import Stream


def test_takers_that_gave_up_are_not_kept():
    stream: Stream[str] = Stream(100, lambda: None)
    for _ in range(100):
        assert stream.take().cancel()
    taker = stream.take()
    assert len(stream._takers) == 1
    stream.put([("thing", 1)])
    assert taker.result(0) == "thing"
