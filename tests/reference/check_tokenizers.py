"""Compares tandem's tokenizers with the tokenizers library: ids with and without special tokens,
decoded text, decoding as a stream, speed on one core. Any difference is an error.

    python tests/reference/check_tokenizers.py --probe build/tests/tokenizer_probe --text FOLDER \\
        [--vocab FOLDER] [--count 10000] [--only NAME]

--text holds tinyshakespeare.txt and seed_tasks.jsonl, on which a vocabulary for each family is
trained. --vocab holds vocabulary-only GGUF files NAME.gguf with NAME.gguf.inp and NAME.gguf.out,
the test vectors of llama.cpp."""

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import gguf_vocab  # noqa: E402
import make_tokenizers  # noqa: E402
import spm_tokenizers as spm  # noqa: E402
import tokenizer_texts  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

REFUSED = 1 << 31
INVALID = [(b"ab\xff", 2), (b"\xc3", 0), (b"x\xed\xa0\x80", 1), (b"\xe2\x82\xac\xf5", 3),
           (b"\xc0\x80", 0)]


class Probe:
    def __init__(self, program, folder):
        self.process = subprocess.Popen([program, str(folder)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def ask(self, what, data):
        self.process.stdin.write(what.encode() + struct.pack("<I", len(data)) + data)
        self.process.stdin.flush()
        head = self.process.stdout.read(4)
        if len(head) < 4:
            raise SystemExit("the probe failed, see above")
        length = struct.unpack("<I", head)[0]
        return length & REFUSED, self.process.stdout.read(length & ~REFUSED)

    def encode(self, text, special):
        refused, data = self.ask("E" if special else "e", text)
        return data.decode() if refused else list(struct.unpack(f"<{len(data) // 4}i", data))

    def decode(self, ids, skip):
        return self.ask("D" if skip else "d", struct.pack(f"<{len(ids)}i", *ids))[1].decode()

    def seconds(self, text):
        return struct.unpack("<q", self.ask("t", text)[1])[0] / 1e9

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0


def random_character(generator):
    kind = generator.randrange(12)
    if kind < 4:
        return chr(generator.randrange(32, 127))
    if kind == 4:
        return generator.choice(" \t\n\r\u2581\u00a0\u3000\u200b")
    if kind == 5:
        return chr(generator.randrange(32))
    if kind == 6:
        return chr(generator.randrange(0x80, 0x600))
    if kind == 7:
        return chr(generator.choice([0x4E00, 0xAC00, 0x3040, 0x900, 0x1100]) + generator.randrange(250))
    if kind == 8:
        return chr(generator.randrange(0x1F300, 0x1FAFF))
    if kind == 9:
        return chr(generator.randrange(0x300, 0x370))
    while True:
        code = generator.randrange(0x110000)
        if not 0xD800 <= code < 0xE000:
            return chr(code)


def random_text(generator, tokens, phrases):
    parts = []
    for _ in range(generator.randrange(1, 8)):
        kind = generator.randrange(6)
        if kind == 0:
            parts.append(generator.choice(tokens))
        elif kind == 1:
            parts.append(" " * generator.randrange(1, 40))
        elif kind == 2:
            parts.append(generator.choice(phrases))
        else:
            parts.append("".join(random_character(generator)
                                 for _ in range(generator.randrange(1, 16))))
    return "".join(parts)


def random_ids(generator, size):
    return [generator.randrange(size + 3) for _ in range(generator.randrange(1, 30))]


class Comparison:
    def __init__(self, name, made, tokens, arguments):
        self.name, self.tokens, self.wrong, self.compared = name, list(tokens), 0, 0
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "tokenizer.json"
        path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        self.peer = Tokenizer.from_file(str(path))
        self.probe = Probe(arguments.probe, self.folder.name)

    def same(self, what, text, ours, theirs):
        self.compared += 1
        if ours == theirs:
            return
        self.wrong += 1
        if self.wrong <= 5:
            print(f"{self.name}: {what} of {text!r}:\n  ours   {ours}\n  theirs {theirs}")

    def text(self, text):
        for special in (False, True):
            ids = self.peer.encode(text, add_special_tokens=special).ids
            self.same("ids", text, self.probe.encode(text.encode(), special), ids)
        self.decoded(ids)

    def decoded(self, ids):
        for skip in (False, True):
            theirs = self.peer.decode(ids, skip_special_tokens=skip)
            self.same("text", ids, self.probe.decode(ids, skip), theirs)

    def refusals(self):
        for data, offset in INVALID:
            answer = self.probe.encode(data, False)
            expected = f"invalid UTF-8 at byte {offset} of the text"
            self.same("refusal", data, answer if isinstance(answer, str) else "accepted", expected)

    def all(self, count, seed, texts):
        generator = random.Random(seed)
        phrases = tokenizer_texts.fixed_texts()
        for text in [*phrases, *tokenizer_texts.special_texts(self.tokens), *texts]:
            self.text(text)
        for _ in range(count):
            self.text(random_text(generator, self.tokens, phrases))
            self.decoded(random_ids(generator, self.peer.get_vocab_size()))
        self.refusals()

    def speed(self, label, texts):
        """Best of three passes over the texts, one core each."""
        data = [text.encode() for text in texts]
        total = sum(map(len, data)) / 1e6
        ours = min(sum(map(self.probe.seconds, data)) for _ in range(3))
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            for text in texts:
                self.peer.encode(text, add_special_tokens=False)
            best = min(best, time.perf_counter() - begin)
        print(f"{self.name:16} {label:24} {total / ours:8.1f} MB/s, library {total / best:8.1f} MB/s")

    def report(self):
        self.probe.close()
        print(f"{self.name:32} {self.compared:7} compared, {self.wrong} differ")
        return self.wrong


def read_vectors(path):
    texts = Path(f"{path}.inp").read_bytes().decode()
    lines = Path(f"{path}.out").read_text().split("\n")
    return list(zip(texts.split("\n__ggml_vocab_test__\n"), lines))[:-1]  # ends with a separator


def check_vectors(path, arguments):
    """Against the published ids themselves, then against the library on random texts."""
    made = gguf_vocab.tokenizer_of(path)
    tokens = [token["content"] for token in made["added_tokens"]]
    comparison = Comparison(path.name, made, tokens, arguments)
    count = 0
    for text, line in read_vectors(path):
        expected = [int(number) for number in line.split()]
        comparison.same("published ids", text, comparison.probe.encode(text.encode(), False),
                        expected)
        comparison.text(text)
        count += 1
    print(f"{path.name}: {count} published cases, {comparison.wrong} differ")
    comparison.all(arguments.count, 1, [])
    speeds(comparison, arguments)
    return comparison.report()


def speeds(comparison, arguments):
    play = (arguments.text / "tinyshakespeare.txt").read_text(encoding="utf-8")
    chunks = [play[i : i + 2000] for i in range(0, len(play), 2000)]
    chinese = "".join(tokenizer_texts.MULTILINGUAL) * 500
    comparison.speed("2,000-character texts", chunks)
    comparison.speed("one text of 1.1 MB", [play])
    comparison.speed("multilingual, one text", [chinese])
    comparison.speed("1 MB without a space", ["".join(play.split())[:1000000]])


def check_characters(pieces, arguments):
    """Every character through every part that has tables of its own: beside a mark for the
    normalizers; between unknown letters, which fuse where nothing splits them, for the others."""
    wrong = 0
    plain = spm.file_of(spm.model_of(spm.LLAMA, ([], [])), spm.llama_specials())
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for name, made in spm.part_styles(pieces).items():
        kind, part = name.split(" ")
        if kind == "decoder" or part in ("replace", "replace_empty", "chain") or "comma_" in part:
            continue
        if kind == "pre_tokenizer":
            made = plain | {"pre_tokenizer": made["pre_tokenizer"]}
        form = "a{0}\u0301 \u1112{0}\u1161 " if kind == "normalizer" else "\u00f1{0}\u00f1"
        comparison = Comparison(f"all characters, {name}", made, [], arguments)
        for start in range(0, len(codes), 512):
            text = "".join(form.format(chr(code)) for code in codes[start : start + 512])
            comparison.same("ids", text, comparison.probe.encode(text.encode(), False),
                            comparison.peer.encode(text, add_special_tokens=False).ids)
        wrong += comparison.report()
    return wrong


def styles_of(texts):
    for name, (make, rewrite, _) in make_tokenizers.STYLES.items():
        made, tokens = make(texts)
        yield name, rewrite(made.to_str()), tokens
    tokens, merges, trainer = spm.trained_pieces(texts, 3000)
    yield "sentencepiece_trainer", json.loads(trainer.to_str()), ["<unk>"]
    pieces = spm.space_runs(tokens, merges)
    for name, make in spm.STYLES.items():
        yield f"spm {name}", *make(pieces)
    for name, made in spm.part_styles(pieces).items():
        yield name, made, spm.LLAMA


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probe", required=True, help="the program tokenizer_probe")
    parser.add_argument("--text", type=Path, required=True, help="folder with the training texts")
    parser.add_argument("--vocab", type=Path, help="folder with GGUF vocabularies")
    parser.add_argument("--count", type=int, default=10000, help="random texts for each tokenizer")
    parser.add_argument("--only", help="only tokenizers whose name contains this")
    arguments = parser.parse_args()
    wrong = 0
    texts = make_tokenizers.training_texts(arguments.text)
    for path in sorted(arguments.vocab.glob("*.gguf")) if arguments.vocab else []:
        if not arguments.only or arguments.only in path.name:
            wrong += check_vectors(path, arguments)
    for seed, (name, made, tokens) in enumerate(styles_of(texts)):
        if arguments.only and arguments.only not in name:
            continue
        comparison = Comparison(name, made, tokens, arguments)
        extra = make_tokenizers.ADDED_TEXTS if name == "added" else []
        comparison.all(arguments.count, seed, extra)
        wrong += comparison.report()
    if not arguments.only or arguments.only in "all characters":
        wrong += check_characters(spm.trained_pieces(texts, 500)[:2], arguments)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
