"""The documents that say where things are name every file, and no file that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2]
PACKAGE = SOURCES / "src" / "dora_state"
ENGINE = SOURCES / "csrc"


def section(document: str, title: str) -> str:
    """What stands below a heading, to the next one of its level."""
    text = (SOURCES / document).read_text()
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found


def first_column(text: str) -> set[str]:
    """The `names` in the first cell of each row of the tables."""
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.M)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def files(folder: Path, *patterns: str) -> set[str]:
    found = {path.name for pattern in patterns for path in folder.glob(pattern)}
    assert found, folder
    return found


def stems(names: Iterable[str]) -> set[str]:
    """A source file and its header are one place."""
    return {Path(name).stem for name in names}


def modules() -> set[str]:
    """The modules and folders of the package, as docs/architecture.md writes them."""
    folders = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    named = {path.stem for path in PACKAGE.glob("*.p*y*")} | folders
    return {name for name in named if not name.startswith("__")}


MAPS = {
    "the modules": lambda: (
        first_column(section("docs/architecture.md", "Layers, and the one rule")),
        modules(),
    ),
    "the engine": lambda: (
        first_column(section("docs/architecture.md", "The engine")),
        {path.stem for path in ENGINE.rglob("*.c")},
    ),
    "the engine's reading order": lambda: (
        stems(re.findall(r"[\w/]+\.[ch]\b", (ENGINE / "README.md").read_text())) - {"Python"},
        stems(files(ENGINE, "*.[ch]", "include/*.h")),
    ),
    "the runtime": lambda: (
        first_column(section("docs/runtime.md", "Processes")),
        files(PACKAGE / "runtime", "*.py") - {"__init__.py"},
    ),
    "the binding": lambda: (
        set(re.findall(r'^include "binding/(.*)"', (PACKAGE / "_core.pyx").read_text(), re.M)),
        files(PACKAGE / "binding", "*"),
    ),
    "the folders": lambda: (
        set(re.findall(r"^\| \[`([\w-]+)/`\]", section("README.md", "Map"), re.M)),
        {path.name for path in SOURCES.iterdir() if is_ours(path)} - {"src", "examples"},
    ),
    "the examples": lambda: (
        set(re.findall(r"^\| \[`examples/([\w-]+)/`\]", section("README.md", "Map"), re.M)),
        {path.name for path in (SOURCES / "examples").iterdir() if is_ours(path)},
    ),
    "the documents": lambda: (
        set(re.findall(r"\]\(docs/([\w-]+\.md)\)", section("README.md", "Map"))),
        files(SOURCES / "docs", "*.md"),
    ),
    "the tests": lambda: (
        first_column((SOURCES / "CONTRIBUTING.md").read_text()),
        {
            f"tests/{path.name}"
            for path in (SOURCES / "tests").iterdir()
            if is_ours(path) or (path.suffix == ".py" and path.name != "conftest.py")
        },
    ),
}


def is_ours(path: Path) -> bool:
    """A folder of sources, neither hidden nor built."""
    built = {"build", "dist", "out", "wheelhouse", "__pycache__"}
    return path.is_dir() and path.name not in built and not path.name.startswith(".")


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_complete_and_true(name):
    named, there = MAPS[name]()
    assert there - named == set(), "not on the map"
    assert named - there == set(), "on the map, but not there"


def test_each_word_that_is_read_without_a_lock_has_its_order_and_its_reason():
    table = section("csrc/README.md", "Lock-free words and their orders")
    rows = [line[1:-1].split("|") for line in table.splitlines() if line.startswith("| ")][2:]
    assert [row for row in rows if len(row) != 6 or not row[5].strip()] == []
    named = {word for row in rows for word in re.findall(r"\w+", row[0])}
    for path in [*ENGINE.glob("*.h"), *ENGINE.glob("*.c")]:
        if path.name == "lifeline.c":  # a library of its own
            continue
        text = re.sub(r"#ifdef DS_FAULTS.*?#endif", "", path.read_text(), flags=re.S)
        for kind in (
            r"_Atomic(?:\([^)]*\)| \w+)",
            r"atomic_(?!signal|thread)[a-z]\w*(?<!_explicit)",
        ):
            pattern = rf"^ *(?:_Alignas\(64\) )?(?:static |extern )?{kind} ([\w, *\[\]]+);"
            for words in re.findall(pattern, text, re.M):
                for word in re.findall(r"\w+", re.sub(r"\[\w+\]", "", words)):
                    # The clocks of tests, and locals.
                    if not word.endswith("_shift_ns") and word != "word":
                        assert word in named, f"{path.name}: {word}"


@pytest.mark.parametrize("document", ["INVARIANTS.md", "REGRESSIONS.md"])
def test_what_is_said_to_hold_a_promise_is_there(document):
    """Tests by their names, the programs and files they are in, and the seeded bugs."""
    tests = SOURCES / "tests"
    sources = [path for end in ("c", "py", "pml") for path in tests.rglob(f"*.{end}")]
    there = "\n".join(path.read_text() for path in sources) + " ".join(
        path.stem for path in sources
    )
    rows = re.findall(
        r"^\| (?!bug|---|\| promise).*\| (.*) \|$", (tests / document).read_text(), re.M
    )
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b|\b[a-z]+(?:-[a-z0-9]+){2,}\b", row)
        for name in names:
            assert name in there, f"{name}: {row}"
        for path in re.findall(r"`([\w/]+\.py)`", row):
            assert (tests / path).exists(), path


def test_each_invariant_has_a_test_of_its_number():
    tests = SOURCES / "tests"
    there = "\n".join(path.read_text() for end in ("c", "py") for path in tests.rglob(f"*.{end}"))
    rows = re.findall(r"^\| I(\d+) \|.*\| (.*) \|$", (tests / "INVARIANTS.md").read_text(), re.M)
    assert sorted(int(number) for number, _ in rows) == list(range(1, 38))
    for number, row in rows:
        names = re.findall(rf"\b(?:test_)?(i{number}_\w*)", row)
        assert names, f"I{number} names no test of its number"
        for name in names:
            assert re.search(rf"(def test_|static void |{{\"){name}", there), name


LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")
FOLDERS = (".", "csrc", "docs", "examples/*", "tests")
DOCUMENTS = sorted(path for folder in FOLDERS for path in SOURCES.glob(f"{folder}/*.md"))


def anchors(document: Path) -> set[str]:
    """The headings, as they are linked to."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(SOURCES)))
def test_every_link_leads_somewhere(document):
    for target, anchor in LINK.findall(document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
