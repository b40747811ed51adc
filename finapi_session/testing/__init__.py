"""For tests and demos: a local finAPI, and the contract that every token store keeps."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import StoreContract
    from .sandbox import Sandbox
    from .traffic import Call

__all__ = ["Call", "Sandbox", "StoreContract"]

_HOMES = {"Call": "traffic", "Sandbox": "sandbox", "StoreContract": "contract"}
_EXTRA = ("flask", "werkzeug", "trustme")


# Type checkers would take any name for one that it gives; they see those above.
if not TYPE_CHECKING:  # pragma: no branch

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRA:
                raise
            raise ImportError(f"{name} needs an extra: pip install 'finapi-session[sandbox]'") from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    # Without what needs a missing extra: help() and inspect look at everything that is named here.
    lacking = {"Sandbox"} if None in map(find_spec, _EXTRA) else set()
    return sorted({*globals(), *__all__} - lacking)
