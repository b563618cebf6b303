"""Errors that a user can cause, and nothing else."""


class UserError(Exception):
    """Something the user can put right: one clear sentence with what is wrong, where, and what to do.

    The command line prints it on stderr and exits with 2, without a traceback.
    """


class CaptionTooLong(UserError):
    """A caption that the model could not read to its end; the bridge has a code of its own for it."""
