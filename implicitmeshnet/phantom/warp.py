"""Smooth random diffeomorphisms: a stationary velocity field on a lattice in mm, integrated by scaling and squaring."""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

SQUARINGS = 6


def velocity_field(noise, sd_mm, smoothing_mm, step_mm):
    """White noise (3, I, J, K) at every `step_mm`, Gaussian-smoothed and scaled to a standard deviation in mm."""
    smooth = gaussian_filter(noise.astype(np.float32), (0, *[smoothing_mm / step_mm] * 3))
    return smooth * np.float32(sd_mm / smooth.std())


def integrate(velocity, step_mm):
    """Displacement (3, I, J, K), mm, after unit time along a velocity field of the same shape, mm."""
    index = np.indices(velocity.shape[1:], dtype=np.float32)
    displacement = velocity / np.float32(2**SQUARINGS)
    for _ in range(SQUARINGS):
        displacement = displacement + sample(displacement, index + displacement / np.float32(step_mm))
    return displacement


def sample(field, index):
    """The vector field (3, I, J, K) at fractional indices (3, ...), linearly; beyond its border the border's values."""
    return np.stack([map_coordinates(component, index, order=1, mode="nearest") for component in field])


def jacobian_determinant(displacement, step_mm):
    """Determinant (I, J, K) of the derivative of x + displacement(x)."""
    gradient = np.stack([np.stack(np.gradient(component, step_mm)) for component in displacement])
    return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(3))
