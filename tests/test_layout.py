"""DESIGN: who may import whom; importing builds nothing and prints nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = set(sys.stdlib_module_names)
MODULES = sorted((ROOT / "implicitmeshnet").rglob("*.py"))
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if path.name != "setup.py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                names.add(f"{node.module}.{alias.name}" if submodule.with_suffix(".py").exists() else node.module)
    return names


def third_party(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - STANDARD


def test_ops_import_coordinates_and_torch_only():
    for path in (ROOT / "implicitmeshnet" / "ops").glob("*.py"):
        assert third_party(path) <= {"torch", "implicitmeshnet"}
        own = {name for name in imports(path) if name.startswith("implicitmeshnet.")}
        assert all(name.startswith(("implicitmeshnet.ops", "implicitmeshnet.coordinates")) for name in own), path


def test_config_imports_the_standard_library_only():
    assert third_party(ROOT / "implicitmeshnet" / "config.py") == {"implicitmeshnet"}
    assert third_party(ROOT / "implicitmeshnet" / "io.py") == set()


@pytest.mark.parametrize(("library", "owners"), [
    ("nibabel", {"nifti.py", "volume.py"}),  # files; orientations
    ("matplotlib", {"figures.py"})])
def test_a_library_has_few_users(library, owners):
    users = {path.name for path in MODULES + SCRIPTS if library in third_party(path)}
    assert users == owners


def test_scripts_import_no_script():
    scripts = {path.stem for path in SCRIPTS}
    for path in SCRIPTS + MODULES:
        assert not third_party(path) & scripts


def test_the_package_has_no_import_circles():
    graph = {}
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        graph[name] = imports(path)
    done, active = set(), []

    def visit(name):
        assert name not in active, f"circle: {active} -> {name}"
        if name not in done:
            active.append(name)
            for target in sorted(graph[name] & set(graph) - {name}):
                visit(target)
            active.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_importing_is_silent():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES if path.stem != "__init__"]
    code = "; ".join(f"import {name}" for name in modules)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout + run.stderr == ""
