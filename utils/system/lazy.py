"""Names of a package that are imported from its modules when they are first used.

So a notebook imports from a room in one line, and a command that draws nothing loads no plotting library.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_getattr(package: str, **modules: str) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package from its modules, each with the names it hands on, separated by spaces."""
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return get
