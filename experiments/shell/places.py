"""Where a report may write: into its own folder, never through a link that somebody has put there."""

import os
from pathlib import Path

from experiments.shell.ending import CannotWriteError


def below(folder: Path, *parts: str) -> Path:
    """The path of a file below `folder`, which itself may be a link: a person has named it.

    Raises CannotWriteError where a folder on the way from there is a link. A file that is one is replaced, not
    followed.
    """
    place = folder
    for part in parts[:-1]:
        place = place / part
        if place.is_symlink():
            raise CannotWriteError(
                f"cannot write below {place}, which is a link to {os.readlink(place)}, so that files there could be "
                "overwritten: remove the link, or choose another folder with --out"
            )
    return folder.joinpath(*parts)
