"""Where a user's evidence is kept: a folder that follows from the system, or the one that the user says."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from onnx_cbq.errors import ConfigError
from onnx_cbq.system.user_cache import USUAL_SIZE, largest_folder, read_size, user_folder


def test_the_tests_themselves_leave_the_user_alone() -> None:
    assert os.environ["ONNX_CBQ_CACHE"] == "off"
    assert user_folder() is None


@pytest.mark.skipif(os.name == "nt", reason="homes are named otherwise")
def test_the_folder_is_that_of_the_system_or_the_named_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNX_CBQ_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = user_folder()
    assert found is not None
    assert found.is_relative_to(tmp_path)
    assert found.name == "onnx-cbq"
    monkeypatch.setenv("ONNX_CBQ_CACHE", "~/here")
    assert user_folder() == tmp_path / "here"
    monkeypatch.setenv("ONNX_CBQ_CACHE", "./off")
    assert user_folder() == Path("off")
    monkeypatch.setenv("ONNX_CBQ_CACHE", "~nobody-of-this-name/here")
    with pytest.raises(ConfigError, match="whose home is not known"):
        user_folder()
    assert not list(tmp_path.iterdir())


def test_without_a_home_nothing_is_kept_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a folder that is called `~`."""
    monkeypatch.delenv("ONNX_CBQ_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_, **__: Path("~/.cache/onnx-cbq"))
    assert user_folder() is None


def test_sizes_are_read_as_people_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [read_size(text) for text in ("12", "1.5k", "2MB", "3 GB", "0")] == [12, 1500, 2e6, 3e9, 0]
    for text in ("-1", "1e9", "2X", "", "G"):
        with pytest.raises(ValueError, match="expected a size"):
            read_size(text)
    assert largest_folder() == USUAL_SIZE
    monkeypatch.setenv("ONNX_CBQ_CACHE_SIZE", "2G")
    assert largest_folder() == 2e9
