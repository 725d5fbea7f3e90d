"""Names that a package hands on from its modules, imported when they are first asked for.

So a notebook needs one line for a room, and a command that draws nothing loads no plotting library.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def hand_on(package: str, **modules: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package: by the names of its modules, the names in them, separated by spaces.

    Examples:
        >>> __getattr__ = hand_on(__name__, reading="read_image shrink")
    """
    places = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{places[name]}"), name)

    return get
