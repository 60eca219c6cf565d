"""Characters of the fonts that matplotlib brings, drawn small: images that are always at hand."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import ft2font

from softlab.datasets.images import Held

CHARACTERS = "AHKST0"
SIDE = 32
WEIGHTS = ("", "-Bold", "-Oblique", "-BoldOblique")
SEEN = (
    *(f"DejaVuSans{weight}" for weight in WEIGHTS),
    *(f"DejaVuSansMono{weight}" for weight in WEIGHTS),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmtt10"),
)
UNSEEN = (
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "cmss10",
)


def glyphs(count, fonts=SEEN, seed=0):
    """``count`` characters of these fonts, at random, of random size and slant, in the middle."""
    folder, rng = Path(matplotlib.get_data_path(), "fonts", "ttf"), np.random.default_rng(seed)
    labels = rng.integers(len(CHARACTERS), size=count)
    faces = [ft2font.FT2Font(str(folder / f"{font}.ttf")) for font in fonts]
    images = [drawn(faces[rng.integers(len(faces))], CHARACTERS[label], rng) for label in labels]
    pixels = torch.from_numpy(np.stack(images)).unsqueeze(1)
    return Held(
        pixels, torch.from_numpy(labels), tuple(CHARACTERS), mean=0.15, std=0.3, mirror=False
    )


def drawn(face, character, rng):
    """One character as bytes (SIDE, SIDE)."""
    face.set_size(rng.uniform(16, 26), 72)
    face.set_text(character, rng.uniform(-15, 15))
    face.draw_glyphs_to_bitmap(antialiased=True)
    image = np.asarray(face.get_image())[:SIDE, :SIDE]
    out = np.zeros((SIDE, SIDE), np.uint8)
    top, left = ((SIDE - size) // 2 for size in image.shape)
    out[top : top + image.shape[0], left : left + image.shape[1]] = image
    return out
