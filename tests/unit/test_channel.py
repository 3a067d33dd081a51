"""Messages and values between host and worker."""

from __future__ import annotations

import datetime
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dora_state.runtime import channel, value
from dora_state.runtime.channel import Channel, pack, unpack


def pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left), Channel(right)


def receive_all(end: Channel) -> list[channel.Message]:
    found = []
    while (messages := end.receive()) is not None:
        found += messages
    return found


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([channel.EVENT, channel.OUTPUT, channel.DONE, channel.TYPE]),
            st.binary(max_size=50),
            st.lists(
                st.integers(0, 9).map(lambda n: bytes(n * 7919)) | st.binary(max_size=20),
                max_size=7,
            ),
        ),
        max_size=20,
    )
)
def test_messages_arrive_whole_and_in_order_at_any_size(sent):
    left, right = pair()

    def send() -> None:
        for kind, document, buffers in sent:
            left.send(kind, pack(document), buffers)
        left.close()

    thread = threading.Thread(target=send)
    thread.start()
    received = receive_all(right)
    thread.join()
    right.close()
    assert [(m.kind, m.document, [bytes(b) for b in m.buffers]) for m in received] == sent


def test_a_message_that_is_cut_off_is_dropped_and_those_before_it_are_not():
    left, right = pair()
    left.send(1, pack("whole"))
    torn = b"".join(channel.frame(2, pack("torn"), [bytes(100)]))
    left.socket.sendall(torn[:-1])
    left.close()
    assert [message.document for message in receive_all(right)] == ["whole"]


def test_a_full_socket_keeps_the_rest_for_later():
    left, right = pair()
    left.socket.setblocking(False)
    data = bytes(range(256)) * 8192
    left.send(1, pack(None), [data])
    left.send(2, pack("next"))
    assert not left.is_flushed
    received = []
    while len(received) < 2:
        received += right.receive()
        left.flush()
    assert left.is_flushed
    assert bytes(received[0].buffers[0]) == data
    assert received[1].document == "next"


def test_received_buffers_are_read_only_and_aligned():
    left, right = pair()
    for size in (3, 200_000):
        left_thread = threading.Thread(target=left.send, args=(1, pack(None), [bytes(size)] * 2))
        left_thread.start()
        messages: list[channel.Message] = []
        while not messages:
            messages = list(right.receive())
        left_thread.join()
        for buffer in messages[0].buffers:
            assert buffer.readonly
            pa = pytest.importorskip("pyarrow")
            assert pa.py_buffer(buffer).address % 8 == 0


def test_times_survive_with_and_without_a_zone():
    utc = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)
    local = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)
    assert unpack(pack({"utc": utc, "local": local})) == {"utc": utc, "local": local}


def test_what_cannot_be_sent_is_refused_by_name():
    with pytest.raises(TypeError, match="cannot send a object"):
        pack({"metadata": object()})


# Values


def round_trip(content: object, *, copy: bool) -> object:
    left, right = pair()
    encoded = value.encode(content, copy=copy)
    thread = threading.Thread(
        target=lambda: (value.send(left, 1, pack(encoded.head), encoded), left.close())
    )
    thread.start()
    messages = receive_all(right)
    thread.join()
    for message in messages[:-1]:
        value.learn_type(right, message.document)
    return value.decode(messages[-1].document, messages[-1].buffers, right.types)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("content", [None, b"", b"bytes", 3, "text", [1, {"a": None}]])
def test_plain_values(content, copy):
    assert round_trip(content, copy=copy) == content


def test_other_buffers_arrive_as_bytes():
    assert round_trip(bytearray(b"abc"), copy=True) == b"abc"
    assert round_trip(memoryview(b"abc")[1:], copy=False) == b"bc"


def test_a_copied_value_does_not_change_with_its_source():
    source = bytearray(b"before")
    encoded = value.encode(source, copy=True)
    source[:] = b"after!"
    assert bytes(encoded.buffers[0]) == b"before"


def arrays() -> list:
    pa = pytest.importorskip("pyarrow")
    numbers = pa.array([1, None, 3, 4, None, 6, 7, 8, 9, 10, 11, 12], pa.int32())
    bits = pa.array([True, False, None] * 9)
    texts = pa.array(["a", None, "", "long" * 100, "e"])
    return [
        *(pa.array([0, 1, 2], kind) for kind in (pa.int8(), pa.uint64(), pa.float32())),
        pa.array([1.5, None], pa.float16()),
        pa.array([1, 2], pa.timestamp("ns", "UTC")),
        pa.array([b"ab", None], pa.binary(2)),
        pa.array([1, None], pa.decimal128(10, 2)),
        *(numbers[start:stop] for start in (0, 3, 8) for stop in (8, 12)),
        *(bits[start:] for start in (0, 1, 8)),
        *(texts[start:stop] for start in (0, 2) for stop in (2, 5)),
        texts.cast(pa.large_string()),
        texts.cast(pa.binary()),
        pa.array([], pa.string()),
        pa.array([], pa.int64()),
        pa.nulls(0),
        pa.nulls(3),
        pa.array([[1], [], None, [2, 3]]),
        pa.array([{"a": 1, "b": "x"}, None]),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
        pa.array(bytes(1_000_000), pa.uint8()),
    ]


@pytest.mark.parametrize("copy", [True, False])
def test_arrow_arrays(copy):
    for array in arrays():
        back = round_trip(array, copy=copy)
        assert back.type == array.type
        assert back.equals(array), array
        back.validate(full=True)


def test_a_plain_array_travels_without_ipc_and_only_as_far_as_it_is_used():
    pa = pytest.importorskip("pyarrow")
    part = pa.array(range(1000), pa.int64())[10:14]
    encoded = value.encode(part, copy=False)
    assert encoded.head[0] == value.ARROW
    assert encoded.size_bytes == 32


def test_an_arrow_type_is_sent_once_per_channel():
    pa = pytest.importorskip("pyarrow")
    left, right = pair()
    encoded = value.encode(pa.array([1], pa.int16()), copy=True)
    for _ in range(3):
        value.send(left, channel.OUTPUT, pack(None), encoded)
    left.close()
    kinds = [message.kind for message in receive_all(right)]
    assert kinds == [channel.TYPE, channel.OUTPUT, channel.OUTPUT, channel.OUTPUT]


def test_the_attempt_of_an_event_is_told_as_far_as_it_can_be():
    """A degraded operator tries the same event for weeks."""
    left, right = pair()
    for attempt in (1, channel.MOST_ATTEMPTS, channel.MOST_ATTEMPTS + 1):
        left.send_pieces(channel.frame(channel.EVENT, pack(None), (), attempt))
        left.send_pieces(channel.frame(channel.EVENT, pack(None), (b"x",), attempt))
    left.close()
    assert [message.attempt for message in receive_all(right)] == [1, 1, *[65535] * 4]
    right.close()
