"""The error of a training that cannot recover; it needs no torch to be told from others."""


class DivergedError(ValueError):
    """A loss, a gradient or a weight is not finite."""
