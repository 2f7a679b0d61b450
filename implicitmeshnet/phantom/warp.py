"""Smooth random diffeomorphisms: a stationary velocity field on a lattice in mm, integrated by scaling and squaring."""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

SQUARINGS = 6  # the first step of the integration lasts 1 / 2**SQUARINGS of unit time


def velocity_field(noise: np.ndarray, sd_mm: float, smoothing_mm: float, step_mm: float) -> np.ndarray:
    """Smooth white noise (3, I, J, K) on a lattice of `step_mm` into a velocity field, float32, of the same shape.

    `smoothing_mm` is the Gaussian's standard deviation, `sd_mm` the standard deviation that the result has.
    """
    nodes = smoothing_mm / step_mm
    smooth = gaussian_filter(noise.astype(np.float32), (0, nodes, nodes, nodes))
    return smooth * np.float32(sd_mm / smooth.std())


def integrate(velocity: np.ndarray, step_mm: float) -> np.ndarray:
    """The displacement (3, I, J, K) in mm after unit time along a velocity field of the same shape in mm."""
    index = np.indices(velocity.shape[1:], dtype=np.float32)
    # Over so short a time the flow is close to a straight step.
    displacement = velocity / np.float32(2**SQUARINGS)
    for _ in range(SQUARINGS):
        # Twice the time is the same displacement once more, read where the first one arrives.
        arrival = index + displacement / np.float32(step_mm)
        displacement = displacement + sample(displacement, arrival)
    return displacement


def sample(field: np.ndarray, index: np.ndarray) -> np.ndarray:
    """A vector field (3, I, J, K) at fractional indices (3, ...), linearly; beyond its border the border's values."""
    return np.stack([map_coordinates(component, index, order=1, mode="nearest") for component in field])


def jacobian_determinant(displacement: np.ndarray, step_mm: float) -> np.ndarray:
    """The determinant (I, J, K) of the derivative of x + displacement(x), for a displacement (3, I, J, K) in mm.

    It is above 0 wherever the map does not fold.
    """
    gradient = np.stack([np.stack(np.gradient(component, step_mm)) for component in displacement])
    jacobian = np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3)  # (I, J, K, component, axis)
    return np.linalg.det(jacobian)
