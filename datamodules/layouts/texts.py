"""YAML as a person means it: 010 and 1_2 are texts, yes is a text, and a key that stands twice is refused."""

import json
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from datamodules.checks.problems import coded, shown
from datamodules.files import decoded


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """The scalars of YAML 1.2's core, without its octal and hexadecimal numbers."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  a class attribute of the base

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


NUMBER = "[-+]?(?:0|[1-9][0-9]{0,18})"
POWER = "[eE][-+]?[0-9]{1,3}"
SCALARS = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    "int": (NUMBER, [*"-+0123456789"]),
    "float": (rf"[-+]?[0-9]*\.[0-9]+(?:{POWER})?|{NUMBER}{POWER}", [*"-+.0123456789"]),
}
for _tag, (_form, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_form})$"), _first)


def read_keys(path: Path) -> Any:
    """The content of a YAML or a JSON file; ValueError for what is none."""
    text = decoded(path, str(path))
    name = shown(str(path))
    try:
        return json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = shown(" ".join(str(error).split())[:300])
        raise coded("E_LAYOUT", f"{name} is no {path.suffix[1:].upper() or 'YAML'}: {said}") from None


def brief(value: Any) -> str:
    """A value of any size and depth, for a message."""
    return shown(reprlib.repr(value)[:100])
