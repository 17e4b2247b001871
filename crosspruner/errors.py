"""The errors a user can meet: one small tree, so `except CrossprunerError` catches them all.

Every message says what was given, what is allowed and what to type instead.
"""


class CrossprunerError(Exception):
    """Base of every error that crosspruner raises on purpose."""


class ConfigError(CrossprunerError):
    """A configuration value is out of range or does not fit another one."""


class MappingError(CrossprunerError):
    """A layer cannot be laid out on the given crossbar with the given Kin and Kout."""


class PlanError(CrossprunerError):
    """A plan does not belong to the model, or a plan file cannot be read."""


class BudgetError(CrossprunerError):
    """The requested ratio cannot be met by the removable units of the model."""


class SolverError(CrossprunerError):
    """A layer problem is ill-posed: wrong shapes, NaN or infinite entries, unknown solver."""


class DataError(CrossprunerError):
    """A data set is missing, empty or of another form than expected."""


class ModelError(CrossprunerError):
    """A model is unknown, or its sizes are out of range."""


class CheckpointError(CrossprunerError):
    """A checkpoint or weight file belongs to another model or run."""


class RunFolderError(CrossprunerError):
    """A folder is not a run folder, or lacks the file that was asked of it."""
