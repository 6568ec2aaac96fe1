"""Seeds of the fuzz target tests/fuzz/tokenizer.c: small files of every kind, each with a text."""

import json
from pathlib import Path

import spm_tokenizers as spm
from common import fresh_folder

PIECES = (["\u2581", "a", "b", "e", "th", "t", "h", "\u2581a", "ab", "\u00e9", ",", "1", "\u0120"],
          [["\u2581", "a"], ["a", "b"], ["t", "h"]])
TEXT = " ab the\u0301 \u00e9,12  <s>a\u4e2d\U0001f44dx\n\t\u2581b"
WORDS = "(?i:'s|'t)|\\s?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)"
BYTE_LEVEL = spm.sequence("pretokenizers", spm.split_by({"Regex": WORDS}, "Isolated"),
                          spm.BYTE_LEVEL | {"use_regex": False})


def main():
    folder = fresh_folder(Path(__file__).resolve().parent.parent / "fuzz" / "tokenizer_corpus")
    made = {name: make(PIECES)[0] for name, make in spm.STYLES.items()}
    made |= spm.part_styles(PIECES)
    made["byte_level"] = made["llama2"] | {"normalizer": {"type": "NFC"}, "pre_tokenizer": BYTE_LEVEL,
                                           "decoder": spm.BYTE_LEVEL}
    made["byte_level"]["model"] = dict(made["llama2"]["model"], byte_fallback=False)
    for name, file in made.items():
        if " comma_" in name or "_True" in name or "_Merged" in name:
            continue
        vocabulary = [token for token in file["model"]["vocab"] if token not in spm.BYTES[16:]]
        file["model"]["vocab"] = {token: number for number, token in enumerate(vocabulary)}
        file["added_tokens"] = [token | {"id": vocabulary.index(token["content"])
                                         if token["content"] in vocabulary else token["id"] - 240}
                                for token in file["added_tokens"]]
        data = json.dumps(file, ensure_ascii=False, separators=(",", ":")).encode()
        (folder / name.replace(" ", "_")).write_bytes(data + b"\0" + TEXT.encode())


if __name__ == "__main__":
    main()
