"""What programs share: files that survive SIGKILL, flags, a run's folder, and refusals in one sentence."""

import importlib.util
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from test_ppo import events_of

import dqn_bt_atari
import ppo_e2e_atari
import pretrain_encoders
import pretrain_policy_atari
from housekeeping import checkpoints, files, flags
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
        before = path.stat().st_mtime_ns if path.exists() else None
        process = context.Process(target=save_forever, args=(path,), daemon=True)
        process.start()
        while not path.exists() or path.stat().st_mtime_ns == before:  # however busy the machine is, it saves once
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(0.1 * rng.random())
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
    with pytest.raises(InputError, match="this is a folder; name a file in it"):
        files.load(tmp_path, "encoder")
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

    assert checkpoints.saved_args(Args, {"gamma": 0.9}) == Args(gamma=0.9, newer=3)
    checkpoints.require_same_settings(Path("some.pt"), {"gamma": 0.9}, Args(gamma=0.9), set())
    checkpoints.require_same_settings(Path("some.pt"), {"gamma": 0.9}, Args(gamma=0.9, newer=5), {"newer"})
    with pytest.raises(InputError, match="--gamma was 0.9, now 0.8; --newer was 3, now 5"):
        checkpoints.require_same_settings(Path("some.pt"), {"gamma": 0.9}, Args(gamma=0.8, newer=5), set())
    gone = {"gamma": 0.9, "old_flag": 1}
    assert checkpoints.saved_args(Args, gone) == Args(gamma=0.9)  # an agent plays without it ...
    with pytest.raises(InputError, match="some.pt: another version of the script made it, which had --old-flag"):
        # ... and trains on with it only
        checkpoints.require_same_settings(Path("some.pt"), gone, Args(gamma=0.9), set())


@pytest.mark.parametrize("script", [dqn_bt_atari, pretrain_encoders, pretrain_policy_atari])
def test_scripts_of_one_process_refuse_torchrun(script, monkeypatch):
    script.check_args(script.Args())
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=f"{script.__name__}.py trains in one process"):
        script.check_args(script.Args())


# ---------------------------------------------------------------- flags and runs


@dataclass
class Parent:
    """Parent's things.

    More of it.
    """

    depth: int = 2
    """how deep,
    in metres"""
    kind: Literal["a", "b"] | None = None
    """which one"""


@dataclass
class Child(Parent):
    """Child's things"""

    sizes: tuple[int, ...] = (1, 2)
    """how large"""
    fast: bool = False
    """whether it hurries"""


