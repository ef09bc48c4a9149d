"""Where what was downloaded and converted is kept."""

import sys
from pathlib import Path

import pytest

from causal_tracing.models.cache import CACHE_VARIABLE, cache_home


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_home() == tmp_path / "own"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_home() == tmp_path / "xdg" / "causal-tracing"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    places = {"linux": ".cache", "darwin": "Library/Caches", "win32": "local"}
    for platform, place in places.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_home() == tmp_path / place / "causal-tracing"
