"""What every script shares: JSON and paths as people and machines leave them, folders, locks, and how a script ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicitmeshnet import script as io
from implicitmeshnet.script import (
    HOST,
    InputError,
    atomic_path,
    check_path,
    core_count,
    locked,
    make_folder,
    read_json,
    reason,
    shorten,
)

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "create_phantom_dataset": ["--output_dir=out"],
    "create_config": ["--data_dir=in", "--out=a.json"],
    "create_shape_model": ["--input_dir=in", "--out=out"],
    "implicitmeshnet_eval": ["--implicitmeshnet_config=a.json", "--test_dir_in=in", "--test_dir_out=out"],
    "implicitmeshnet_train": ["--config=a.json"],
    "mmwhs_create_submission": ["out"],
    "pretrain_drn": ["--config=a.json"],
}
"""Arguments that each script takes; without them it ends before its slow imports."""


def run_main(body: str, *arguments, **options):
    """A process that calls run_script on a main() of that body, and is called tool.py."""
    code = f"import os, sys\nfrom implicitmeshnet.script import *\ndef main():\n    {body}\nsys.argv[0] = 'tool.py'\n"
    return subprocess.run(
        [sys.executable, "-c", f"{code}run_script(main)", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        **options,
    )


def test_a_quote_is_bounded_and_says_how_long_the_whole_is():
    assert shorten("short") == "short"
    assert shorten("x" * 200_000) == "x" * 300 + "... (200000 characters)"
    assert shorten([1, 2]) == "[1, 2]"


@pytest.mark.parametrize("error", [OSError(), OSError("odd"), OSError(28, "No space left on device"), ValueError()])
def test_a_reason_is_never_empty(error):
    assert reason(error) in {"OSError", "odd", "No space left on device", "ValueError"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_is_read_in_any_unicode_encoding_with_or_without_a_mark(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"Vorhöfe": ["é"]}'.encode(encoding))
    assert read_json(tmp_path / "a.json", "a config") == {"Vorhöfe": ["é"]}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "wanted a config in JSON, found an error: Expecting value"),
        (b"{", "wanted a config in JSON, found an error"),
        (b'{"a": "\xe9"}', "'utf-8' codec can't decode byte 0xe9"),
        (b"\xff\xfe{", "wanted a config in JSON, found an error: 'utf-16"),
        (b"[" * 200_000, "its brackets are nested too deep"),
        (b'{"a":' * 200_000, "its brackets are nested too deep"),
        (b'{"a": ' + b"1" * 200_000 + b"}", "wanted a config in JSON, found an error"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key c stands twice"),
        (b'{"' + b"k" * 10**5 + b'": 1, "' + b"k" * 10**5 + b'": 2}', "stands twice"),
        (b"[1]", "wanted a config, one JSON object, found list"),
        (b"null", "one JSON object, found NoneType"),
    ],
)
def test_what_is_no_json_object_is_one_short_sentence(tmp_path, data, sentence):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(InputError) as error:
        read_json(path, "a config")
    assert str(error.value).startswith(f"{path}: ")
    assert sentence in str(error.value)
    assert len(str(error.value)) < 800


def test_two_hundred_thousand_keys_are_read_as_they_are(tmp_path):
    tree = {str(number): number for number in range(200_000)}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    assert read_json(tmp_path / "a.json", "a config") == tree


@pytest.mark.parametrize("name", [".", "none.json", "a\0b", "x" * 300, "y/" * 3000, "\ud800"])
def test_what_cannot_be_read_is_one_short_sentence(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be read as a config \(.+\)") as error:
        read_json(tmp_path / name, "a config")
    assert len(str(error.value)) < 800


@given(st.text())
def test_a_path_passes_only_if_the_system_takes_it(name):
    """What does not is named in letters that can be printed."""
    try:
        os.stat(name)
        possible = True
    except OSError:
        possible = True
    except ValueError:  # a NUL, or a character that no file name can hold
        possible = False
    if possible:
        check_path(name, "data.dir")
    else:
        with pytest.raises(InputError, match=r"data\.dir: wanted a path") as error:
            check_path(name, "data.dir")
        str(error.value).encode()


@pytest.mark.parametrize("name", ["a\0", "\0", "\ud800x", "x/" * 10_000])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises(InputError, match=r"data\.dir: wanted a path that a file can have, found '") as error:
        check_path(name, "data.dir")
    assert len(str(error.value)) < 500


def test_a_name_of_any_bytes_passes():
    check_path(os.fsdecode(b"caf\xe9"), "data.dir")


def test_the_longest_name_that_a_file_can_have_is_written(tmp_path):
    name = "é" * 120 + ".nii.gz"  # 247 bytes
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_killed_process_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    killed.kill()
    killed.wait()
    gone = tmp_path / f".ct.nii.gz.partial-{HOST}-{killed.pid}-abcd_123.nii.gz"
    others = [
        tmp_path / f".ct.nii.gz.partial-elsewhere-{killed.pid}-abcd_123.nii.gz",
        tmp_path / ".notes.partial-x",
        tmp_path / "ct.nii.gz",
        tmp_path / f".ct.partial-{HOST}-1-abcd_123",
    ]
    for path in (gone, *others):
        path.write_text("half")
    with atomic_path(tmp_path / "ct.nii.gz") as temporary:
        make_folder(tmp_path, "--out")
        assert temporary.exists()
        assert not gone.exists()
        assert all(path.exists() for path in others)


def test_a_folder_is_made_and_left_empty(tmp_path):
    assert make_folder(tmp_path / "a/b [c]", "--out") == tmp_path / "a/b [c]"
    assert list((tmp_path / "a/b [c]").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that no user can write in, as /proc")
@pytest.mark.parametrize("name", ["/proc/self", "/proc/self/new"])
def test_a_folder_that_cannot_be_written_in_is_refused(name):
    with pytest.raises(InputError, match=rf"--out: {name} cannot be written to \(.+\)"):
        make_folder(name, "--out")
    with pytest.raises(InputError, match=rf"--out: {name} cannot be written to \(.+\)"), locked(name, "--out"):
        pass


def test_a_file_and_an_impossible_name_are_no_folders(tmp_path):
    (tmp_path / "file").touch()
    for hold in (make_folder, lambda *arguments: locked(*arguments).__enter__()):
        with pytest.raises(InputError, match="--out: wanted a folder, found the file"):
            hold(tmp_path / "file", "--out")
        with pytest.raises(InputError, match=r"--out: .*file/new cannot be written to \(Not a directory\)"):
            hold(tmp_path / "file/new", "--out")
        with pytest.raises(InputError, match="--out: wanted a path that a file can have"):
            hold("a\0b", "--out")
        with pytest.raises(InputError, match=r"--out: .*cannot be written to \(File name too long\)"):
            hold(tmp_path / ("x" * 300), "--out")


def test_a_held_folder_is_refused_to_a_second_and_free_again_afterwards(tmp_path):
    folder = tmp_path / "a/run"
    with locked(folder, "training.run_dir"):
        with (
            pytest.raises(InputError, match=rf"training\.run_dir: .*{folder} used by process {os.getpid()} on"),
            locked(folder, "training.run_dir"),
        ):
            pass
        (folder / "file").touch()
    with locked(folder, "training.run_dir"):
        pass
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_folders_made_for_nothing_are_removed_again(tmp_path):
    with locked(tmp_path / "a/b/run", "training.run_dir"):
        assert (tmp_path / "a/b/run").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_no_folder(tmp_path):
    code = "from implicitmeshnet.script import locked\n"
    code += f"with locked({str(tmp_path)!r}, 'x'):\n    print('held', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}\n    input()"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"used by process {holder.pid} on"), locked(tmp_path, "x"):
            pass
        holder.kill()
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path, "x"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(io.fcntl is None, reason="nothing is locked on Windows")
def test_a_lock_whose_file_its_last_holder_has_just_removed_is_none(tmp_path, monkeypatch):
    """Between opening and locking: else the next process would make a new file and hold that."""
    flock = io.fcntl.flock
    monkeypatch.setattr(io.fcntl, "flock", lambda *arguments: ((tmp_path / ".lock").unlink(), flock(*arguments)))
    with pytest.raises(InputError, match="used by another"), locked(tmp_path, "x"):
        pass


@pytest.mark.skipif(io.fcntl is None, reason="nothing is locked on Windows")
def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(io.fcntl, "flock", refuse)
    with locked(tmp_path, "x"):
        assert "cannot be locked (Function not implemented); let no second process use it" in capsys.readouterr().err


def test_the_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    code = "from implicitmeshnet.script import core_count; print(core_count())"
    if hasattr(os, "sched_getaffinity"):
        one = min(os.sched_getaffinity(0))
        run = subprocess.run(
            [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{one}]); {code}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout == "1\n"
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
        assert core_count() == 8
        for allotted, count in (("3", 3), ("64", 8), ("0", 1), ("", 8), ("many", 8)):
            monkeypatch.setenv("SLURM_CPUS_PER_TASK", allotted)
            assert core_count() == count
        monkeypatch.delenv("SLURM_CPUS_PER_TASK")
        monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert core_count() == 5


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ("raise InputError('data.dir: wanted a folder')", 2, b"tool.py: data.dir: wanted a folder\n"),
        (
            "raise InputError('a\\nb\\x1b[31m\\x7f: wanted a folder')",
            2,
            b"tool.py: a\\nb\\x1b[31m\\x7f: wanted a folder\n",
        ),
        ("open('/none/file')", 2, b"tool.py: /none/file: cannot be read or written (No such file or directory)\n"),
        ("raise OSError", 2, b"tool.py: a file: cannot be read or written (OSError)\n"),
        ("raise KeyboardInterrupt", 130, b"tool.py: interrupted\n"),
        ("print(os.fsdecode(b'caf\\xe9'))", 0, b""),
        ("print(sys.argv[1])", 0, b""),
        ("from tqdm import tqdm; tqdm.write(os.fsdecode(b'caf\\xe9'))", 0, b""),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_a_script_ends_with_one_line_and_a_status_whatever_the_name(body, status, sentence, encoding):
    run = run_main(body, os.fsdecode("ö".encode("latin-1")), env=os.environ | {"PYTHONIOENCODING": encoding})
    assert (run.returncode, run.stderr) == (status, sentence)
    if "print" in body or "write" in body:
        assert run.stdout in (b"caf\\udce9\n", b"\\udcf6\n")


def test_a_fault_of_our_own_keeps_its_traceback_and_a_status_of_its_own():
    run = run_main("1 / 0")
    assert run.returncode == 1
    assert b"Traceback" in run.stderr
    assert b"ZeroDivisionError" in run.stderr


def start_importing(tmp_path, script: str, interrupt):
    """A script that has come to import torch, and stays there; `interrupt` is what it finds set for Ctrl-C."""
    (tmp_path / "torch.py").write_text("import sys, time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "numpy.py").write_text((tmp_path / "torch.py").read_text())
    process = subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py", *SCRIPTS[script]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),
    )
    assert process.stdout.readline() == b"importing\n"
    return process


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_interrupt_during_the_imports_is_one_line(tmp_path, script):
    with start_importing(tmp_path, script, signal.SIG_DFL) as process:  # these tests may run where it is ignored
        process.send_signal(signal.SIGINT)
        assert process.communicate()[1] == f"{script}.py: interrupted\n".encode()
        assert process.returncode == 130


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As in the background of a shell script, where Ctrl-C is meant for others."""
    with start_importing(tmp_path, "pretrain_drn", signal.SIG_IGN) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