def test_flags_of_a_family_of_classes(capsys):
    """Flat in the result, a group for each class in --help, the child's own first, with the texts below the fields."""
    found = flags.parse(Child, "what it does", argv=["--depth", "3", "--sizes", "4", "5", "6", "--fast"])
    assert found == Child(depth=3, kind=None, sizes=(4, 5, 6), fast=True)
    resumed = flags.parse(Child, None, default=Child(depth=9, kind="b", fast=True), argv=["--no-fast", "--kind", "a"])
    assert resumed == Child(depth=9, kind="a", sizes=(1, 2), fast=False)
    with pytest.raises(SystemExit) as ended:
        flags.parse(Child, "what it does", argv=["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    places = [
        shown.index(text) for text in ("what it does", "Child's things", "how large", "Parent's things", "which one")
    ]
    assert ended.value.code == 0 and places == sorted(places) and "More of it" not in shown
    assert "how deep, in metres (default: 2)" in shown
    with pytest.raises(SystemExit) as ended:
        flags.parse(Child, None, argv=["--depth", "deep"])
    assert ended.value.code == 2


def small_run(**changes) -> ppo_e2e_atari.Args:
    settings = {"num_envs": 2, "num_steps": 16, "total_timesteps": 64, "cuda": False, "precision": "float32"}
    return ppo_e2e_atari.Args(**{**settings, **changes})


def test_a_run_in_a_folder_of_ones_own(tmp_path, capsys):
    """--run-dir begins a run, goes on with it as --resume does, and ends at once where there is nothing left to do."""
    folder, constant = tmp_path / "mine", {"anneal_lr": False, "anneal_clip": False}
    assert ppo_e2e_atari.main(small_run(run_dir=str(folder), **constant)) == folder
    assert {"checkpoint.pt", "best.pt"} <= {path.name for path in folder.iterdir()}
    assert ppo_e2e_atari.main(small_run(run_dir=str(folder), total_timesteps=128, **constant)) == folder
    run = ppo_e2e_atari.main(small_run(runs_dir=str(tmp_path / "runs"), **constant))
    resumed = small_run(
        resume=str(run / "checkpoint.pt"), runs_dir=str(tmp_path / "runs"), total_timesteps=128, **constant
    )
    ppo_e2e_atari.main(resumed)
    mine, other = (files.load(path / "checkpoint.pt", "checkpoint") for path in (folder, run))
    assert mine["global_step"] == other["global_step"] == 128
    assert all(torch.equal(mine["agent"][key], other["agent"][key]) for key in mine["agent"])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        ppo_e2e_atari.main(small_run(run_dir=str(folder), total_timesteps=128, **constant))
    assert ended.value.code == 0 and "this run has done its 128 steps" in capsys.readouterr().out
    with pytest.raises(InputError, match="--gamma was 0.99, now 0.5"):
        ppo_e2e_atari.main(small_run(run_dir=str(folder), total_timesteps=256, gamma=0.5, **constant))
    with pytest.raises(InputError, match="--run-dir and --resume: give one of them"):
        ppo_e2e_atari.main(small_run(run_dir=str(folder), resume=str(run / "checkpoint.pt")))
    events = events_of(folder)
    assert [event.step for event in events.Scalars("charts/SPS")] == [32, 64, 96, 128]  # each once


def test_what_a_killed_attempt_logged_is_not_counted_twice(tmp_path, monkeypatch):
    """Killed before its first checkpoint, a run begins anew in its folder; what it had logged there is dropped."""
    folder = tmp_path / "mine"
    saved = files.save

    def killed(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        ppo_e2e_atari.main(small_run(run_dir=str(folder)))
    assert not (folder / "checkpoint.pt").exists()
    monkeypatch.setattr(files, "save", saved)
    ppo_e2e_atari.main(small_run(run_dir=str(folder)))
    events = events_of(folder)
    assert [event.step for event in events.Scalars("charts/SPS")] == [32, 64]


def test_a_second_process_waits_for_the_first(tmp_path):
    """One holds the folder of --run-dir; the other says so, and begins when the first has ended."""
    held = files.lock(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent.parent)!r}); "
        f"from housekeeping import files; files.lock({str(tmp_path)!r}); print('mine', flush=True)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert "waiting for another process" in other.stdout.readline()
    held.close()
    assert other.stdout.readline().strip() == "mine"
    assert other.wait(timeout=60) == 0


@pytest.mark.parametrize("resumes", [False, True])
def test_a_run_that_went_on_meanwhile_is_not_written_over(tmp_path, monkeypatch, resumes):
    """While one process waited for the folder, the other one saved: the first has read an older checkpoint, or none."""
    folder, lock = tmp_path / "mine", files.lock
    if resumes:
        ppo_e2e_atari.main(small_run(run_dir=str(folder)))

    def lock_when_another_has_saved(path):
        held = lock(path)
        files.save({"kind": "checkpoint", "global_step": 96}, folder / "checkpoint.pt")
        return held

    monkeypatch.setattr(files, "lock", lock_when_another_has_saved)
    where = {"resume": str(folder / "checkpoint.pt")} if resumes else {"run_dir": str(folder)}
    with pytest.raises(InputError, match="another process has brought this run to step 96 meanwhile"):
        ppo_e2e_atari.main(small_run(total_timesteps=128, **where))
    assert files.load(folder / "checkpoint.pt", "checkpoint") == {"kind": "checkpoint", "global_step": 96}


def test_a_run_dir_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(files, "open", refused, raising=False)
    with pytest.raises(InputError, match=r"cannot write here \(Permission denied\)"):
        ppo_e2e_atari.main(small_run(run_dir=str(tmp_path)))


def test_tracking_needs_its_package(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="--track needs the package wandb, which is not installed here: pip install wandb"
    ):
        ppo_e2e_atari.main(small_run(track=True, runs_dir=str(tmp_path / "runs")))
    assert list(tmp_path.iterdir()) == []
