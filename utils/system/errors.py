"""What a user can cause and mend: each message is a line that says what is wrong and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can fix; the message says what and how, in a line."""

    def _render_traceback_(self) -> list[str]:
        """IPython asks for this: a notebook shows the message instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """A key, value or file of the configuration is wrong."""


class DataError(UserError):
    """The images are missing, unreadable or too few."""


class ModelError(UserError):
    """A backbone, weights file or checkpoint cannot be used."""


class TrainingError(UserError):
    """Training cannot go on; the message says what to change."""


class SearchError(UserError):
    """An index is missing, damaged or of another network; the message says what to do."""
