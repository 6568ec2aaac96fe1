"""Writes model/unicode_tables.c: where the Unicode data of the tokenizers library and of our C libraries differ.

The tokenizers library brings its own Unicode data: regular expressions (Oniguruma) and the Digits
pre-tokenizer know characters that are newer than those of PCRE2 10.42 (Unicode 14), its normal forms, accents
and punctuation are frozen at Unicode 9 and before, its lower case is newer. This script asks the installed library about every code point and compares with Python 3.11's
unicodedata, which is Unicode 14.

    python tests/reference/make_unicode_tables.py > model/unicode_tables.c
"""

import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

assert unicodedata.unidata_version == "14.0.0", "run with a Python whose unicodedata is Unicode 14"

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So".split()

# Marks of Unicode 17 and later blocks, which nothing installed here knows yet.
LATER_MARKS = [(0x1ABF, 0x1AFF), (0x10EC0, 0x10EFF), (0x11B60, 0x11B67), (0x1E6C0, 0x1E6FF)]


def matched_by(expression):
    """Code points that the library's regular expression engine matches."""
    split = pre_tokenizers.Split(Regex(expression), "removed")
    found = set()
    for start in range(0, len(CODE_POINTS), 4096):
        block = CODE_POINTS[start : start + 4096]
        kept = {ord(c) for piece, _ in split.pre_tokenize_str("".join(map(chr, block))) for c in piece}
        found.update(c for c in block if c not in kept)
    return found


def recent_categories():
    recent = {}
    for category in CATEGORIES:
        for c in matched_by(r"\p{%s}" % category):
            if unicodedata.category(chr(c)) == "Cn":
                recent[c] = category
    return recent


def digits_beyond(recent):
    """Characters that only the Digits pre-tokenizer takes for digits."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    candidates = [c for c in CODE_POINTS if unicodedata.category(chr(c)) == "Cn" and c not in recent]
    return [c for c in candidates if len(digits.pre_tokenize_str("a" + chr(c) + "a")) == 3]


def unknown_to_nfc():
    """Characters assigned by Unicode 14 whose class or composition the library's NFC does not know."""
    nfc = normalizers.NFC()

    def differs(text):
        return nfc.normalize_str(text) != unicodedata.normalize("NFC", text)

    unknown = set()
    for c in CODE_POINTS:
        if any(differs("x" + chr(c) + mark + "y") for mark in "\u0323\u0301\u0334\u094d\u0345"):
            unknown.add(c)
        parts = unicodedata.decomposition(chr(c))
        if parts and not parts.startswith("<"):
            sequence = [int(part, 16) for part in parts.split()]
            if differs("".join(map(chr, sequence))):
                unknown.update(sequence + [c])
    return unknown


def unknown_compatibility():
    """Characters that the library's NFKD leaves alone, or takes apart otherwise."""
    nfkd = normalizers.NFKD()
    return {c for c in CODE_POINTS if nfkd.normalize_str(chr(c)) != unicodedata.normalize("NFKD", chr(c))}


def odd_marks():
    """Where the library's StripAccents and the general category disagree."""
    strip = normalizers.StripAccents()
    marks = {c for c in CODE_POINTS if unicodedata.category(chr(c))[0] == "M"}
    stripped = {c for c in CODE_POINTS if strip.normalize_str("a" + chr(c)) == "a"}
    return marks ^ stripped


def odd_punctuation():
    """Where the library's Punctuation and the general category disagree, outside ASCII."""
    split = pre_tokenizers.Punctuation("isolated")

    def differs(c):
        found = len(split.pre_tokenize_str("a" + chr(c) + "a")) == 3
        return found != (unicodedata.category(chr(c))[0] == "P")

    return {c for c in CODE_POINTS if c >= 0x80 and differs(c)}


def lower_offsets():
    """Characters whose lower case Unicode 14 does not have, and the distance to it."""
    lower = normalizers.Lowercase()
    newer = [c for c in CODE_POINTS if lower.normalize_str(chr(c)) != chr(c).lower()]
    return {c: ord(lower.normalize_str(chr(c))) - c for c in newer}


def ranges(labels):
    out = []
    for c in sorted(labels):
        if out and out[-1][1] == c - 1 and out[-1][2] == labels[c]:
            out[-1][1] = c
        else:
            out.append([c, c, labels[c]])
    return out


def print_rows(rows, form):
    line = "   "
    for row in rows:
        text = " " + form(row) + ","
        if len(line + text) > 100:
            print(line)
            line = "   "
        line += text
    print(line)


def main():
    recent = recent_categories()
    for c in digits_beyond(recent):
        recent[c] = "##"
    inert = {c: "" for c in unknown_to_nfc()}
    inert.update({c: "" for first, last in LATER_MARKS for c in range(first, last + 1)})
    inert.update({c: "" for c in unknown_compatibility()})
    recent_rows, inert_rows = ranges(recent), ranges(inert)
    print("// Written by tests/reference/make_unicode_tables.py.")
    print('#include "model/unicode_tables.h"\n')
    print("// clang-format off")
    print("const td_recent_range td_recent_ranges[] = {")
    print_rows(recent_rows, lambda r: '{0x%04x, 0x%04x, "%s"}' % tuple(r))
    print("};")
    print("const size_t td_n_recent_ranges = sizeof td_recent_ranges / sizeof *td_recent_ranges;\n")
    print("const td_code_range td_nfc_unknown_ranges[] = {")
    print_rows(inert_rows, lambda r: "{0x%04x, 0x%04x}" % (r[0], r[1]))
    print("};")
    print("const size_t td_n_nfc_unknown_ranges =")
    print("    sizeof td_nfc_unknown_ranges / sizeof *td_nfc_unknown_ranges;")
    for name, codes in (("odd_mark", odd_marks()), ("odd_punctuation", odd_punctuation())):
        print(f"\nconst td_code_range td_{name}_ranges[] = {{")
        print_rows(ranges({c: "" for c in codes}), lambda r: "{0x%04x, 0x%04x}" % (r[0], r[1]))
        print("};")
        print(f"const size_t td_n_{name}_ranges =")
        print(f"    sizeof td_{name}_ranges / sizeof *td_{name}_ranges;")
    print("\nconst td_lower_range td_lower_ranges[] = {")
    print_rows(ranges(lower_offsets()), lambda r: "{0x%04x, 0x%04x, %d}" % tuple(r))
    print("};")
    print("const size_t td_n_lower_ranges = sizeof td_lower_ranges / sizeof *td_lower_ranges;")
    print("// clang-format on")


main()
