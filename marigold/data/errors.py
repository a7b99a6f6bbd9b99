"""The error for bad data, whichever library noticed it."""


class DataError(ValueError):
    """A file, archive or list is damaged or of the wrong kind; the message names it and the reason."""


class MissingDataError(DataError):
    """A folder, archive, list or listed file does not exist."""
