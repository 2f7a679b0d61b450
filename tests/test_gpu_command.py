"""benchmarks/gpu.py: its parts, their limit and what it writes, with stand-ins for the parts; none needs a GPU."""

import json
import re
import subprocess
import sys

import gpu
import pytest
import torch
from host_kernels import ROOT


def part(name, shell, seconds=100.0):
    return gpu.Part(name, seconds, ["sh", "-c", shell])


def row(name, ms=1.5):
    return f"""echo '{json.dumps({"row": name, "ms": ms, "spread": 0.0, "host us": 3.0})}'"""


@pytest.fixture
def save(tmp_path):
    """Writes a report where `saved` says."""
    return lambda report: (tmp_path / "gpu.json").write_text(json.dumps(report))


def test_a_part_that_fails_is_told_and_takes_no_other_along(save, tmp_path, capsys):
    parts = [part("first", row("a")), part("tests", "echo one test failed; exit 3"), part("last", row("b", 2.5))]
    report = gpu.run_parts(parts, 100, save)
    assert gpu.failures(report) == ["tests: failed with status 3"]
    assert report["rows"] == {name: {"ms": ms, "spread": 0.0, "host us": 3.0} for name, ms in (("a", 1.5), ("b", 2.5))}
    assert report["parts"]["tests"]["output"] == ["one test failed"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == report
    assert "one test failed" in capsys.readouterr().out


def test_a_part_that_is_killed_is_told(save):
    report = gpu.run_parts([part("faulty", "kill -11 $$"), part("last", "true")], 100, save)
    assert gpu.failures(report) == ["faulty: failed with status -11"]


def test_rows_are_written_as_soon_as_they_are_measured(save, tmp_path):
    """The part waits for its own row to be in the file."""
    waits = f"until grep -q fast {tmp_path}/gpu.json 2>/dev/null; do sleep 0.05; done; echo seen"
    report = gpu.run_parts([part("first", f"{row('fast')}; {waits}")], 100, save)
    assert gpu.failures(report) == []
    assert report["parts"]["first"]["output"] == ["seen"]


@pytest.mark.parametrize(("limit", "own"), [(5.0, 1000.0), (1000.0, 5.0)])
def test_a_part_ends_at_its_limit_and_at_that_of_all(save, limit, own):
    """What it had measured is kept, and what it started ends too: otherwise its output would stay open."""
    parts = [part("endless", f"{row('a')}; sleep 1000 & sleep 1000", own), part("last", row("b"))]
    report = gpu.run_parts(parts, limit, save)
    last = "done" if own < limit else "left out: no time was left"
    assert [each["became"] for each in report["parts"].values()] == ["stopped after 5 s", last]
    assert list(report["rows"]) == (["a", "b"] if own < limit else ["a"])
    assert len(gpu.failures(report)) == (1 if own < limit else 2)


def test_without_time_all_is_left_out(save):
    report = gpu.run_parts([part("first", row("a"))], 0, save)
    assert gpu.failures(report) == ["first: left out: no time was left"]
    assert report["rows"] == {}


def test_what_is_worth_most_comes_first_and_all_fits_the_time_of_a_lease():
    parts = gpu.parts_of(["configs/some.json"])
    assert [each.name for each in parts] == ["build", "tests", *gpu.MEASURED, "step some"]
    assert next(iter(gpu.MEASURED)).startswith("mesh2sdf")
    assert gpu.LIMIT_S <= 570  # a call of ten minutes


@pytest.mark.parametrize("became", ["done", "failed with status 1"])
def test_the_status_is_that_of_the_parts(monkeypatch, tmp_path, capsys, became):
    """The whole command beside a GPU that is not there."""
    found = {"ms": 0.25, "spread": 0.01, "host us": 40.0}
    stand_in = row("mesh2sdf forward, 64^3", 0.25) + ("" if became == "done" else "; exit 1")
    monkeypatch.setattr(gpu, "check_machine", lambda builds: None)
    monkeypatch.setattr(gpu, "parts_of", lambda configs: [part("build", "true"), part("tests", stand_in)])
    properties = type("Properties", (), {"name": "a GPU", "multi_processor_count": 7})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(sys, "argv", ["gpu.py", f"--output={tmp_path / 'found.json'}"])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == (0 if became == "done" else 1)
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["rows"] == {"mesh2sdf forward, 64^3": found | {"spread": 0.0, "host us": 3.0}}
    assert written["parts"]["tests"]["became"] == became
    assert "mesh2sdf forward, 64^3" in capsys.readouterr().out.splitlines()[-3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present, where the command runs for minutes")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--limit_s=60", r"(torch|device|nvcc): wanted .*, found .*"),
        ("--leave_out=all", "--leave_out: wanted names of build, tests, .*, found all"),
    ],
)
def test_what_is_missing_or_wrong_is_told(option, said):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", option]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert re.fullmatch(rf"[^\n]*{said}\n", run.stderr)
