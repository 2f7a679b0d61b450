"""Evaluations that are shared out, cut short and gone on with: nothing lost, nothing done twice, the same tables."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from formats import grids, phantom, untrained, write_input
from scripts import ROOT, call, run

import implicitmeshnet_eval
from implicitmeshnet.data.dataset import Case
from implicitmeshnet.jobs import ahead, in_processes
from implicitmeshnet.records import Records
from implicitmeshnet.script import InputError

SIDE = 14
NAMES = ["a", "a_b", "b", "c"]  # files of a_b begin like those of a
TABLES = ("metrics.csv", "statistics.csv", "statistics.json", "report.html")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """An untrained network's config and four small cases, the first labelled."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "in").mkdir()
    data = phantom(SIDE)
    labels = (data > 150) * np.int16(500) - (data > 550) * np.int16(80)
    image = write_input(folder, "nii.gz", data, grids(SIDE)["oblique"]).read_bytes()
    for name in NAMES:
        (folder / f"in/{name}_image.nii.gz").write_bytes(image)
    write_input(folder, "nii.gz", labels, grids(SIDE)["oblique"]).rename(folder / "in/a_label.nii.gz")
    return SimpleNamespace(folder=folder, config=untrained(folder))


def arguments_of(project, out, *options) -> list[str]:
    source = project.folder / "in"
    return [f"--implicitmeshnet_config={project.config}", f"--input={source}", f"--output={out}", *options]


def command_of(project, out, *options) -> list[str]:
    """The script in a process of its own."""
    script = str(ROOT / "implicitmeshnet_eval.py")
    return [sys.executable, script, *arguments_of(project, out, "--device=cpu", *options)]


def evaluate(project, out, *options) -> None:
    call(implicitmeshnet_eval, *arguments_of(project, out, "--device=cpu", *options))


