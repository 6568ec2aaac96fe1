"""Small tokenizers in the configurations of the real families, and what the tokenizers library
makes of difficult texts: byte-level BPE in tests/fixtures/tokenizers/<style>/, SentencePiece-style
BPE and single parts in tests/fixtures/tokenizers/spm/.

The vocabularies are trained on the files of --text: tinyshakespeare.txt and seed_tasks.jsonl (the
seed tasks of Self-Instruct), both public."""

import argparse
import json
import random
import sys
from pathlib import Path

import spm_tokenizers as spm
from common import FIXTURES, fresh_folder, start
from tokenizer_texts import MULTILINGUAL, fixed_texts, mixed_texts, special_texts

from tokenizers import (
    AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
    trainers)

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(**settings):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)


def split_then_bytes(pattern, trim_offsets):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        byte_level(trim_offsets=trim_offsets, use_regex=False)])


def trained(texts, vocab, pre_tokenizer, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def special(*names, **settings):
    return [AddedToken(name, special=True, normalized=False, **settings) for name in names]


def template(begin, end, tokenizer):
    ids = [(name, tokenizer.token_to_id(name)) for name in (begin, end) if name]
    single = " ".join(filter(None, [begin, "$A", end]))
    second = [begin and f"{begin}:1", "$B:1", end and f"{end}:1"]
    pair = " ".join(filter(None, [begin, "$A", end, *second]))
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def make_gpt2(texts):
    tokenizer = trained(texts, 1000, byte_level(trim_offsets=True, use_regex=True))
    tokenizer.add_special_tokens(special("<|endoftext|>"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, ["<|endoftext|>"]


def make_llama3(texts):
    tokenizer = trained(texts, 1300, split_then_bytes(LLAMA3_SPLIT, True))
    names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(special(*names))
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False), template(names[0], None, tokenizer)])
    return tokenizer, names


def make_qwen2(texts):
    tokenizer = trained(texts, 1000, split_then_bytes(QWEN_SPLIT, False), normalizers.NFC())
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(special(*names))
    thought = ["<think>", "</think>"]
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in thought])
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tokenizer, names + thought


def make_smollm(texts):
    tokenizer = trained(texts, 800, pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        byte_level(trim_offsets=True, use_regex=True)]))
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<jupyter_start>"]
    tokenizer.add_special_tokens(special(*names))
    return tokenizer, names


def make_added(texts):
    """Every kind of added token, after NFC, with a template on both sides."""
    tokenizer = trained(texts, 600, split_then_bytes(QWEN_SPLIT, False), normalizers.NFC())
    tokenizer.add_special_tokens(special("<s>", "</s>"))
    tokenizer.add_special_tokens(special("<mask>", lstrip=True))
    tokenizer.add_special_tokens(special("<sep>", rstrip=True))
    tokenizer.add_special_tokens(special("<both>", lstrip=True, rstrip=True))
    tokenizer.add_special_tokens([AddedToken("<caf\u00e9>", special=True, normalized=True)])
    tokenizer.add_tokens([
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("na\u00efve", single_word=True, normalized=True),
        AddedToken("re\u0301sume\u0301", normalized=False),
        AddedToken("<a>", normalized=False), AddedToken("<a><b>", normalized=False),
        AddedToken("<b>", normalized=True), AddedToken("<b><c>", normalized=True),
        AddedToken("  ", normalized=False), AddedToken("\n\n", normalized=True),
        AddedToken("<tail>", lstrip=True, single_word=True, normalized=True)])
    tokenizer.post_processor = template("<s>", "</s>", tokenizer)
    return tokenizer, ["<s>", "</s>", "<mask>", "<sep>", "<both>", "<caf\u00e9>", "word",
                       "na\u00efve",
                       "re\u0301sume\u0301", "<a>", "<a><b>", "<b>", "<b><c>", "<tail>"]


ADDED_TEXTS = [
    "a <mask> b", "a  \n\t<mask>  b", "a<mask>b", "<mask> <mask>", "  <mask>", "a <sep> b",
    "a<sep> \n\n b", "<sep>  ",
    "a  <both>  b", " <both> <both> ", "<both><mask><sep> x", "x <mask><sep>  <both> y",
    "<cafe\u0301>", "<caf\u00e9>",
    "x<cafe\u0301>y", "word", "a word b", "words", "sword", "word word", "word-word", "word_word",
    "word1", "1word",
    "\u00e9word", "word\u00e9", "word.", "(word)", "\nword\n", "wordword", "nai\u0308ve",
    "na\u00efve", "a nai\u0308ve b",
    "nai\u0308vet\u00e9", "re\u0301sume\u0301", "r\u00e9sum\u00e9", "my re\u0301sume\u0301.", "<a>",
    "<a><b>", "<a><b><c>", "<b><c>", "<b>",
    "<a> <b>", "<a><a><b>", "<b><b><c>", "<a><b", "x  y", "x   y", "x    y", "\n\n", "\n\n\n",
    "a\n\n\n\nb", "  \n\n  ",
    "a <tail>", "a <tail>b", "a<tail>", "  <tail>.", "<tail><tail>", "<s>a</s>", "<s> a </s>",
    "< s>", "<mask",
    "a\u00a0<mask>\u00a0b", "a\u3000<both>\u3000b", "word<mask>word", "<mask>\u0301",
    "<sep>\u0301x", "word\u0301",
]


# --- files as the hub has them -----------------------------------------------------------------


def string_merges(text):
    """Merges as "a b", the format before version 0.20."""
    found = json.loads(text)
    found["model"]["merges"] = [" ".join(pair) for pair in found["model"]["merges"]]
    return found


