from __future__ import annotations


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=200, help="passes over all keys to time")
