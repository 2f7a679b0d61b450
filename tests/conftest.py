"""What holds for every test."""

import pytest

from implicitmeshnet.surfaces import figures


@pytest.fixture(scope="session", autouse=True)
def _small_pictures():
    """Previews whose meshes are drawn with few pixels: 700 a side take a second, longer than the tests' networks do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "RENDER_PIXELS", 40)
        yield
