from __future__ import annotations


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="the sizes of docs/benchmarks.md, for minutes"
    )
