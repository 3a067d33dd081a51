"""C and Cython modules that use the engine without Python, built against the installed package."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

import dora_state
from dora_state import Store, errors, operator
from dora_state.runtime.step import Stage

HERE = Path(__file__).parent


def build(folder: Path, source: Path, *flags: str, cpp: bool = False) -> ModuleType:
    """Compiles and imports one extension module, also as C++. It links nothing."""
    if source.suffix == ".pyx":
        generated = folder / f"{source.stem}.{'cpp' if cpp else 'c'}"
        language = ["--cplus"] if cpp else []
        subprocess.run(
            [sys.executable, "-m", "cython", "-3", *language, source, "-o", generated],
            check=True,
            cwd=folder,
        )
        source = generated
    module = folder / f"{source.stem}{sysconfig.get_config_var('EXT_SUFFIX')}"
    compiler = shlex.split(sysconfig.get_config_var("CC"))
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{dora_state.get_include()}"]
    language = ["-x", "c++"] if cpp else []
    options = ["-shared", "-fPIC", "-O1", *flags, *includes, *language]
    command = [*compiler, *options, source, "-o", module]
    subprocess.run(command, check=True, cwd=folder)
    spec = importlib.util.spec_from_file_location(source.stem, module)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="session")
def direct(tmp_path_factory):
    return build(tmp_path_factory.mktemp("direct"), HERE / "direct.pyx")


def test_cython_makes_cpp_of_it_too(tmp_path, store):
    module = build(tmp_path, HERE / "direct.pyx", "-std=c++17", cpp=True)
    sequence = module.put(store, b"pose", b"1234")
    assert store.entry("pose") == (b"1234", sequence)
    assert module.get(store, b"pose", 100) == (4, b"1234")
    assert module.commit(store, {b"a": b"1"}, [b"pose"]) == sequence + 1


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


# Cython


def test_put_and_get(direct, store):
    sequence = direct.put(store, b"pose", b"1234")
    assert store.entry("pose") == (b"1234", sequence)
    assert direct.get(store, b"pose", 100) == (4, b"1234")
    assert direct.get(store, b"pose", 3) == (4, None), "what does not fit is not copied"
    assert direct.get(store, b"nothing", 100) == (-1, None)
    assert direct.put(store, "schlüssel".encode(), b"") == sequence + 1
    assert store["schlüssel"] == b""
    assert direct.get(store, "schlüssel".encode(), 0) == (0, b"")


def test_delete(direct, store):
    store["a"] = b"1"
    assert direct.delete(store, b"a") is True
    assert direct.delete(store, b"a") is False
    assert "a" not in store


def test_a_commit_is_one_commit(direct, store):
    store["old"] = b"1"
    sequence = direct.commit(store, {b"a": b"1", b"b": b"2"}, [b"old"])
    assert store.snapshot() == {"a": b"1", "b": b"2"}
    assert list(store.changes(after=sequence - 1)) == [
        (sequence, {"a": b"1", "b": b"2", "old": None})
    ]


def test_i37_a_view_stays_as_it_was(direct, tmp_path):
    store = Store(tmp_path / "store")
    first = store.put("a", b"x" * 10_000)

    def change():
        store["a"] = b"other"
        del store["a"]
        store.compact()
        store.close()

    assert direct.view(store, b"a", change) == (b"x" * 10_000, first)
    with Store(tmp_path / "store") as again:
        assert direct.view(again, b"a", change) is None


def test_errors_are_those_of_a_store(direct, tmp_path):
    with Store(tmp_path / "store"), Store(tmp_path / "store", read_only=True) as reader:
        with pytest.raises(errors.ReadOnlyError):
            direct.put(reader, b"a", b"1")
        with pytest.raises(errors.ReadOnlyError):
            direct.commit(reader, {b"a": b"1"}, [])
    with Store(tmp_path / "store") as store, pytest.raises(errors.TooLarge):
        direct.put(store, b"k" * 70_000, b"")
    for call in (
        lambda: direct.put(reader, b"a", b"1"),
        lambda: direct.get(reader, b"a", 1),
        lambda: direct.delete(reader, b"a"),
        lambda: direct.view(reader, b"a", print),
    ):
        with pytest.raises(errors.StoreClosed):
            call()


def test_closing_waits_for_a_long_call_without_the_gil(direct, tmp_path):
    store = Store(tmp_path / "store")
    value = b"x" * 100_000_000
    put = threading.Thread(target=direct.put, args=(store, b"a", value))
    put.start()
    while not direct.calls(store):
        time.sleep(0)
    store.close()
    assert not direct.calls(store)
    put.join()
    with Store(tmp_path / "store") as again:
        assert again["a"] == value


def test_calls_without_the_gil_that_come_too_late_are_told(direct, tmp_path):
    for _ in range(20):
        store = Store(tmp_path / "store")
        started = threading.Barrier(3)
        ends: list[BaseException] = []

        def run(key, store=store, started=started, ends=ends):
            try:
                direct.hammer(store, key, started.wait)
            except BaseException as error:
                ends.append(error)

        threads = [threading.Thread(target=run, args=(key,)) for key in (b"a", b"b")]
        for thread in threads:
            thread.start()
        started.wait()
        store.close()
        for thread in threads:
            thread.join()
        assert [type(end) for end in ends] == [errors.StoreClosed] * 2


def test_save_state_outside_of_an_operator_is_refused(direct):
    with pytest.raises(errors.OperatorError, match="dora-state run"):
        direct.save("pose", b"1234")


def test_save_state_in_a_handler_is_staged(direct, monkeypatch):
    monkeypatch.setattr(operator, "session", object())
    stage = Stage()
    token = operator.stage.set(stage)
    try:
        direct.save("pose", b"1234")
        direct.save("schlüssel", b"")
        for key, error in [
            ("@field", "begins with '@'"),
            ("k" * 70_000, "70000 bytes"),
            ("\ud800", "surrogate"),
        ]:
            with pytest.raises(ValueError, match=error):
                direct.save(key, b"")
        for size in ((1 << 30) + 1, 2**64 - 1):  # neither is read: only the size is that large
            with pytest.raises(errors.TooLarge, match=f"{size} bytes, the limit is 1073741824"):
                direct.save_sized("pose", b"1234", size)
    finally:
        operator.stage.reset(token)
    assert stage.close() == {"pose": b"1234", "schlüssel": b""}


# C


@pytest.mark.parametrize("standard", ["c99", "c17", "c++11", "c++20"])
def test_a_c_module_uses_the_table(tmp_path, standard):
    flags = ("-Wall", "-Wextra", "-Werror", f"-std={standard}")
    plain = build(tmp_path, HERE / "plain.c", *flags, cpp="++" in standard)
    path = str(tmp_path / "store")
    assert plain.round_trip(path, b"\xff\x00key", b"value" * 10_000) == b"value" * 10_000
    with pytest.raises(OSError, match="TOO_LARGE"):
        plain.round_trip(path, b"k" * 70_000, b"")


def test_a_module_for_another_version_is_refused(tmp_path):
    for header in Path(dora_state.get_include()).iterdir():
        text = header.read_text().replace(
            "#define DS_API_VERSION 1\n", "#define DS_API_VERSION 99\n"
        )
        (tmp_path / header.name).write_text(text)
    with pytest.raises(ImportError, match=r"was built for version 99 .*; build the module again"):
        build(tmp_path, HERE / "plain.c", f"-I{tmp_path}")


def test_every_public_function_is_in_the_table():
    include = Path(dora_state.get_include())
    declared = re.findall(
        r"^[a-z][\w ]*? \*?ds_(\w+)\(", (include / "dora_state.h").read_text(), re.MULTILINE
    )
    listed = re.findall(r"^ +X\((\w+)\)", (include / "dora_state_api.h").read_text(), re.MULTILINE)
    assert len(declared) > 30
    assert sorted(listed) == sorted(declared), (
        "new functions of dora_state.h go to the end of DS_API_MAP in dora_state_api.h"
    )
