"""Every error parctl raises on purpose, each with the exit code of the command line.

::

    ParctlError                  1
    +-- UsageError               2    wrong command line, setting or file
    |   +-- RecipeError          2    one or more problems in a recipe, each with file:line:col
    |   +-- NotBuiltError        2    in the grammar, but this version cannot run it
    |   +-- UnknownRunError      2    no such run, or several of that name
    +-- DoesNotFitError          3    the plan needs more memory than the devices have
    +-- CannotPlaceError         4    no placement obeys the hard rules on this cluster
    +-- BackendError             5    the back end cannot be reached or refuses us
    +-- RunFailedError           1    the run itself failed
    +-- RunTimeoutError        124    waited as long as asked
    +-- RunCancelledError      130    cancelled or interrupted

A message says where, what was found and what was expected; `hint` says how to mend it. The
command line prints `error: MESSAGE`, an empty line and `hint: HINT` to stderr, never a traceback
(unless `--debug`).
"""

from collections.abc import Sequence

TYPE_CHECKING = False  # `typing` has it too, but every command waits for this file
if TYPE_CHECKING:
    from parctl.recipes.faults import Problem


class ParctlError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the process returns."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ParctlError):
    """The command line, a setting or a file given by the user is wrong."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe has problems. All of them are listed, in the order of the file."""

    def __init__(self, problems: Sequence["Problem"]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class NotBuiltError(UsageError):
    """The recipe names a form that the grammar knows but this version cannot run."""


class UnknownRunError(UsageError):
    """No run has this id, or more than one does."""


class DoesNotFitError(ParctlError):
    """The plan needs more memory than a device has. The hint is the smallest change that fits."""

    exit_code = 3


class CannotPlaceError(ParctlError):
    """No placement obeys the hard rules, or the cluster has too few devices."""

    exit_code = 4


class BackendError(ParctlError):
    """The back end is unreachable, or answers 401 or 403."""

    exit_code = 5


class RunFailedError(ParctlError):
    """The run failed; the message is its verdict."""


class RunTimeoutError(ParctlError):
    """The run did not end in the time given."""

    exit_code = 124


class RunCancelledError(ParctlError):
    """The run was cancelled, or the user pressed ^C."""

    exit_code = 130
