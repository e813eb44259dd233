"""Pictures of H&E-like tissue on glass."""

import cv2
import numpy as np

GLASS = (243, 243, 244)


def tissue_texture(height: int, width: int, mpp: float = 0.5, seed: int = 0) -> np.ndarray:
    """`uint8 [height, width, 3]` filled with H&E-like tissue: uneven eosin, nuclei, fibers, grain."""
    rng = np.random.default_rng(seed)

    def field(um: float) -> np.ndarray:
        noise = rng.standard_normal((height, width)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), max(um / mpp, 0.3))
        return smooth / (smooth.std() + 1e-6)

    nuclei = np.zeros((height, width), np.float32)
    for x, y, radius in rng.uniform((0, 0, 2), (width, height, 4), (int(height * width * mpp**2 / 150), 3)):
        cv2.circle(nuclei, (int(x), int(y)), max(1, round(radius / mpp)), 1.0, -1)
    eosin = 0.6 + 0.1 * field(30) + 0.1 * field(3) + 0.04 * field(0.5)
    hematoxylin = 0.05 + 0.7 * nuclei * (1 + 0.15 * field(1))
    density = np.maximum(eosin, 0)[..., None] * (0.3, 0.95, 0.6) + hematoxylin[..., None] * (0.75, 0.9, 0.6)
    return np.clip(255 * np.exp(-density), 0, 255).astype(np.uint8)


def tissue_picture(height: int, width: int, mpp: float = 0.5, seed: int = 0) -> np.ndarray:
    """`uint8 [height, width, 3]`: an ellipse of tissue over 80 % of both sides, on glass."""
    picture = tissue_texture(height, width, mpp, seed)
    ellipse = np.zeros((height, width), np.uint8)
    cv2.ellipse(ellipse, (width // 2, height // 2), (width * 2 // 5, height * 2 // 5), 0, 0, 360, 1, -1)
    picture[ellipse == 0] = GLASS
    return picture
