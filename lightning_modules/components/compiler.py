"""Which C++ compiler there is, for whoever compiles a kernel or wants to know beforehand."""

import os
import shlex
import shutil

WAY_OUT = "install g++ or clang++ (Debian: apt install g++; conda: conda install gxx), or point CXX at one"


def compiler() -> list[str] | None:
    """The command of the first C++ compiler found; only $CXX where that is set."""
    wanted = os.environ.get("CXX")
    for command in [wanted] if wanted else ["c++", "g++", "clang++"]:
        try:
            words = shlex.split(command)
        except ValueError:  # no closing quotation: no program either
            continue
        if words and shutil.which(words[0]):
            return words
    return None
