"""Python imports this when it starts: the top-level modules in HIDDEN are as if they were not installed.

So it is for `import`, for `find_spec`, and in every process that this one starts.
"""

import os
import sys
from importlib.machinery import PathFinder
from typing import Any

HIDDEN = frozenset(os.environ["HIDDEN"].split())


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        return None if fullname.split(".")[0] in HIDDEN else PathFinder.find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
