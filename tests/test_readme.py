"""The Python of the README and of its companions runs as it stands, and the files and headings that they name exist."""

import re
import shutil
from pathlib import Path

import pytest

from create_phantom_dataset import case_path
from implicitmeshnet.data.nifti import write_volume
from implicitmeshnet.phantom.case import create_case

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "configs_implicitmeshnet|docs|benchmarks|implicitmeshnet|tests|csrc|snapshots"


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may say after '#', as GitHub makes it of the heading."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory):
    """A folder with what the README's Python reads: the configs, and a coarse phantom named as `make demo` does."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "configs_implicitmeshnet", folder / "configs_implicitmeshnet")
    phantoms = folder / "demo/phantoms"
    phantoms.mkdir(parents=True)
    image, _, _, affine = create_case(0, 901, spacing_mm=2.5)
    write_volume(case_path(phantoms, 901, "image"), image, affine)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/how-it-works.md"])
def test_the_snippets_run(page, after_the_demo, monkeypatch):
    monkeypatch.chdir(after_the_demo)
    assert snippets(page)
    for snippet in snippets(page):
        exec(compile(snippet, page, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_it_names_exist(page):
    names = set(re.findall(rf"(?<![\w/])(?:{FOLDERS})/[\w./-]+\.\w+", page.read_text()))
    examples = {name for name in names if "NAME" in name}
    assert not [name for name in names - examples if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
