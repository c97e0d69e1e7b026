"""Errors meant for the user: each message is one line that says what was given, what is allowed, what to do."""

from __future__ import annotations


class BayestensorError(Exception):
    """A mistake in what we were given, not in our code: the command line prints it without a traceback."""


class ConfigError(BayestensorError):
    """A config file, key or value that cannot be used."""


class DataError(BayestensorError):
    """A data file that is missing, damaged or of another shape."""


class RunError(BayestensorError):
    """A run that cannot start, go on, or be written."""


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, or must not be written."""


class DrawsError(RunError, ValueError):
    """Draws on disk that are missing, damaged, or of another model."""
