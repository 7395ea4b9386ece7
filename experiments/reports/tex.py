"""Any text as LaTeX that pdflatex, xelatex and lualatex typeset alike, without a package."""

import re
import unicodedata

SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"}
SPECIAL |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "`": "\\textasciigrave{}"}
SPECIAL |= {"<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}"}
# Signs that pdflatex has not in every encoding of fonts, by their names in Unicode.
NAMED = {
    "PLUS-MINUS SIGN": "$\\pm$",
    "MINUS SIGN": "$-$",
    "MULTIPLICATION SIGN": "$\\times$",
    "DIVISION SIGN": "$\\div$",
    "MIDDLE DOT": "$\\cdot$",
    "RIGHTWARDS ARROW": "$\\to$",
    "LEFTWARDS ARROW": "$\\gets$",
    "INFINITY": "$\\infty$",
    "LESS-THAN OR EQUAL TO": "$\\leq$",
    "GREATER-THAN OR EQUAL TO": "$\\geq$",
    "ALMOST EQUAL TO": "$\\approx$",
    "NOT EQUAL TO": "$\\neq$",
    "DEGREE SIGN": "$^{\\circ}$",
    "SUPERSCRIPT ONE": "$^{1}$",
    "SUPERSCRIPT TWO": "$^{2}$",
    "SUPERSCRIPT THREE": "$^{3}$",
    "MICRO SIGN": "$\\mu$",
    "DAGGER": "$^{\\dagger}$",
    "SECTION SIGN": "\\S{}",
    "HORIZONTAL ELLIPSIS": "\\ldots{}",
    "EN DASH": "--",
    "EM DASH": "---",
    "LEFT DOUBLE QUOTATION MARK": "``",
    "RIGHT DOUBLE QUOTATION MARK": "''",
    "LEFT SINGLE QUOTATION MARK": "`",
    "RIGHT SINGLE QUOTATION MARK": "'",
    "LATIN SMALL LETTER SHARP S": "\\ss{}",
    "LATIN SMALL LETTER AE": "\\ae{}",
    "LATIN CAPITAL LETTER AE": "\\AE{}",
    "LATIN SMALL LIGATURE OE": "\\oe{}",
    "LATIN CAPITAL LIGATURE OE": "\\OE{}",
    "LATIN SMALL LETTER O WITH STROKE": "\\o{}",
    "LATIN CAPITAL LETTER O WITH STROKE": "\\O{}",
    "LATIN SMALL LETTER L WITH STROKE": "\\l{}",
    "LATIN CAPITAL LETTER L WITH STROKE": "\\L{}",
    "LATIN SMALL LETTER DOTLESS I": "\\i{}",
}
SPECIAL |= {unicodedata.lookup(name): code for name, code in NAMED.items()}
GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon"
GREEK += " phi chi psi omega"
CAPITALS = "gamma delta theta lambda xi pi sigma upsilon phi psi omega"  # the others look like Latin ones
for case, letters in (("SMALL", GREEK), ("CAPITAL", CAPITALS)):
    for letter in letters.split():
        sign = unicodedata.lookup(f"GREEK {case} LETTER {letter.replace('lambda', 'lamda').upper()}")
        SPECIAL[sign] = f"$\\{letter if case == 'SMALL' else letter.title()}$"
# Accents by their combining signs, as LaTeX writes them.
ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": "."}
ACCENTS |= {"\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c", "\u0323": "d", "\u0331": "b"}
LONG = 25  # letters, from which on a word may be parted behind any of its signs
OPEN, CLOSE, APART, PART = "\ue000", "\ue001", "\ue002", "\ue003"  # private signs, that no text has at this point


def escape(text: str) -> str:
    """The text on one line: every sign as itself, quotes as a typesetter sets them, a minus before a number as one.

    What pdflatex has no letter for, say Chinese, it prints as its number, [U+5B57]; the others print it where their
    font has it. Signs that are not seen, which could turn the direction of writing, are left out.
    """
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    text = "".join(character for character in text if not unicodedata.category(character).startswith("C"))
    text = re.sub(r"(?<![\w.})\]-])-(?=\d)", "\N{MINUS SIGN}", text)  # not the hyphen of a name
    text = re.sub(r'(?<![^\s(\[{/=+-])"', OPEN, text).replace('"', CLOSE)
    text = re.sub(r"(?<![^\s(\[{/])'(?=\w)", "\N{LEFT SINGLE QUOTATION MARK}", text)
    text = re.sub(rf"\S{{{LONG},}}", _parted, text)
    text = re.sub(r"(?<=([-'`,<>]))(?=\1)|(?<=[!?])(?=`)", APART, text)  # which TeX would join to another sign
    return "".join(_sign(character) for character in text)


def _parted(word: re.Match[str]) -> str:
    """A long word with the places where a line may end: behind signs, and in what no language hyphenates."""
    parts = re.sub(r"(?<=[^\W_][+_/=:.,;)])(?=\w)", PART, word[0])
    return re.sub(rf"(?=\w*\d)\w{{{LONG},}}", lambda run: PART.join(re.findall(".{1,8}", run[0])), parts)


def _sign(character: str) -> str:
    private = {OPEN: "``", CLOSE: "''", APART: "{}", PART: "\\allowbreak{}"}
    if (found := private.get(character) or SPECIAL.get(character)) is not None:
        return found
    if character.isascii():
        return character
    decomposed = unicodedata.normalize("NFD", character)
    base, marks = decomposed[0], decomposed[1:]
    if base.isascii() and base.isalpha() and marks and all(mark in ACCENTS for mark in marks):
        for mark in marks:
            base = f"\\{ACCENTS[mark]}{{{base}}}"
        return base
    return f"\\ifdefined\\pdftexversion[U+{ord(character):04X}]\\else {character}\\fi{{}}"
