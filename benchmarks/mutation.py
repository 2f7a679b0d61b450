"""How much the tests notice: one small fault at a time in a module, and whether the tests fail.

    pip install cosmic-ray==8.7.0
    python benchmarks/mutation.py [volume dataset losses labelmap metrics repair] [--sample 60] [--show]

The faults are cosmic-ray's: a number one larger or smaller, an operator or comparison replaced by its neighbour, a
condition negated, a loop left out. Type annotations are left alone. Of a module's faults a random sample is taken, the
same each time. Every fault is put into a copy of the repository, and meets the module's own tests first, then some
beside it; a run that takes far longer than without it counts as a failure. --show prints each fault that no test
notices as a diff.
"""

import argparse
import ast
import difflib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

REPOSITORY = Path(__file__).resolve().parents[1]
MEMORY_BYTES = 12 * 2**30  # that a run may take: some faults ask for arrays without end
PRELOADED = (
    "hypothesis.strategies",
    "matplotlib.pyplot",
    "nibabel",
    "scipy.ndimage",
    "scipy.sparse",
    "scipy.spatial",
    "SimpleITK",
    "skimage.measure",
    "torch",
    "trimesh",
)
"""What takes seconds to import. It is imported once, and each run starts as a fork."""

NEIGHBOURS = {
    "Add": ("Sub",),
    "Sub": ("Add",),
    "Mul": ("Div",),
    "Div": ("Mul",),
    "FloorDiv": ("Mul",),
    "Mod": ("Mul",),
    "Pow": ("Mul",),
    "BitOr": ("BitAnd",),
    "BitAnd": ("BitOr",),
    "BitXor": ("BitOr",),
    "Eq": ("NotEq",),
    "NotEq": ("Eq",),
    "Lt": ("LtE", "GtE"),
    "LtE": ("Lt", "Gt"),
    "Gt": ("GtE", "LtE"),
    "GtE": ("Gt", "Lt"),
    "Is": ("IsNot",),
    "IsNot": ("Is",),
}
"""What an operator is replaced by. Cosmic-ray knows all pairs; most of them fail wherever the line is run at all."""


@dataclass(frozen=True)
class Module:
    """A module and the arguments of pytest that test it."""

    path: str
    own: tuple[str, ...]
    beside: tuple[str, ...] = ()


