"""What codec.py writes comes back equal and of the same type, or is refused."""

from __future__ import annotations

import collections
import contextlib
import datetime
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dora_state import codec

numpy = pytest.importorskip("numpy")

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.datetimes(timezones=st.just(datetime.timezone.utc)),
)
HASHABLE = st.recursive(
    SCALARS.filter(lambda value: not isinstance(value, complex)),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.lists(inner, max_size=4).map(lambda items: collections.deque(items, 7)),
    ),
    max_leaves=12,
)


def same(one, other) -> bool:
    """Equal, and of the same type all the way down: 1, True and 1.0 are three values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=True)
        return len(one) == len(other) and all(map(same, *zip(*pairs, strict=True))) if one else True
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, collections.deque) and one.maxlen != other.maxlen:
        return False
    return one == other and (
        not isinstance(one, float) or math.copysign(1, one) == math.copysign(1, other)
    )


def test_the_second_of_two_hours_that_a_clock_shows_stays_the_second():
    """`==` does not look at fold, but an hour lies between the two."""
    for zone in (None, datetime.timezone.utc):
        for fold in (0, 1):
            when = datetime.datetime(2026, 10, 25, 2, 30, tzinfo=zone, fold=fold)
            assert codec.decode(codec.encode([when]))[0].fold == fold


@given(VALUES)
def test_a_value_comes_back_as_it_was(value):
    assert same(codec.decode(codec.encode(value)), value)


def test_a_nan_keeps_its_bits():
    assert math.isnan(codec.decode(codec.encode(math.nan)))


def test_a_bytearray_comes_back_as_one():
    assert same(codec.decode(codec.encode(bytearray(b"ab"))), bytearray(b"ab"))


RECORD = [("stamp", "<i8"), ("pose", "<f8", (3,)), ("name", "S5")]
ARRAYS = {
    "matrix": numpy.arange(12.0).reshape(3, 4),
    "fortran": numpy.asfortranarray(numpy.arange(12.0).reshape(3, 4)),
    "three dimensions in fortran order": numpy.asfortranarray(numpy.arange(24).reshape(2, 3, 4)),
    "strided": numpy.arange(24).reshape(4, 6)[::2, ::3],
    "reversed": numpy.arange(5)[::-1],
    "empty": numpy.zeros((0, 3)),
    "no dimensions": numpy.array(7.5),
    "big-endian": numpy.array([1, 2, 3], ">i2"),
    "bool": numpy.array([True, False]),
    "half": numpy.array([1.5], "f2"),
    "complex": numpy.array([1 + 2j]),
    "times": numpy.array(["2024-02-29T12:00:00.123"], "M8[ms]"),
    "text": numpy.array(["robot", "ü"]),
    "bytes": numpy.array([b"ab", b"c"]),
    "void": numpy.zeros(3, "V5"),
    "no bytes": numpy.zeros(3, "V0"),
    "structured": numpy.zeros(4, RECORD),
    "aligned": numpy.ones(2, numpy.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "nan": numpy.array([math.nan, -math.nan, -0.0, math.inf]),
    "large": numpy.arange(100_000, dtype="f4"),
    "large, fortran": numpy.asfortranarray(numpy.arange(40_000.0).reshape(100, 400)),
    "large, strided": numpy.arange(100_000).reshape(100, 1000)[:, ::7],
}


@pytest.mark.parametrize("inside", [False, True], ids=["by itself", "in a dict"])
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS.keys())
def test_an_array_comes_back_bit_by_bit(array, inside):
    data = codec.encode({"a": array} if inside else array)
    back = codec.decode(data)["a"] if inside else codec.decode(data)
    assert type(back) is numpy.ndarray
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()
    if array.flags.f_contiguous:
        assert back.flags.f_contiguous  # matrix products may round differently in another order
    assert back.flags.writeable
    assert back.flags.aligned


@pytest.mark.parametrize(
    "scalar",
    [numpy.float64(0.1), numpy.int8(-3), numpy.bool_(True), numpy.datetime64("2024-01-01")],
)
def test_a_numpy_scalar_comes_back_as_one(scalar):
    assert same(codec.decode(codec.encode([scalar])), [scalar])


class Own:
    pass


@pytest.mark.parametrize(
    "value",
    [
        Own(),
        [{"deep": (Own(),)}],
        numpy.array([Own()]),
        numpy.zeros(1, [("a", "f8"), ("b", "O")]),
        [numpy.array([None])],
        numpy.ma.array([1.0]),
        collections.OrderedDict(a=1),
        collections.defaultdict(int),
        memoryview(b"ab"),
        "\ud800",
        lambda: None,
        int,
    ],
    ids=repr,
)
def test_what_would_not_come_back_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        codec.encode(value)


def test_a_list_that_holds_itself_is_refused():
    value: list[object] = []
    value.append(value)
    with pytest.raises(ValueError, match="recursion"):
        codec.encode(value)


@given(st.binary())
def test_other_bytes_are_a_value_or_an_error(data):
    """Never a crash, and never something that runs."""
    with contextlib.suppress(Exception):
        codec.decode(data)


@pytest.mark.parametrize(
    "value", [1, 1.0, "a", b"a", None, (1, ("a", frozenset({2}))), numpy.float32(1), 2j]
)
def test_constants_are_known(value):
    assert codec.is_constant(value)


@pytest.mark.parametrize(
    "value", [[], {}, set(), (1, []), bytearray(), numpy.zeros(1), numpy.zeros(1, RECORD)[0], Own()]
)
def test_what_can_change_in_place_is_no_constant(value):
    assert not codec.is_constant(value)


def test_an_array_that_claims_to_be_large_takes_no_memory():
    head = codec._head(numpy.dtype("f8"), (1 << 40,), "C")
    with pytest.raises(ValueError, match="does not fit its shape"):
        codec.decode(codec._extension(codec.ARRAY, head, b""))


def test_the_example_of_the_documentation_is_right():
    data = codec.encode(numpy.zeros(3))
    assert data == bytes.fromhex("c90000002301 93a3") + b"<f8" + bytes.fromhex(
        "d502 9103 a1"
    ) + b"C" + bytes(24)
    assert len(data) == 41
