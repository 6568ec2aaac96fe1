"""SentencePiece-style BPE in the exact structure of the files of the real families, for
make_tokenizers.py and check_tokenizers.py. The vocabularies are trained; everything around them is
as published."""

import json

from tokenizers import SentencePieceBPETokenizer

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def trained_pieces(texts, size, alphabet=300):
    """Tokens and merges, as SentencePieceBPETokenizer trains them."""
    trainer = SentencePieceBPETokenizer(fuse_unk=True)
    trainer.train_from_iterator(texts, vocab_size=size, min_frequency=2, show_progress=False,
                                limit_alphabet=alphabet)
    model = json.loads(trainer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return [token for token in tokens if token != "<unk>"], model["merges"], trainer


def space_runs(tokens, merges, longest=16):
    """Runs of spaces, which the real vocabularies have as tokens."""
    tokens, merges = list(tokens), list(merges)
    for length in range(2, longest + 1):
        if SPACE * length not in tokens:
            tokens.append(SPACE * length)
        for left in range(1, length):
            pair = [SPACE * left, SPACE * (length - left)]
            if pair not in merges:
                merges.append(pair)
    return tokens, merges


def added(content, number, special=True, **settings):
    token = {"id": number, "content": content, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": special}
    return token | settings


def model_of(specials, pieces, **settings):
    tokens, merges = pieces
    names = [*specials, *[token for token in BYTES if settings.get("byte_fallback")], *tokens]
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>",
             "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
             "byte_fallback": False, "ignore_merges": False}
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return model | settings | {"vocab": vocabulary, "merges": merges}


PREPEND = {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
TO_SPACES = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
              "use_regex": True}
STRIP_FIRST = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def decoders(*last):
    return {"type": "Sequence",
            "decoders": [TO_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}, *last]}


def template(name, number):
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [first, text, {"SpecialToken": {"id": name, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [first, text], "pair": pair,
            "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}}}


def file_of(model, specials, normalizer=None, pre_tokenizer=None, decoder=None, bos=None):
    post = template(bos, model["vocab"][bos]) if bos else None
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": specials,
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": post,
            "decoder": decoder, "model": model}


def metaspace(scheme, split, **more):
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme,
            "split": split} | more


LLAMA = ["<unk>", "<s>", "</s>"]


def llama_specials(**settings):
    return [added(name, number, **settings) for number, name in enumerate(LLAMA)]


def llama2(pieces):
    return file_of(model_of(LLAMA, pieces, byte_fallback=True), llama_specials(), PREPEND, None,
                   decoders(STRIP_FIRST), "<s>"), LLAMA


def llama2_legacy(pieces):
    """The first conversions marked the special tokens as normalized."""
    made, names = llama2(pieces)
    return made | {"added_tokens": llama_specials(normalized=True)}, names


def tinyllama_chat(pieces):
    """TinyLlama and its descendants, with chat tokens after the vocabulary."""
    made, names = llama2(pieces)
    first = len(made["model"]["vocab"])
    more = ["<|im_start|>", "<|im_end|>"]
    chat = [added(name, first + i, special=i == 0) for i, name in enumerate(more)]
    return made | {"added_tokens": [*made["added_tokens"], *chat]}, [*names, *more]


def mistral3(pieces):
    """Mistral from version 0.3 on: Metaspace that prepends only where the text begins."""
    control = [*LLAMA, "[INST]", "[/INST]", "[TOOL_CALLS]"]
    specials = [added(name, number) for number, name in enumerate(control)]
    return file_of(model_of(control, pieces, byte_fallback=True), specials, None,
                   metaspace("first", False), decoders(STRIP_FIRST), "<s>"), control


def gemma(pieces):
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    controls = [added(name, number) for number, name in enumerate(names)]
    blanks = ["\n" * n for n in range(1, 6)] + ["\t" * n for n in range(1, 4)]
    tokens, merges = pieces
    model = model_of([*names, *blanks], (tokens, merges), byte_fallback=True)
    spaces = [added(name, number, special=False)
              for name, number in model["vocab"].items() if name in blanks]
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
             "invert": False}
    return file_of(model, controls + spaces, REPLACE, split, decoders(), "<bos>"), names


def phi3(pieces):
    made, names = llama2(pieces)
    first = len(made["model"]["vocab"])
    more = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
    chat = [added(name, first + i, rstrip=True) for i, name in enumerate(more)]
    specials = [*made["added_tokens"], *chat]
    specials[2] = specials[2] | {"rstrip": True, "special": False}
    return made | {"added_tokens": specials, "post_processor": None}, [*names, *more]


