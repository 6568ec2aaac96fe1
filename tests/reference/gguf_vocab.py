"""tokenizer.json from a vocabulary-only GGUF file, for check_tokenizers.py. The merges of
SentencePiece vocabularies are found from the scores, as transformers' converter does it."""

import struct
import unicodedata

import spm_tokenizers as spm

SIZES = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
         11: "<q", 12: "<d"}

def cased_letters():
    """Members of a class with the letters that have case, as the DeepSeek LLM file lists them."""
    runs = []
    for code in range(0x1F000):
        if unicodedata.category(chr(code)) not in ("Lu", "Ll", "Lt"):
            continue
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\x{{{first:x}}}-\\x{{{last:x}}}" for first, last in runs)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, kind):
        value = struct.unpack_from(SIZES[kind], self.data, self.at)[0]
        self.at += struct.calcsize(SIZES[kind])
        return value

    def string(self):
        length = self.number(10)
        self.at += length
        return self.data[self.at - length : self.at].decode("utf-8", "replace")

    def value(self, kind):
        if kind == 8:
            return self.string()
        if kind == 9:
            inner, count = self.number(4), self.number(10)
            return [self.value(inner) for _ in range(count)]
        return self.number(kind)


def read_metadata(path):
    reader = Reader(path.read_bytes())
    assert reader.data[:4] == b"GGUF"
    reader.at = 8
    reader.number(10)
    found = {}
    for _ in range(reader.number(10)):
        key = reader.string()
        found[key] = reader.value(reader.number(4))
    return {key.removeprefix("tokenizer.ggml."): value for key, value in found.items()}


def merges_from_scores(tokens, scores):
    score_of = dict(zip(tokens, scores))
    merges = []
    for token, score in score_of.items():
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [cut for cut in cuts if cut[0] in score_of and cut[1] in score_of]
        cuts.sort(key=lambda cut: (score_of[cut[0]], score_of[cut[1]]), reverse=True)
        merges += [(left, right, score) for left, right in cuts]
    merges.sort(key=lambda merge: merge[2], reverse=True)
    return [[left, right] for left, right, _ in merges]


def byte_level(**settings):
    return spm.BYTE_LEVEL | {"add_prefix_space": False} | settings


def pre_tokenizer(kind):
    digits = {"type": "Digits", "individual_digits": True}
    if kind == "starcoder":
        return spm.sequence("pretokenizers", digits, byte_level())
    if kind != "deepseek-llm":
        return byte_level()
    expressions = ["[\r\n]", f"\\s?[{cased_letters()}]+",
                   "\\s?[!-/:-~！-／：-～‘-‟\\x{3000}-。]+", "\\s+$",
                   "[一-龥\\x{800}-一가-\\x{d7ff}]+"]
    splits = [spm.split_by({"Regex": text}, "Isolated") for text in expressions]
    return spm.sequence("pretokenizers", *splits, digits, byte_level(use_regex=False))


def tokenizer_of(path):
    """The file in the structure that its family has on the hub."""
    data = read_metadata(path)
    tokens = data["tokens"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if data["model"] == "llama":
        controls = [spm.added(tokens[i], i) for i in range(3)]
        model = spm.model_of([], ([], merges_from_scores(tokens, data["scores"])),
                             byte_fallback=True)
        model["vocab"] = vocabulary
        return spm.file_of(model, controls, spm.PREPEND, None, spm.decoders(spm.STRIP_FIRST), "<s>")
    controls = [spm.added(tokens[i], i, special=kind == 3)
                for i, kind in enumerate(data["token_type"]) if kind in (3, 4)]
    merges = [merge.split(" ") for merge in data["merges"]]
    model = spm.model_of([], ([], merges), unk_token=None, fuse_unk=False)
    model["vocab"] = vocabulary
    kind = path.name.removesuffix(".gguf")
    return spm.file_of(model, controls, None, pre_tokenizer(kind), byte_level())
