"""Put figures of a report one below the other: a picture of the README or of a page.

Usage: python scripts/report_picture.py runs/demo/report docs/images/report.png accuracy ranks
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

WIDTH = 1200


def main() -> None:
    """Stack the figures at one width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="folder of a report, with its PNG files")
    parser.add_argument("picture", type=Path, help="file to write")
    parser.add_argument("figures", nargs="+", help="names of the figures, from the top")
    arguments = parser.parse_args()
    figures = []
    for name in arguments.figures:
        with Image.open(arguments.report / f"{name}.png") as figure:
            height = round(figure.height * WIDTH / figure.width)
            figures.append(figure.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS))
    picture = Image.new("RGB", (WIDTH, sum(f.height for f in figures)), "white")
    top = 0
    for figure in figures:
        picture.paste(figure, (0, top))
        top += figure.height
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    picture.save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
