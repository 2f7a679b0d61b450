"""What holds for every test."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the cores


@pytest.fixture(scope="session", autouse=True)
def _small_pictures():
    """Previews whose meshes are drawn with few pixels: 700 a side take a second, longer than the tests' networks do."""
    from implicitmeshnet.surfaces import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "RENDER_PIXELS", 40)
        yield
