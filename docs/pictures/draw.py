"""Draws the pictures of the docs as SVG, light and dark: ``python docs/pictures/draw.py`` writes all files."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

import renewal  # noqa: E402
import terminal  # noqa: E402
from palettes import PALETTES  # noqa: E402


def pictures() -> dict[Path, str]:
    """Return what each file should hold."""
    screens = terminal.screens()
    drawn = {f"renewal-{ground}": renewal.draw(palette) for ground, palette in PALETTES.items()}
    for name, screen in screens.items():
        drawn |= {f"{name}-{ground}": terminal.draw(screen, palette) for ground, palette in PALETTES.items()}
    return {FOLDER / f"{name}.svg": text for name, text in drawn.items()}


def main() -> int:
    """Write the pictures, or with ``--check`` only tell whether they are as drawn."""
    wanted = pictures()
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
        print(f"draw them again: {', '.join(stale)}" if stale else "the pictures are as drawn")
        return 1 if stale else 0
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
