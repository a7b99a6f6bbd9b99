"""The one kind of error that bad data gives, whatever library noticed it."""


class DataError(ValueError):
    """A file, archive or list is not what the data set says it is; the message names it and the reason."""


class MissingDataError(DataError):
    """A folder, archive, list or listed file that is not there at all."""
