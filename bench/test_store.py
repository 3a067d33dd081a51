"""Put, get and batch of the store beside a dict and LMDB, in one run. Nothing here asserts a time: bench/run.py prints
them with their ratios.

Workload: 1,000 hot keys of 16 bytes with values of 100 bytes, in a fixed shuffled order; one process; no sync while
measuring. LMDB is set to the same promise, to survive the death of a process: writemap, map_async, sync=False.
"""

from __future__ import annotations

import random

import lmdb
import pytest

from dora_state import Store

KEYS = [f"key-{number:012d}" for number in range(1000)]
random.Random(1).shuffle(KEYS)
RAW_KEYS = [key.encode() for key in KEYS]
COUNT = len(KEYS)
VALUE = bytes(random.Random(2).randbytes(100))
BATCH = 10


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        store.update(dict.fromkeys(KEYS, VALUE))
        yield store


@pytest.fixture
def environment(tmp_path):
    environment = lmdb.open(
        str(tmp_path / "lmdb"), map_size=1 << 28, writemap=True, map_async=True, sync=False
    )
    with environment.begin(write=True) as transaction:
        for key in RAW_KEYS:
            transaction.put(key, VALUE)
    yield environment
    environment.close()


@pytest.fixture
def measure(benchmark, request):
    """Times rounds of one pass over all keys; notes workload and peer for the table."""

    def run(function, operations=COUNT):
        _, workload, peer = request.node.name.split("__")
        benchmark.extra_info.update(workload=workload, peer=peer, operations=operations)
        benchmark.pedantic(function, rounds=request.config.getoption("rounds"), warmup_rounds=3)

    return run


def test__put__dict(measure):
    table = dict.fromkeys(KEYS, VALUE)

    def put():
        for key in KEYS:
            table[key] = VALUE

    measure(put)


def test__put__store(measure, store):
    def put(put=store.put):
        for key in KEYS:
            put(key, VALUE)

    measure(put)


def test__put__lmdb(measure, environment):
    def put():
        for key in RAW_KEYS:
            with environment.begin(write=True) as transaction:
                transaction.put(key, VALUE)

    measure(put)


def test__get__dict(measure):
    table = dict.fromkeys(KEYS, VALUE)

    def get(get=table.get):
        for key in KEYS:
            get(key)

    measure(get)


def test__get__store(measure, store):
    def get(get=store.get):
        for key in KEYS:
            get(key)

    measure(get)


def test__get__lmdb(measure, environment):
    def get():
        for key in RAW_KEYS:
            with environment.begin() as transaction:
                transaction.get(key)

    measure(get)


def test__get__lmdb_held(measure, environment):
    """One transaction held open, which sees no writes of others."""
    with environment.begin() as transaction:

        def get(get=transaction.get):
            for key in RAW_KEYS:
                get(key)

        measure(get)


def test__batch_of_10__store(measure, store):
    def batch():
        for first in range(0, COUNT, BATCH):
            with store.batch() as batch:
                for key in KEYS[first : first + BATCH]:
                    batch.put(key, VALUE)

    measure(batch, COUNT // BATCH)


def test__batch_of_10__lmdb(measure, environment):
    def batch():
        for first in range(0, COUNT, BATCH):
            with environment.begin(write=True) as transaction:
                for key in RAW_KEYS[first : first + BATCH]:
                    transaction.put(key, VALUE)

    measure(batch, COUNT // BATCH)


def test__items__dict(measure):
    table = dict.fromkeys(KEYS, VALUE)
    measure(lambda: [None for _ in table.items()])


def test__items__store(measure, store):
    measure(lambda: [None for _ in store.items()])


def test__items__lmdb(measure, environment):
    def items():
        with environment.begin() as transaction:
            for _ in transaction.cursor():
                pass

    measure(items)
