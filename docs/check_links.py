"""Checks the links of a built site without a network: ``python docs/check_links.py FOLDER``.

A link within the site must lead to a file, and its fragment to an element there. A link that leaves it must be https.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Collects the links and the ids of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag links to and what it is called."""
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and name in ("id", "name"):
                self.ids.add(value)


def broken(site: Path) -> Iterator[str]:
    """Return one line for each link of *site* that leads nowhere."""
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            if not _leads_somewhere(path, link, pages):
                yield f"{path.relative_to(site.resolve())}: {link}"


def _leads_somewhere(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return parts.scheme == "https" or link.startswith("data:")
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return False
    return target not in pages or not parts.fragment or unquote(parts.fragment) in pages[target].ids


def main() -> int:
    """Print the broken links; return 1 if there are any."""
    lines = list(broken(Path(sys.argv[1]).resolve()))
    print("\n".join(lines) if lines else "every link leads somewhere")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
