from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import tombola as tb

DATA_ROOT = os.environ.get("TOMBOLA_DATA", "")  # as it is before any test takes it away

settings.register_profile("any machine", deadline=None)  # how long an example takes says nothing on a busy one
settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tb.Store]:
    with tb.Store(tmp_path / "runs") as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[tb.Store]:
    with tb.Store(tmp_path / "other") as opened:
        yield opened


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The places of each pass that trains several nets, as passes begin."""
    from together_tools import count_passes

    return count_passes(monkeypatch)


@pytest.fixture
def data_root() -> Path:
    """Where real data are, for tests marked ``data``."""
    return Path(DATA_ROOT)


@pytest.fixture
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither environment nor user's files say where data are."""
    for name in ("TOMBOLA_DATA", "TOMBOLA_CONFIG", "TOMBOLA_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "etc" / name)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-long", action="store_true", help="also run the experiments of minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "long" in item.keywords and not config.getoption("--run-long"):
            item.add_marker(pytest.mark.skip(reason="an experiment of minutes: pytest --run-long"))
        if "data" in item.keywords and not DATA_ROOT:
            item.add_marker(pytest.mark.skip(reason="TOMBOLA_DATA doesn't name a data root"))
