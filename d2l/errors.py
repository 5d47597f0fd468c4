"""The one exception a user of `d2l` is meant to read."""


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: what was given, what was expected, what to do. The command line prints it and
    exits with code 2; library callers catch it as a `ValueError`.
    """
