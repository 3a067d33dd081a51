from __future__ import annotations

import signal

import pytest


def pytest_configure() -> None:
    """A job in the background, or under nohup, ignores signals, and so would all that the tests start.

    What has a handler here has the default in them.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path_factory, monkeypatch):
    """Records of runs go into a directory of the test, and nothing outside says where state is."""
    directory = tmp_path_factory.mktemp("run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    for name in ("DORA_STATE_DIR", "DORA_STATE_SHARED", "DORA_NODE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return directory
