"""Whether a folder is its owner's alone: nobody else plants a file in it, or puts another folder in its place."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .protocol import AdviceError

# Windows has neither. They are loaded now: later a service may have given up the right to read them.
with suppress(ImportError):
    import grp
    import pwd

# As Linux has it.
_MOST_LINKS = 40


def refuse_open_folder(folder: Path) -> None:
    """Raise ``PermissionError`` unless *folder* is this user's and nobody else may write to it or swap it.

    See :func:`refuse_open_way` for its parents. A folder that is not there raises ``FileNotFoundError``.
    """
    if not hasattr(os, "geteuid"):
        folder.stat()
        return
    refuse_open_way(folder.parent)
    if folder.is_symlink():
        refuse_open_way(folder)
    info = folder.stat()
    if info.st_uid != os.geteuid():
        raise AdviceError(f"{folder} belongs to another user: name a folder of your own, FileStore('...')")
    if info.st_mode & 0o022:
        raise AdviceError(f"others may write to {folder}: run 'chmod 700 {folder}', or name another folder")


def refuse_open_way(folder: Path) -> None:
    """Raise ``PermissionError`` if other users could swap *folder* or one that leads to it.

    The rule is that of OpenSSH's ``StrictModes``: each folder and each link on the way belongs to this user or
    to root, and only they may write there. A parent in which all may write but nobody may rename what is
    another's (sticky, as ``/tmp``) is safe, and so is one of a group that has no other member. Windows has no such
    modes; there it looks at nothing.
    """
    for place, info in _way(folder) if hasattr(os, "geteuid") else ():
        if info.st_uid not in (0, os.geteuid()):
            raise AdviceError(f"{place} belongs to another user, who could swap {folder}: name another folder")
        if _others_may_write(info) and not info.st_mode & stat.S_ISVTX:
            advice = f"run 'chmod go-w {place}', or name another folder"
            raise AdviceError(f"others may write to {place}, and so swap {folder}: {advice}")


def refuse_shared_folder(folder: Path) -> None:
    """Raise ``PermissionError`` if other users could put a file into *folder*, or swap it."""
    refuse_open_way(folder)
    if hasattr(os, "geteuid") and _others_may_write(folder.stat()):
        raise AdviceError(f"others may write to {folder}: name a file in a folder of your own")


def refuse_open_file(path: Path) -> None:
    """Raise ``PermissionError`` unless *path* is this user's, and nobody else may open it or what lies beside it."""
    if not hasattr(os, "geteuid"):
        return
    info, real = path.stat(), Path(os.path.realpath(path))
    if info.st_uid != os.geteuid():
        raise AdviceError(f"{real} belongs to another user: name a file of your own")
    if info.st_mode & 0o077:
        raise AdviceError(f"others may open {real}: run 'chmod 600 {real}', or name another file")
    refuse_open_way(path)
    refuse_shared_folder(real.parent)


def _others_may_write(info: os.stat_result) -> bool:
    """Tell whether anybody but the owner and root may write to the file or folder; links cannot be written to."""
    if stat.S_ISLNK(info.st_mode):
        return False
    return bool(info.st_mode & stat.S_IWOTH or info.st_mode & stat.S_IWGRP and not _is_private(info.st_gid))


def _way(path: Path, links: int = _MOST_LINKS) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what the system passes on its way to *path*, itself and the ways of all links included."""
    if not links:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    for place in (*reversed(path.parents), path):
        info = _seen(place)
        yield place, info
        if stat.S_ISLNK(info.st_mode):
            yield from _way(place.parent / os.readlink(place), links - 1)


def _seen(place: Path) -> os.stat_result:
    try:
        return place.lstat()
    except PermissionError:
        folder = place.parent
        raise AdviceError(
            f"{folder} does not let this user in: run 'chmod u+x {folder}' as its owner, or name another folder"
        ) from None


def _is_private(group: int) -> bool:
    """Tell whether *group* has this user only: many systems make such a group for each user."""
    try:
        name, members = pwd.getpwuid(os.geteuid()).pw_name, set(grp.getgrgid(group).gr_mem)
    except KeyError:
        return False
    return members | {user.pw_name for user in pwd.getpwall() if user.pw_gid == group} == {name}
