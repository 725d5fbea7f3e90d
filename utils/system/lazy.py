"""Names of a package that live in its modules and are imported when they are first used.

So a notebook imports from a room in one line, and a command that draws nothing loads no plotting library.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_getattr(package: str, **modules: str) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package, which imports a name from its module when it is first used.

    Args:
        package: full name of the package.
        modules: module -> the names that it defines, separated by spaces.

    Examples:
        >>> __getattr__ = lazy_getattr(__name__, reading="read_image shrink")
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return get