def tables(out) -> list[object]:
    """What all tables and the report say, but for the seconds and what they were made with."""
    found: list[object] = []
    for name in TABLES[:2]:
        rows = list(csv.DictReader((out / name).open()))
        found.append([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    tree = json.loads((out / TABLES[2]).read_text())
    for case in tree["cases"]:
        del case["seconds"], case["phases"]
    page = (out / TABLES[3]).read_text()
    report = json.loads(page.split('id="report">', 1)[1].split("</script>", 1)[0])
    for case in report["cases"]:
        del case["seconds"]
    blobs = re.findall(r'<script type="text/plain" id="[^"]+">[^<]+', page)
    return [*found, tree, report["cases"], report["failed"], blobs]


def times(out) -> dict[str, int]:
    """When each case's files were written, by name."""
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.name not in (*TABLES, ".records")}


@pytest.fixture(scope="module")
def whole(project, tmp_path_factory):
    """The folder of an evaluation that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    evaluate(project, out)
    return out


def copied(whole, out):
    """A copy of a folder with the files' times."""
    subprocess.run(["cp", "-a", str(whole), str(out)], check=True)
    return out


def test_a_second_run_does_nothing_again_and_says_the_same(project, whole, tmp_path, capsys):
    out = copied(whole, tmp_path / "out")
    before = times(out)
    evaluate(project, out)
    assert times(out) == before
    assert tables(out) == tables(whole)
    assert "4 of 4 cases are finished" in capsys.readouterr().out
    assert {"read", "network", "repair", "label maps", "write", "preview"} <= set(
        json.loads((out / "statistics.json").read_text())["cases"][0]["phases"]
    )


def test_overwrite_does_every_case_again(project, whole, tmp_path):
    out = copied(whole, tmp_path / "out")
    before = times(out)
    evaluate(project, out, "--overwrite")
    after = times(out)
    assert set(after) == set(before)
    assert not [name for name, time in after.items() if time == before[name]]


def case_of(name: str) -> str:
    """The case whose file has this name."""
    return name[: re.search("_(LV_|LA_)?(mesh|unet|preview)", name).start()]


def files_of(out, case: str) -> set[str]:
    """The names of a case's files, that of the report's page of it among them."""
    pattern = re.compile(rf"{case}(_(LV_|LA_)?(mesh|unet|preview).*|\.page)")
    return {path.name for path in out.rglob("*") if pattern.fullmatch(path.name)}


def redone_after(project, whole, out) -> set[str]:
    """The cases whose files a run into a folder writes anew; it then has the tables of an undisturbed one."""
    before = times(out)
    evaluate(project, out)
    assert tables(out) == tables(whole)
    after = times(out)
    return {case_of(name) for name in after if after[name] != before.get(name)}


@pytest.mark.parametrize("change", ["a file is gone", "a file is shorter", "no record", "half a record"])
def test_what_is_no_longer_whole_is_done_again_and_nothing_else(project, whole, tmp_path, change):
    out = copied(whole, tmp_path / "out")
    if change == "a file is gone":
        (out / "b_preview.png").unlink()
    elif change == "a file is shorter":
        os.truncate(out / "b_LV_mesh.ply", 100)
    elif change == "no record":
        (out / ".records/b.json").unlink()
    else:
        os.truncate(out / ".records/b.json", 100)
    assert redone_after(project, whole, out) == {"b"}


@pytest.mark.parametrize(("change", "redone"), [("in/b_image.nii.gz", {"b"}), ("weights.pt", set(NAMES))])
def test_what_was_made_of_other_files_is_done_again(project, whole, tmp_path, change, redone):
    out = copied(whole, tmp_path / "out")
    path = project.folder / change
    content = path.read_bytes()
    state = path.stat()
    path.write_bytes(content + b"\0")
    try:
        assert redone_after(project, whole, out) == redone
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_other_options_write_all_again_and_leave_nothing_of_before(project, whole, tmp_path):
    out = copied(whole, tmp_path / "out")
    evaluate(project, out, "--mesh_format=stl", "--structures=LV")
    meshes = sorted(path.name for path in out.glob("*_mesh.*"))
    assert meshes == sorted(f"{name}_mesh.stl" for name in NAMES)


def test_shards_together_give_the_tables_of_one_run(project, whole, tmp_path):
    out = tmp_path / "out"
    evaluate(project, out, "--shard=2/3")
    assert [case["case"] for case in json.loads((out / "statistics.json").read_text())["cases"]] == ["a_b"]
    for part in ("3/3", "1/3"):
        evaluate(project, out, f"--shard={part}")
    assert tables(out) == tables(whole)
    assert set(times(out)) == set(times(whole))


def test_shards_at_the_same_time_give_the_tables_of_one_run(project, whole, tmp_path):
    out = tmp_path / "out"
    commands = [command_of(project, out, f"--shard={number}/2") for number in (1, 2)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    assert [process.wait() for process in processes] == [0, 0]
    assert tables(out) == tables(whole)
    assert set(times(out)) == set(times(whole))


def test_an_interrupt_ends_all_processes_and_what_is_finished_stays(project, whole, tmp_path):
    out = tmp_path / "out"
    command = command_of(project, out, "--jobs=2")
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's background ignores
    )
    while not records_of(out):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    message = process.communicate()[1].decode()
    assert process.returncode == 130
    assert message.endswith("interrupted\n")
    assert "Traceback" not in message
    assert not running_with(out)
    assert not list(out.rglob("*.partial-*"))
    finished = records_of(out)
    evaluate(project, out)
    assert finished.items() <= records_of(out).items()
    assert tables(out) == tables(whole)


def running_with(out) -> list[str]:
    """The processes that have a folder in their command line."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if f"--output={out}" in line]


def test_two_jobs_give_the_tables_and_files_of_one(project, whole, tmp_path, capfd):
    out = tmp_path / "out"
    evaluate(project, out, "--jobs=2")
    assert tables(out) == tables(whole)
    assert set(times(out)) == set(times(whole))
    assert not list(out.rglob("*.partial-*"))
    assert "4 of 4 cases written" in capfd.readouterr().out


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(project, tmp_path, capsys, shard):
    assert run("implicitmeshnet_eval.py", *arguments_of(project, tmp_path / "out", f"--shard={shard}")) == 2
    assert "wanted I/N with I from 1 to N" in capsys.readouterr().err


def test_quiet_prints_nothing_but_what_fails(project, tmp_path, capfd):
    evaluate(project, tmp_path / "out", "--quiet", "--shard=1/4")
    assert capfd.readouterr() == ("", "")


def test_a_case_that_failed_is_named_in_the_tables_of_the_others_and_tried_again(project, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    whole_file = (project.folder / "in/b_image.nii.gz").read_bytes()
    (folder / "a_image.nii.gz").write_bytes(whole_file[:-100])
    (folder / "b_image.nii.gz").write_bytes(whole_file)
    (tmp_path / "out").mkdir()
    arguments = [f"--implicitmeshnet_config={project.config}", f"--input={folder}", f"--output={tmp_path / 'out'}"]
    assert run("implicitmeshnet_eval.py", *arguments, "--shard=1/2") == 2
    assert "1 of 1 cases failed" in capsys.readouterr().err
    call(implicitmeshnet_eval, *arguments, "--shard=2/2")
    tree = json.loads((tmp_path / "out/statistics.json").read_text())
    assert list(tree["failed"]) == ["a"]
    assert [case["case"] for case in tree["cases"]] == ["b"]
    (folder / "a_image.nii.gz").write_bytes(whole_file)
    call(implicitmeshnet_eval, *arguments)
    tree = json.loads((tmp_path / "out/statistics.json").read_text())
    assert tree["failed"] == {}
    assert [case["case"] for case in tree["cases"]] == ["a", "b"]


@pytest.fixture
def damaged(project):
    """The image of the case b, cut off for a test."""
    path = project.folder / "in/b_image.nii.gz"
    content = path.read_bytes()
    state = path.stat()
    path.write_bytes(content[:-100])
    yield path
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_case_whose_new_image_fails_leaves_no_file_of_its_old_one_and_all_else(project, whole, tmp_path, damaged):
    out = copied(whole, tmp_path / "out")
    (out / "b_LV_corrected_mesh.ply").touch()  # the user's own
    before = times(out)
    assert run("implicitmeshnet_eval.py", *arguments_of(project, out)) == 2
    assert {name: time for name, time in before.items() if name not in files_of(whole, "b")} == times(out)
    assert not files_of(out, "b")
    tree = json.loads((out / "statistics.json").read_text())
    assert list(tree["failed"]) == ["b"]
    assert [case["case"] for case in tree["cases"]] == ["a", "a_b", "c"]


FAILURES = {"for want of memory": MemoryError(), "by a fault of ours": ValueError("ours")}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("place", ["evaluate_case", "rows_of"])  # before the files are written, and after
def test_however_a_case_fails_it_leaves_no_files(project, whole, tmp_path, monkeypatch, capsys, failure, place):
    out = copied(whole, tmp_path / "out")

    def fail(*_):
        raise FAILURES[failure]

    monkeypatch.setattr(implicitmeshnet_eval, place, fail)
    with pytest.raises((InputError, SystemExit)):
        evaluate(project, out, "--overwrite", "--shard=3/4")
    assert not files_of(out, "b")
    assert files_of(out, "c") == files_of(whole, "c")


def test_one_item_is_read_ahead_and_no_more():
    read: list[int] = []
    done = {number: threading.Event() for number in range(4)}

    def reading(number: int) -> int:
        read.append(number)
        done[number].set()
        return number * 10

    taken = []
    for number, take in ahead(range(4), reading):
        if number < 3:
            assert done[number + 1].wait(5)
        assert read == list(range(min(number + 2, 4)))
        taken.append(take())
    assert taken == [0, 10, 20, 30]


def test_what_reading_raises_comes_with_its_own_item():
    def reading(number: int) -> float:
        return 1 / number

    found = []
    for number, take in ahead([1, 0, 2], reading):
        try:
            found.append((number, take()))
        except ZeroDivisionError:
            found.append((number, None))
    assert found == [(1, 1.0), (0, None), (2, 0.5)]


SERVER = """
import os, signal, sys
sys.path.insert(0, {root!r})
from implicitmeshnet.jobs import Outcome, serve

def work(cases):
    for case in cases:
        if case.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        print("what a library says")
        yield Outcome(case, warnings=(os.environ["OMP_NUM_THREADS"],))

serve(work)
"""


def test_a_process_that_is_killed_costs_its_case_alone():
    cases = [Case(name, Path(name), None) for name in ("x", "deadly", "y", "z", "w")]
    command = [sys.executable, "-c", SERVER.format(root=str(ROOT))]
    outcomes = {outcome.case.name: outcome for outcome in in_processes(command, cases, 2)}
    assert sorted(outcomes) == sorted(case.name for case in cases)
    assert [name for name, outcome in outcomes.items() if outcome.failed] == ["deadly"]
    assert "killed by signal 9" in outcomes["deadly"].failed


def test_a_record_of_another_program_or_none_at_all_counts_nothing(tmp_path):
    image = tmp_path / "a.nii.gz"
    image.write_bytes(b"1")
    case = Case("a", image, None)
    (tmp_path / "a_mesh.ply").write_bytes(b"2")
    records = Records(tmp_path, "settings")
    assert not records.is_finished(case)
    records.add(case, ["a_mesh.ply"], [{"volume_ml": float("nan")}], {"read": 1.0})
    assert records.is_finished(case)
    assert np.isnan(records.of(case).rows[0]["volume_ml"])
    assert not Records(tmp_path, "others").is_finished(case)
    (tmp_path / ".records/a.json").write_text('{"key": 1, "unknown": 2}')
    assert not records.is_finished(case)


def test_what_a_killed_run_had_written_goes_when_the_case_is_begun_with_other_options(tmp_path):
    case = Case("a", tmp_path / "a.nii.gz", None)
    Records(tmp_path, "stl").begin(case, ["a_mesh.stl", "a_seg.dcm"])
    for name in ("a_mesh.stl", "a_mesh_of_mine.stl"):
        (tmp_path / name).touch()
    records = Records(tmp_path, "ply")
    records.begin(case, ["a_mesh.ply"])
    assert not records.is_finished(case)
    assert {path.name for path in tmp_path.iterdir()} == {".records", "a_mesh_of_mine.stl"}


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_at_random_and_run_again_nothing_is_lost_and_nothing_done_twice(project, tmp_path, jobs):
    """Over 20 cases."""
    many = SimpleNamespace(folder=tmp_path, config=project.config)
    (tmp_path / "in").mkdir()
    for number in range(20):
        (tmp_path / f"in/{number}_image.nii.gz").symlink_to(project.folder / "in/b_image.nii.gz")
    whole = tmp_path / "whole"
    evaluate(many, whole)
    out = tmp_path / "out"
    seed = random.Random(jobs)
    command = command_of(many, out, f"--jobs={jobs}")
    finished: dict[str, int] = {}
    kills = 0
    for _ in range(60):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (kills < 8 and later(out, finished, seed)):
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        status = process.wait()
        time.sleep(0.3)  # in which its processes end too
        for name, written in finished.items():
            assert (out / ".records" / name).stat().st_mtime_ns == written  # it was not done again
        finished = records_of(out)
        if status == 0:
            break
    assert status == 0
    assert kills >= 3
    assert tables(out) == tables(whole)
    assert set(times(out)) == set(times(whole))
    assert not list(out.rglob("*.partial-*"))


def records_of(out) -> dict[str, int]:
    """When the records of finished cases were written, by name."""
    written: dict[str, int] = {}
    for path in (out / ".records").glob("[!.]*.json"):
        if json.loads(path.read_text())["rows"]:
            written[path.name] = path.stat().st_mtime_ns
    return written


def later(out, finished: dict[str, int], seed: random.Random) -> bool:
    """Whether it is time to kill: a file of a case that is not finished has been written, and a die says so."""
    started = {path.name for path in out.glob("*_mesh*")} if out.exists() else set()
    return len(started) > 4 * len(finished) and seed.random() < 0.1
