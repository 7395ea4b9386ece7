"""BibTeX of the papers in CITATION.cff."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

PLACE = Path(__file__).resolve().parents[2] / "CITATION.cff"
KINDS = {"conference-paper": "inproceedings", "article": "article"}  # of CFF and of BibTeX; misc for all others
ARXIV = "https://arxiv.org/abs/"
ASIDE = {"a", "an", "the", "on"}  # words that no key ends with


def bibtex(cited: str, place: Path = PLACE) -> str:
    """The entry of the reference with this DOI or address; ValueError where the file `place` has none."""
    return entry(reference(cited, place))


def key_of(cited: str, place: Path = PLACE) -> str:
    """The key of its entry; ValueError as `bibtex`."""
    return key(reference(cited, place))


def reference(cited: str, place: Path = PLACE) -> Mapping[str, Any]:
    """The reference with this DOI or address, as the Citation File Format has it."""
    references = _references(place)
    for one in references:
        if cited in (one.get("doi"), one.get("url")):
            return one
    raise ValueError(f"{place} must hold the reference {cited}, got {len(references)} others: add it to the file")


@cache
def _references(place: Path) -> list[Mapping[str, Any]]:
    try:
        references: list[Mapping[str, Any]] = yaml.safe_load(place.read_text(encoding="utf-8"))["references"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{place} must be the list of papers, got none ({type(error).__name__}): work in a checkout of the project"
        ) from error
    return references


def entry(reference: Mapping[str, Any]) -> str:
    """A reference of the Citation File Format 1.2 as BibTeX, in UTF-8, its title as it is written."""
    kind = KINDS.get(reference["type"], "misc")
    fields = {
        "title": f"{{{reference['title']}}}",  # once more, or styles make small letters of "U-Net"
        "author": " and ".join(_people(reference["authors"])),
        "booktitle": reference.get("conference", {}).get("name"),
        "journal": reference.get("journal"),
        "volume": reference.get("volume"),
        "number": reference.get("issue"),
        "year": reference["year"],
        "doi": reference.get("doi"),
    }
    url = reference.get("url", "")
    if url.startswith(ARXIV):
        fields |= {"eprint": url.removeprefix(ARXIV), "archiveprefix": "arXiv"}
    elif url:
        fields["url"] = url
    if kind == "misc" and url:  # such an entry is found nowhere else, and most styles print neither eprint nor url
        arxiv = fields.get("eprint")
        fields["howpublished"] = f"arXiv:{arxiv}" if arxiv else f"\\url{{{url}}}"
    lines = [f"  {name:<13} = {{{value}}}," for name, value in fields.items() if value]
    return "\n".join([f"@{kind}{{{key(reference)},", *lines, "}"])


def key(reference: Mapping[str, Any]) -> str:
    """First author, year and first word of the title, in plain letters: ronneberger2015unet."""
    first = reference["authors"][0]
    words = [_plain(word) for word in reference["title"].split()]
    word = next(word for word in words if word and word not in ASIDE)
    return f"{_plain(first.get('family-names') or first['name'])}{reference['year']}{word}"


def _people(authors: Sequence[Mapping[str, Any]]) -> list[str]:
    """All of up to ten, else the first six: of thirty names a list of references is mostly names."""
    return [*map(_person, authors)] if len(authors) <= 10 else [*map(_person, authors[:6]), "others"]


def _person(author: Mapping[str, str]) -> str:
    if "name" in author:  # of a group
        return f"{{{author['name']}}}"
    return f"{author['family-names']}, {author['given-names']}"


def _plain(word: str) -> str:
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", word).lower())
