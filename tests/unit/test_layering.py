"""Imports point downwards only: docs/architecture.md draws the layers."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2]
PACKAGE = SOURCES / "src" / "dora_state"

# What a module of the package may import of the package. `runtime` and `cli` stand for all modules in their folder.
LAYERS = {
    "errors": set(),
    "_core": {"errors"},
    "codec": {"errors"},
    "headers": set(),
    "lockfile": set(),
    "run_record": set(),
    "node_config": {"errors"},
    "started_in": set(),
    "waiting": set(),
    "store": {"_core", "errors", "waiting"},
    "membership": {"_core", "errors", "lockfile"},
    "location": {"_core", "errors", "lockfile", "membership", "run_record"},
    "shared_writes": {"_core", "errors", "store"},
    "kvs": {
        "errors",
        "location",
        "membership",
        "node_config",
        "run_record",
        "shared_writes",
        "started_in",
        "store",
    },
    "operator": {"_core", "errors"},
    "dataclass_codec": {"codec"},
    "keyed": {"codec"},
    "typed_state": {"codec", "dataclass_codec", "errors", "keyed", "operator"},
    "runtime": {"_core", "errors", "operator", "runtime", "shared_writes", "typed_state"},
    "dora": {"_core", "errors", "location", "node_config", "runtime"},
    "futures": set(),
    "runs": set(),
    "traffic": {"errors", "futures", "runtime"},
    "host_thread": {"errors", "futures", "location", "runs", "runtime", "traffic"},
    "async_host": {"host_thread", "runtime", "traffic"},
    "host": {
        "async_host",
        "errors",
        "futures",
        "host_thread",
        "location",
        "operator",
        "runtime",
        "traffic",
    },
    "testing": {
        "codec",
        "errors",
        "host",
        "operator",
        "runtime",
        "store",
        "traffic",
        "typed_state",
    },
    "portable": {"errors"},
    "replacement": {"_core", "errors", "store"},
    "cli": {
        "_core",
        "cli",
        "codec",
        "dora",
        "errors",
        "location",
        "lockfile",
        "portable",
        "replacement",
        "run_record",
        "runtime",
        "store",
    },
    "observe": {"kvs", "runtime"},
    "__init__": {
        "async_host",
        "errors",
        "headers",
        "host",
        "kvs",
        "observe",
        "operator",
        "runtime",
        "started_in",
        "store",
        "traffic",
        "typed_state",
    },
    "__main__": {"cli"},
}
# Third-party modules, and who may import them.
OUTSIDE = {
    "click": {"cli"},
    "dora": {"dora"},
    "msgpack": {"cli", "codec", "portable", "runtime"},
    "numpy": {"cli", "codec", "runtime"},
    "pyarrow": {"dora", "runtime"},
    "tabulate": {"cli"},
    "yaml": {"dora", "node_config"},
}


def layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, absolute, wherever in the file it does so."""
    package = ["dora_state", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` names the module last.
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    mine = layer(path)
    assert mine in LAYERS, f"{mine} has no layer yet: give it one here and in docs/architecture.md"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "dora_state":
            target = rest.partition(".")[0]
            assert target in LAYERS[mine], f"{path.name} imports {name}: upwards or sideways"
        elif top in OUTSIDE:
            assert mine in OUTSIDE[top], f"{path.name} imports {name}, which is not its business"


def in_tables(document: str) -> set[str]:
    """What the first columns of a document's tables name."""
    cells = re.findall(r"^\| (`[^|]+) \|", (SOURCES / "docs" / document).read_text(), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_module_is_in_the_tables():
    """docs/architecture.md and docs/runtime.md say for each what it alone knows."""
    private = {"__init__", "__main__"}
    top = {layer(path) for path in MODULES} - private
    folders = {path.parent.name for path in MODULES if path.parent != PACKAGE}
    wanted = {f"{name}/" if name in folders else name for name in top}
    assert wanted - in_tables("architecture.md") == set()
    runtime = {path.name for path in (PACKAGE / "runtime").glob("*.py")} - {"__init__.py"}
    assert runtime - in_tables("runtime.md") == set()


def compiled() -> set[str]:
    """The files of the runtime that CMakeLists.txt has Cython compile."""
    (names,) = re.findall(r"foreach\(module ([^)]*)\)", (SOURCES / "CMakeLists.txt").read_text())
    return set(names.split())


def test_what_is_told_of_a_compiled_file_belongs_to_one():
    """A .pxd beside a file that is not compiled would say nothing, and nobody would see that."""
    runtime = PACKAGE / "runtime"
    assert {path.stem for path in runtime.glob("*.pxd")} <= compiled()
    assert compiled() <= {path.stem for path in runtime.glob("*.py")}
    for name in compiled():
        module = importlib.import_module(f"dora_state.runtime.{name}")
        assert not module.__file__.endswith(".py"), f"{name} is compiled, but not imported so"


