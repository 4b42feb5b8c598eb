"""Temporary files: gone after an error, after a signal, and, once a later run finds them, after a kill."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onnx_cbq.system import temporary
from onnx_cbq.system.temporary import remove_all, temporary_file, temporary_folder

HOLD = """
import sys, time
from pathlib import Path
from onnx_cbq.system.temporary import temporary_file, temporary_folder
with temporary_file(Path(sys.argv[1])) as file, temporary_folder(Path(sys.argv[2])) as folder:
    (folder / "part").write_text("half")
    print("there", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_nothing_stays_behind_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with temporary_file(tmp_path / "a"), temporary_folder(tmp_path / "b"):
            assert len(names(tmp_path)) == 2
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert not names(tmp_path)


def test_a_file_that_was_renamed_stays(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "a") as file:
        file.write_text("new")
        file.replace(tmp_path / "a")
    assert names(tmp_path) == ["a"]


def test_all_go_when_the_process_ends_at_once(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "a"), temporary_folder(tmp_path / "b") as folder:
        (folder / "part").write_text("half")
        remove_all()
        assert not names(tmp_path)


def test_what_a_kill_left_goes_with_the_next_run_and_what_is_in_use_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told apart by a lock, which ends with the process; files of others are never looked at."""
    monkeypatch.setattr(temporary, "_NEW", 0.0)
    (tmp_path / ".a.12345678.part").write_text("another's")
    (tmp_path / ".a.toolong789.onnx-cbq").write_text("not of this form")
    arguments = [sys.executable, "-c", HOLD, str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603, our own code
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        before = names(tmp_path)
        with temporary_file(tmp_path / "a"), temporary_folder(tmp_path / "b"):
            assert set(before) < set(names(tmp_path))
        assert names(tmp_path) == before
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == before
    with temporary_file(tmp_path / "a"), temporary_folder(tmp_path / "b"):
        pass
    assert names(tmp_path) == [".a.12345678.part", ".a.toolong789.onnx-cbq"]


def test_a_file_that_was_just_made_is_left_alone(tmp_path: Path) -> None:
    """Between making and locking it, its process has no lock yet."""
    with temporary_file(tmp_path / "a") as file:
        name = file.name
    (tmp_path / name).write_text("")
    with temporary_file(tmp_path / "a"):
        assert name in names(tmp_path)
    old = time.time() - 60
    os.utime(tmp_path / name, (old, old))
    with temporary_file(tmp_path / "a"):
        assert name not in names(tmp_path)


def test_a_name_as_long_as_can_be_has_a_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / ("ü" * 127)
    with temporary_file(target) as file:
        file.replace(target)
    assert names(tmp_path) == [target.name]


def test_a_folder_that_a_thread_still_writes_into_is_removed(tmp_path: Path) -> None:
    """Native code does not notice the end of a process: a file that comes while the folder is emptied keeps it."""
    stop = threading.Event()
    with temporary_folder(tmp_path / "beside") as folder:

        def write() -> None:
            for number in itertools.count():
                with contextlib.suppress(FileNotFoundError):
                    (folder / f"{number}.onnx").touch()
                if stop.wait(0.0005):
                    return

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.05)
        threading.Timer(0.1, stop.set).start()
        remove_all()
        assert not folder.exists()
        thread.join()
