"""The one error that a person can mend: jobs print it in one line, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or bad settings. The message names the value, the limit and the remedy."""
