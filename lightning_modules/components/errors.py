"""What can go wrong with the numbers themselves, by a name that a command can tell from other errors."""


class NonFiniteError(ValueError):
    """A loss, a logit at a labelled pixel or a weight is NaN or infinite; the message names image or parameter."""


class MoreThanDataError(ValueError):
    """A file of weights that would run code if it were loaded, and is not."""
