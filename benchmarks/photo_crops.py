"""16×16 crops of scikit-learn's two sample photographs, as a data set of natural images with N = 768 values.

python benchmarks/photo_crops.py runs/crops.zip
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_images

SIDE, SHRUNK = 16, 2


def main(target: Path) -> None:
    """Both photographs at half their size, cut into crops that do not overlap."""
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for pixels in load_sample_images().images:
            photo = Image.fromarray(pixels).reduce(SHRUNK)
            for top in range(0, photo.height - SIDE + 1, SIDE):
                for left in range(0, photo.width - SIDE + 1, SIDE):
                    buffer = io.BytesIO()
                    photo.crop((left, top, left + SIDE, top + SIDE)).save(buffer, "PNG")
                    archive.writestr(f"{number:05d}.png", buffer.getvalue())
                    number += 1
    print(f"{target}: {number} crops of {SIDE}×{SIDE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
