"""What pyproject.toml says: commands that exist, one version, pins within the ranges; and the lazy Predictor."""

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from setuptools.config.pyprojecttoml import read_configuration

import implicitmeshnet
import implicitmeshnet_eval
from implicitmeshnet import commands
from implicitmeshnet.surfaces.files import ENCODERS

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = read_configuration(ROOT / "pyproject.toml")
PROJECT = CONFIGURATION["project"]
MODULES = CONFIGURATION["tool"]["setuptools"]["py-modules"]


def test_every_command_runs_a_script_that_is_installed(monkeypatch):
    ran = []
    monkeypatch.setattr(commands, "_run", ran.append)
    for target in PROJECT["scripts"].values():
        module, _, function = target.partition(":")
        assert module == commands.__name__
        getattr(commands, function)()
    assert sorted(ran) == sorted(MODULES)
    assert sorted(MODULES) == sorted(path.stem for path in ROOT.glob("*.py") if path.name != "setup.py")


def test_a_command_is_its_script(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["implicitmeshnet-eval", "--help"])
    with pytest.raises(SystemExit) as ended:
        commands.evaluate()
    assert ended.value.code == 0
    assert "--implicitmeshnet_config" in capsys.readouterr().out


def test_the_pins_lie_within_the_ranges():
    lines = (ROOT / "requirements.txt").read_text().split()
    pins = dict(line.lower().split("==") for line in lines)
    optional = PROJECT["optional-dependencies"]
    for text in PROJECT["dependencies"] + optional["formats"] + optional["dicom"] + optional["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[requirement.name.lower()])


def test_the_version_stands_in_one_place():
    version = PROJECT["version"]
    for name in ("setup.py", "CITATION.cff", "implicitmeshnet/__init__.py"):
        assert version not in (ROOT / name).read_text()


@pytest.mark.slow
def test_importing_the_package_imports_no_torch_until_the_predictor_is_asked_for():
    code = (
        "import sys, implicitmeshnet; assert 'torch' not in sys.modules;"
        "from implicitmeshnet import Predictor; assert 'torch' in sys.modules; print(Predictor.__module__)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "implicitmeshnet.predict\n"
    assert run.stderr == ""


def test_the_package_has_nothing_else():
    with pytest.raises(AttributeError, match="has no attribute 'Predict'"):
        _ = implicitmeshnet.Predict


def test_the_evaluation_offers_every_format_of_meshes():
    assert [f".{name}" for name in implicitmeshnet_eval.MESH_FORMATS] == list(ENCODERS)


@pytest.mark.parametrize("script", MODULES)
def test_help_comes_before_the_slow_imports(script):
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        f"try: runpy.run_module({script!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit: assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.startswith("usage: ")
