"""Files: atomic under SIGKILL, refused in one sentence when they are not what they should be."""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import dqn_bt_atari
import pretrain_encoders
import pretrain_policy_atari
from housekeeping import checkpoints, files
from housekeeping.flags import InputError


def save_forever(path):
    counter = files.load(path, "test")["counter"] if path.exists() else 0
    while True:
        counter += 1
        files.save({"kind": "test", "counter": counter, "tensor": torch.from_numpy(np.full(500_000, counter))}, path)


def test_saving_survives_sigkill(tmp_path):
    """Kill a process that does nothing but save, 40 times at random moments: what is there is always one whole file,
    never an older one."""
    path, rng, last = tmp_path / "checkpoint.pt", random.Random(0), 0
    context = multiprocessing.get_context("fork")
    in_a_save = 0
    for _ in range(40):
        process = context.Process(target=save_forever, args=(path,), daemon=True)
        process.start()
        time.sleep(0.02 + 0.1 * rng.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        in_a_save += (tmp_path / ".checkpoint.pt.tmp").exists()
        if path.exists():
            payload = files.load(path, "test")
            assert payload["counter"] >= last and (payload["tensor"] == payload["counter"]).all()
            last = payload["counter"]
    assert last >= 40 and in_a_save >= 5  # it did save, and it was killed in the middle of saves


def test_load_says_what_is_wrong(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(InputError, match="no such file"):
        files.load(path, "encoder")
    files.save({"kind": "encoder", "numbers": torch.arange(1000)}, path)
    with pytest.raises(InputError, match="expected a file of the kind 'checkpoint', found 'encoder'"):
        files.load(path, "checkpoint")
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            files.load(path, "encoder")
    path.write_text("this is text")
    with pytest.raises(InputError, match="damaged"):
        files.load(path, "encoder")


def test_a_table_has_a_column_for_whatever_a_row_has(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"a": 1.23456, "b": "x, y"}, {"a": np.float64(2), "c": 3}], ".3g")
    assert (tmp_path / "a.csv").read_text() == 'a,b,c\n1.23,"x, y",\n2,,3\n'


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"kind": "encoder", "payload": RunsCode()}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match="damaged"):
        files.load(tmp_path / "bad.pt", "encoder")
    assert not (tmp_path / "was_run").exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        files.require_writable(tmp_path / "file" / "folder")


def test_a_disk_without_room_is_refused_before_the_work_starts(tmp_path):
    files.require_disk(tmp_path / "not" / "there", 1, "files", "make room")
    with pytest.raises(
        InputError, match=r"some: files need 1000000\.00 GB of disk, and \d+\.\d\d GB are free; make room\."
    ):
        files.require_disk(tmp_path / "some", 10**15, "files", "make room")
    assert not (tmp_path / "some").exists()


def work_there(folder, entered, leave):
    with files.lock(folder):
        entered.set()
        leave.wait(60)


def test_one_process_at_a_time_works_in_a_folder(tmp_path):
    """The second one waits for the first, and gets its turn also if the first is killed."""
    context = multiprocessing.get_context("fork")
    events = [context.Event() for _ in range(4)]
    first = context.Process(target=work_there, args=(tmp_path, *events[:2]), daemon=True)
    second = context.Process(target=work_there, args=(tmp_path, *events[2:]), daemon=True)
    first.start()
    assert events[0].wait(60)
    second.start()
    assert not events[2].wait(0.5)
    first.kill()
    assert events[2].wait(60)
    events[3].set()
    second.join(60)
    assert second.exitcode == 0


def test_runs_begun_in_one_second_get_folders_of_their_own(tmp_path):
    folders = [files.new_folder(tmp_path / "runs", "Pong__ppo__1") for _ in range(5)]
    assert len(set(folders)) == 5 and all(folder.is_dir() for folder in folders)
    assert 0 <= int(folders[0].name.removeprefix("Pong__ppo__1__")) - time.time() + 10 < 20
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        files.new_folder(tmp_path / "file", "Pong__ppo__1")


def test_flags_of_other_versions():
    """A flag that is new counts as its default; one that is gone is named."""

    @dataclass
    class Args:
        gamma: float = 0.99
        newer: int = 3

    assert checkpoints.saved_args("some.pt", Args, {"gamma": 0.9}) == Args(gamma=0.9, newer=3)
    checkpoints.require_same_settings(Path("some.pt"), {"gamma": 0.9}, Args(gamma=0.9), set())
    checkpoints.require_same_settings(Path("some.pt"), {"gamma": 0.9}, Args(gamma=0.9, newer=5), {"newer"})
    with pytest.raises(InputError, match="--gamma was 0.9, now 0.8; --newer was 3, now 5"):
        checkpoints.require_same_settings(Path("some.pt"), {"gamma": 0.9}, Args(gamma=0.8, newer=5), set())
    with pytest.raises(
        InputError,
        match="some.pt: another version of the script made it, which had --old-flag; open it with that version",
    ):
        checkpoints.saved_args("some.pt", Args, {"gamma": 0.9, "old_flag": 1})


@pytest.mark.parametrize("script", [dqn_bt_atari, pretrain_encoders, pretrain_policy_atari])
def test_scripts_of_one_process_refuse_torchrun(script, monkeypatch):
    script.check_args(script.Args())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"{script.__name__}.py trains in one process"):
        script.check_args(script.Args())