def test_the_layers_have_no_cycle():
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"cycle: {' -> '.join([*above, name])}"
        for below in sorted(LAYERS[name] - {name}):
            visit(below, (*above, name))
        if name not in order:
            order.append(name)

    for name in LAYERS:
        visit(name, ())
    assert set(order) == set(LAYERS)


def test_the_test_sees_an_import_that_points_upwards(tmp_path, monkeypatch):
    """A check that cannot fail is worth nothing."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "runtime").mkdir()
    module = tmp_path / "runtime" / "worker.py"
    for line, name in [
        ("from dora_state import cli", "dora_state.cli"),
        ("from .. import kvs", "dora_state.kvs"),
        ("from ..kvs import kvs_read", "dora_state.kvs.kvs_read"),
        ("def f():\n    import dora_state.dora", "dora_state.dora"),
    ]:
        module.write_text(line)
        assert imports(module) == {name}
        with pytest.raises(AssertionError, match="upwards or sideways"):
            test_imports_point_downwards(module)


# The engine's headers, lowest first: a header includes only headers above it in this list, and a source file the header
# of its own name or the highest that it needs. csrc/README.md draws the same.
HEADERS = [
    "dora_state",
    "dora_state_api",
    "lifeline",
    "os",
    "os_call",
    "status",
    "crc32c",
    "hash",
    "lock",
    "sigbus",
    "format",
    "intact",
    "control",
    "index",
    "segment",
]
HEADERS += ["store", "log", "rebuild", "relocation", "salvage"]
# Tools that know nothing of a store: what they may include of ours.
TOOLS = {
    "status": {"status"},
    "crc32c": {"crc32c"},
    "hash": {"hash"},
    "os": {"os_call", "sigbus", "status"},
    "os_directory": {"os_call", "status"},
    "os_machine": {"os_call", "status"},
    "sigbus": {"sigbus"},
    "lock": {"lock", "os", "status"},
    "lifeline": {"lifeline", "status"},
    "format": {"format", "crc32c"},
    "intact": {"intact"},
    "control": {"control"},
    "index": {"index", "status"},
    "segment": {"segment", "sigbus", "status"},
}


def includes(path: Path) -> set[str]:
    return {Path(name).stem for name in re.findall(r'#\s*include\s*"([^"]+)"', path.read_text())}


@pytest.mark.parametrize(
    "path", sorted((SOURCES / "csrc").rglob("*.[ch]")), ids=lambda path: path.name
)
def test_the_engine_includes_downwards(path):
    if path.suffix == ".h":
        assert path.stem in HEADERS, (
            f"{path.name} has no layer yet: give it one here and in csrc/README.md"
        )
        allowed = set(HEADERS[: HEADERS.index(path.stem)])
    else:
        allowed = TOOLS.get(path.stem, set(HEADERS))
    assert includes(path) <= allowed, (
        f"{path.name} includes {sorted(includes(path) - allowed)}: upwards"
    )


def test_the_test_sees_an_include_that_points_upwards(tmp_path):
    for name in ("hash.c", "index.h"):
        path = tmp_path / name
        path.write_text('#include "store.h"\n')
        with pytest.raises(AssertionError, match="upwards"):
            test_the_engine_includes_downwards(path)


def test_the_engine_does_not_know_python():
    for path in (SOURCES / "csrc").rglob("*.[ch]"):
        assert not re.search(r"#\s*include\s*[<\"]Python\.h", path.read_text()), path


def test_the_binding_sees_only_the_public_header():
    for path in [*PACKAGE.glob("_core.p*x*"), *PACKAGE.glob("binding/*.pxi")]:
        for header in re.findall(r'cdef extern from [<"]([^>"]+)', path.read_text()):
            ours = (SOURCES / "csrc" / header).exists()
            assert not ours, f"{path.name} includes {header} instead of dora_state.h"


NEVER = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"}


def runs_what_it_reads(source: str) -> bool:
    """Could a file of a store that somebody has changed run code of his? Allowed is `allow_pickle=False`."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        if {name.partition(".")[0] for name in names} & NEVER:
            return True
        allows = isinstance(node, ast.keyword) and node.arg == "allow_pickle"
        if allows and not (isinstance(node.value, ast.Constant) and node.value.value is False):
            return True
    return False


def test_i29_nothing_is_ever_unpickled():
    for path in PACKAGE.rglob("*.py"):
        assert not runs_what_it_reads(path.read_text()), path
    for path in PACKAGE.rglob("*.p*x*"):
        assert not re.search(rf"import ({'|'.join(NEVER)})\b", path.read_text()), path


def test_the_test_sees_a_pickle():
    assert runs_what_it_reads("import pickle")
    assert runs_what_it_reads("def f():\n    from marshal import loads")
    assert runs_what_it_reads("numpy.load(file, allow_pickle=flag)")
    assert not runs_what_it_reads("numpy.load(file, allow_pickle=False)")