SUBMISSION = "tests/test_submission.py"
OF_LABEL_MAPS = (
    "ball or grid or mesh_cut or bad_files or overlap or nested or holds or enclosed or no_meshes or empty or neighbour"
)
OF_LABEL_MAPS += " or masks or millimetres or origin"
"""The tests of tests/test_labelmap.py that are not of mesh files alone."""
MODULES = {
    "volume": Module(
        "implicitmeshnet/data/volume.py",
        own=("tests/test_volume.py",),
        beside=(
            "tests/test_plausibility.py",
            f"{SUBMISSION}::test_onto_a_grid_of_the_same_voxels_in_another_order",
            f"{SUBMISSION}::test_onto_any_grid_by_nearest_neighbour_as_itk_does_it",
            f"{SUBMISSION}::test_the_copy_at_1_mm_covers_the_same_field_by_nearest_neighbour",
        ),
    ),
    "dataset": Module(
        "implicitmeshnet/data/dataset.py",
        own=("tests/test_dataset.py",),
        beside=("tests/test_localiser.py::test_a_case_is_cut_around_its_label",),
    ),
    "losses": Module("implicitmeshnet/training/losses.py", own=("tests/test_losses.py",)),
    "labelmap": Module(
        "implicitmeshnet/surfaces/labelmap.py",
        own=("tests/test_labelmap.py", "-k", OF_LABEL_MAPS),
        beside=(
            "tests/test_predict.py::test_surfaces_lie_in_the_middle_of_the_volume_in_world_millimetres",
            "tests/test_predict.py::test_what_sticks_out_of_an_enclosing_mesh_is_its_overlap",
            f"{SUBMISSION}::test_two_label_maps_become_one_and_the_deeper_claim_wins",
        ),
    ),
    "metrics": Module(
        "implicitmeshnet/surfaces/metrics.py",
        own=("tests/test_metrics.py",),
        beside=("tests/test_plausibility.py::test_meshes_and_segmentation_that_disagree_are_named",),
    ),
    "repair": Module("implicitmeshnet/surfaces/repair.py", own=("tests/test_repair.py",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; all by default")
    parser.add_argument("--sample", type=int, default=60, help="faults of each module, at most (default: 60)")
    parser.add_argument("--show", action="store_true", help="print the faults that no test notices")
    arguments = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        enter_copy(Path(folder))
        print(f"cosmic-ray {version('cosmic-ray')}")
        print(f"{'module':<10}{'faults':>8}{'own tests':>11}{'beside':>8}{'unnoticed':>11}{'s':>7}", flush=True)
        for name in arguments.modules or MODULES:
            test_module(name, MODULES[name], arguments.sample, arguments.show)


def enter_copy(folder: Path) -> None:
    """Copy the repository into a folder and work there, so that neither faults nor byte code reach the original."""
    copy = folder / "repository"
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "build", "data", "runs")

    def left_out(path: str, names: list[str]) -> set[str]:
        return unwanted(path, names) if Path(path) == REPOSITORY else {"__pycache__"}

    shutil.copytree(REPOSITORY, copy, ignore=left_out)
    shared = REPOSITORY.parent / "shared"
    if shared.is_dir():
        (folder / "shared").symlink_to(shared)
    os.chdir(copy)
    sys.path[0] = str(copy)
    os.environ["PYTHONPATH"] = str(copy)  # for tests that start a process


def test_module(name: str, module: Module, sample: int, show: bool) -> None:
    """Print how many of a module's faults its tests notice."""
    start = time.monotonic()
    path = Path(module.path)
    source = path.read_text(encoding="utf-8")
    limits_s = {}
    sys.dont_write_bytecode = False
    for tests in (module.own, module.beside):
        begin = time.monotonic()
        if tests and fails(tests, limit_s=3600):
            raise SystemExit(f"{name}: wanted tests that pass without a fault, found them failing: {' '.join(tests)}")
        limits_s[tests] = 10 + 3 * (time.monotonic() - begin)
    # Byte code of one fault would be taken for the next one's, written in the same second with the same size.
    sys.dont_write_bytecode = True
    Path(cache_from_source(module.path)).unlink(missing_ok=True)

    faults = sampled(list(mutants(source)), sample)
    noticed = {module.own: 0, module.beside: 0}
    unnoticed = []
    for mutant in faults:
        path.write_text(mutant, encoding="utf-8")
        for tests in (module.own, module.beside):
            if tests and fails(tests, limits_s[tests]):
                noticed[tests] += 1
                break
        else:
            unnoticed.append(mutant)
            if show:
                print(difference(source, mutant, module.path), flush=True)
    path.write_text(source, encoding="utf-8")
    seconds = time.monotonic() - start
    counts = f"{len(faults):>8}{noticed[module.own]:>11}{noticed[module.beside]:>8}{len(unnoticed):>11}"
    print(f"{name:<10}{counts}{seconds:>7.0f}", flush=True)


def sampled(faults: list[str], count: int) -> list[str]:
    """Up to so many of a module's faults, in their order; the same for the same source and version of cosmic-ray."""
    chosen = random.Random(0).sample(range(len(faults)), min(count, len(faults)))
    return [faults[index] for index in sorted(chosen)]


def mutants(source: str) -> Iterator[str]:
    """A module's source with one fault each, in the order of cosmic-ray's operators."""
    annotations = annotated(source)
    seen = {source}
    for name in filter(is_wanted, plugins.operator_names()):
        operator = plugins.get_operator(name)()
        positions = []
        for node in ast_nodes(get_ast(source)):
            positions.extend(operator.mutation_positions(node))
        for occurrence, (start, _) in enumerate(positions):
            if any(first <= start < last for first, last in annotations):
                continue
            mutant = mutate_code(source, operator, occurrence)
            if mutant is not None and mutant not in seen:
                seen.add(mutant)
                yield mutant


def is_wanted(operator: str) -> bool:
    """Whether an operator of cosmic-ray's is used, such as "core/ReplaceBinaryOperator_Add_Sub"."""
    if plugins.get_operator(operator).arguments():  # it replaces names that one has to list
        return False
    kind, *pair = operator.removeprefix("core/").split("_")
    if kind in ("ReplaceBinaryOperator", "ReplaceComparisonOperator"):
        before, after = pair
        return after in NEIGHBOURS.get(before, ())
    if kind == "ReplaceUnaryOperator":
        return pair[0] == "Delete"
    return True


def annotated(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where type annotations begin and end, as lines from 1 and columns from 0."""
    spans = []
    for node in ast.walk(ast.parse(source)):
        for field in ("annotation", "returns"):
            found = getattr(node, field, None)
            if found is not None:
                spans.append(((found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)))
    return spans


def fails(tests: tuple[str, ...], limit_s: float) -> bool:
    """Whether tests fail, crash or exceed a time limit, in a process of their own."""
    child = os.fork()
    if not child:
        run_tests(tests)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status != 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def run_tests(tests: tuple[str, ...]) -> None:
    """Run pytest up to the first failure and end this process with its status."""
    os.setsid()  # so that what tests start ends with them
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    status = 1
    try:
        # Shrinking a failing example takes time, and tells nothing here.
        from hypothesis import Phase, settings

        settings.register_profile("mutation", database=None, phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutation")
        status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(status)


def difference(source: str, mutant: str, path: str) -> str:
    """What a fault changes, as a diff without context."""
    lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), path, path, lineterm="", n=0)
    return "\n".join(list(lines)[2:])


if __name__ == "__main__":
    main()