def unknown_only(pieces):
    """Without bytes to fall back to; a word is all between two spaces."""
    return file_of(model_of(LLAMA, pieces), llama_specials(), {"type": "NFKC"},
                   metaspace("always", True), metaspace("always", True)), LLAMA


def single_unknowns(pieces):
    made, names = unknown_only(pieces)
    made["model"]["fuse_unk"] = False
    older = metaspace("never", True, add_prefix_space=False)
    return made | {"pre_tokenizer": older, "decoder": older, "normalizer": None}, names


def whole_words(pieces):
    """ignore_merges, which takes a word that is a token whatever the merges say."""
    tokens, merges = pieces
    made, names = llama2((tokens, [pair for i, pair in enumerate(merges) if i % 5]))
    made["model"]["ignore_merges"] = True
    return made | {"normalizer": None, "pre_tokenizer": metaspace("always", True)}, names


STYLES = {
    "llama2": llama2, "llama2_legacy": llama2_legacy, "tinyllama_chat": tinyllama_chat,
    "mistral3": mistral3, "gemma": gemma, "phi3": phi3, "unknown_only": unknown_only,
    "single_unknowns": single_unknowns, "whole_words": whole_words,
}


def sequence(kind, *items):
    return {"type": "Sequence", kind: list(items)}


def split_by(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def part_styles(pieces):
    """Every normalizer and pre-tokenizer by itself and some in sequence, around one model."""
    base = model_of(LLAMA, pieces, byte_fallback=True)
    letters, comma = {"Regex": "\\p{L}+"}, {"String": ","}
    normalizers = {
        "nfc": {"type": "NFC"}, "nfd": {"type": "NFD"}, "nfkc": {"type": "NFKC"},
        "nfkd": {"type": "NFKD"}, "lowercase": {"type": "Lowercase"},
        "strip": {"type": "Strip", "strip_left": True, "strip_right": True},
        "strip_left": {"type": "Strip", "strip_left": True, "strip_right": False},
        "accents": sequence("normalizers", {"type": "NFD"}, {"type": "StripAccents"},
                            {"type": "Lowercase"}),
        "strip_accents": {"type": "StripAccents"},
        "replace": {"type": "Replace", "pattern": {"Regex": "\\s{2,}|[0-9]+"}, "content": "x "},
        "replace_empty": {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "-"},
        "chain": sequence("normalizers", {"type": "NFKC"},
                          {"type": "Strip", "strip_left": False, "strip_right": True},
                          {"type": "Prepend", "prepend": "<p>"}, REPLACE, {"type": "Lowercase"},
                          {"type": "Replace", "pattern": {"String": "th"}, "content": ""}),
    }
    pre_tokenizers = {
        "whitespace": {"type": "Whitespace"}, "whitespace_split": {"type": "WhitespaceSplit"},
        "bert": {"type": "BertPreTokenizer"}, "digits": {"type": "Digits",
                                                         "individual_digits": False},
        "metaspace_first": sequence("pretokenizers", split_by(comma, "Isolated"),
                                    metaspace("first", True)),
        "metaspace_after": sequence("pretokenizers", {"type": "WhitespaceSplit"},
                                    metaspace("always", True), {"type": "Punctuation"}),
    }
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        pre_tokenizers[f"punctuation_{behavior}"] = {"type": "Punctuation", "behavior": behavior}
        for invert in (False, True):
            pre_tokenizers[f"letters_{behavior}_{invert}"] = split_by(letters, behavior, invert)
            pre_tokenizers[f"comma_{behavior}_{invert}"] = split_by(comma, behavior, invert)
    made = {f"normalizer {name}": file_of(base, llama_specials(), part, None, decoders(), "<s>")
            for name, part in normalizers.items()}
    made |= {f"pre_tokenizer {name}": file_of(base, llama_specials(), None, part, None, "<s>")
             for name, part in pre_tokenizers.items()}
    # The library panics on a token of which "stop" would leave nothing.
    ends = {"type": "Strip", "content": "e", "start": 2, "stop": 0}
    odd = {"join": None, "strip": ends, "fuse_strip": decoders(ends, STRIP_FIRST),
           "metaspace_fuse": sequence("decoders", {"type": "ByteFallback"},
                                      metaspace("always", True), {"type": "Fuse"}, ends),
           "byte_level": BYTE_LEVEL}
    made |= {f"decoder {name}": file_of(base, llama_specials(), REPLACE, None, part, "<s>")
             for name, part in odd.items()}
    return made