def as_old_gpt2(text):
    """Without the keys that came after that tokenizer was published."""
    found = string_merges(text)
    for key in ("byte_fallback", "ignore_merges"):
        del found["model"][key]
    for part in ("pre_tokenizer", "post_processor", "decoder"):
        found[part].pop("use_regex", None)
    found["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    return found


def with_unreachable_words(text):
    """Llama 3 sets ignore_merges: a piece that is a token is taken whole, though no merges lead to
    it. Merges that only whole words need are dropped, so that it matters."""
    found = json.loads(text)
    merges = found["model"]["merges"]
    used = {part for pair in merges for part in pair}
    leaves = [pair for pair in merges if "".join(pair) not in used and len("".join(pair)) > 4]
    dropped = {tuple(pair) for pair in leaves[::3]}
    assert len(dropped) > 30
    found["model"]["merges"] = [pair for pair in merges if tuple(pair) not in dropped]
    found["model"]["ignore_merges"] = True
    return found


STYLES = {
    "gpt2": (make_gpt2, as_old_gpt2, 2),
    "llama3": (make_llama3, with_unreachable_words, None),
    "qwen2": (make_qwen2, string_merges, None),
    "smollm": (make_smollm, json.loads, None),
    "added": (make_added, json.loads, None),
}


# --- cases -------------------------------------------------------------------------------------


def passages(texts):
    """A long passage, long words, lines and pieces of the training text."""
    play = texts[0]
    return [*play[9000:9900].splitlines(), play[5000:6200], "z" * 400, "ab" * 150, "the" * 70,
            play[20000:20200].upper(),
            " ".join(play[30000:30300].split())]


def case_of(tokenizer, text):
    case = {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
    whole = tokenizer.encode(text, add_special_tokens=True).ids
    return case if whole == case["ids"] else case | {"ids_special": whole}


def write_style(name, texts, seed):
    make, rewrite, indent = STYLES[name]
    folder = fresh_folder(FIXTURES / "tokenizers" / name)
    made, tokens = make(texts)
    path = folder / "tokenizer.json"
    separators = None if indent else (",", ":")
    path.write_text(json.dumps(rewrite(made.to_str()), ensure_ascii=False, indent=indent,
                               separators=separators), encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(path))
    wanted = fixed_texts() + special_texts(tokens) + passages(texts)
    wanted += mixed_texts(70, tokens, seed) + (ADDED_TEXTS if name == "added" else [])
    cases = [case_of(tokenizer, text) for text in dict.fromkeys(wanted)]
    lines = [json.dumps(case, ensure_ascii=False, separators=(",", ":")) for case in cases]
    (folder / "cases.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print(f"{name:7} vocabulary {tokenizer.get_vocab_size()}, {len(cases)} cases, "
          f"{sum(len(case['ids']) for case in cases)} tokens")


# --- SentencePiece-style: one set of pieces, many files around it ------------------------------


def spm_case(tokenizer, text):
    whole = tokenizer.encode(text, add_special_tokens=True).ids
    return {"text": text, "ids_special": whole,
            "decoded": tokenizer.decode(whole, skip_special_tokens=True)}


def spm_line(name, made, tokens, count, seed, pieces):
    tokenizer = Tokenizer.from_str(json.dumps(made))
    generator = random.Random(seed)
    pool = [*fixed_texts(), *special_texts(tokens), *mixed_texts(40, tokens, seed)]
    texts = generator.sample([text for text in pool if len(text) < 40], count)
    model = dict(made["model"])
    rest = [*(spm.BYTES if model["byte_fallback"] else []), *pieces[0]]
    names = list(model.pop("vocab"))
    first = next(names[:n] for n in range(len(names))
                 if list(dict.fromkeys(names[:n] + rest)) == names)
    del model["merges"]
    made = {key: value for key, value in made.items() if value is not None}
    return {"name": name, "first": first, "file": made | {"model": model},
            "cases": [spm_case(tokenizer, text) for text in texts]}


def write_spm(texts):
    folder = fresh_folder(FIXTURES / "tokenizers" / "spm")
    tokens, merges, _ = spm.trained_pieces(texts, 500, alphabet=150)
    pieces = spm.space_runs(tokens, merges, longest=4)
    lines = [spm_line(name, *make(pieces), 20, seed, pieces)
             for seed, (name, make) in enumerate(spm.STYLES.items()) if name != "whole_words"]
    lines += [spm_line(name, made, spm.LLAMA, 5, seed, pieces)
              for seed, (name, made) in enumerate(spm.part_styles(pieces).items())
              if " comma_" not in name]
    content = {"pieces.json": [{"tokens": pieces[0], "merges": pieces[1]}], "styles.jsonl": lines}
    for name, rows in content.items():
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"
                       for row in rows)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    print(f"spm     {len(pieces[0])} pieces, {len(lines)} files, "
          f"{sum(len(line['cases']) for line in lines)} cases")


def training_texts(folder):
    tasks = (folder / "seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    instructions = [json.loads(line)["instruction"] for line in tasks]
    play = (folder / "tinyshakespeare.txt").read_text(encoding="utf-8")
    return [play, *instructions, *(MULTILINGUAL * 40)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder with the training texts")
    parser.add_argument("--spm-only", action="store_true", help="leave the other folders alone")
    arguments = parser.parse_args()
    start()
    texts = training_texts(arguments.text)
    write_spm(texts)
    if arguments.spm_only:
        return
    for seed, name in enumerate(STYLES):
        write_style(name, texts, seed)


if __name__ == "__main__":
    sys.exit(main())
