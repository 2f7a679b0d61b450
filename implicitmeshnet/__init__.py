"""ImplicitMeshNet: anatomical shape estimation from volumetric images, as closed surface meshes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from implicitmeshnet.predict import Predictor

__all__ = ["Predictor"]


def __getattr__(name: str):
    """`Predictor` is imported when it is first asked for: it needs torch, and importing the package stays quick."""
    if name != "Predictor":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from implicitmeshnet.predict import Predictor

    return Predictor
