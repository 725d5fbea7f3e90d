"""Errors that a user can correct: each message is one line, with what is wrong and what to do."""


class UserError(Exception):
    """The user can correct this; the message says how."""

    def _render_traceback_(self) -> list[str]:
        """IPython calls this, so a notebook shows the message instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """A key, value or file of the configuration is wrong."""


class DataError(UserError):
    """The images are missing, unreadable or too few."""


class ModelError(UserError):
    """A backbone, weights file or checkpoint cannot be used."""


class TrainingError(UserError):
    """Training cannot go on."""


class SearchError(UserError):
    """A search index is missing, damaged or made by another network."""
