"""A model folder and synthetic chats for prepare.sh, the same bytes on every machine.

The folder has the tokenizer of a vocabulary-only GGUF file of GPT-2 with the tokens of ChatML, a
ChatML template with {% generation %} marks, so that transformers can give the assistant mask too,
and a config.json for the size of the vocabulary; there are no weights.

Chats have one to six turns. Words are whole tokens of the vocabulary (three of four) or two joined
(the rest), by a Zipf law, with numbers, punctuation, paragraphs and lines of code; lengths are
log-normal, about 350 tokens on average and up to some thousands."""

import argparse
import bisect
import itertools
import json
import math
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "reference"))

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
SYSTEM = "You are a helpful assistant. Answer in full sentences, and say so when you do not know."


def write_model(gguf, folder):
    import gguf_vocab
    import spm_tokenizers as spm

    tokenizer = gguf_vocab.tokenizer_of(pathlib.Path(gguf))
    size = len(tokenizer["model"]["vocab"])
    for token in ("<|im_start|>", "<|im_end|>"):
        tokenizer["added_tokens"].append(spm.added(token, size))
        size += 1
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
         "chat_template": TEMPLATE, "model_max_length": 1 << 20}))
    (folder / "config.json").write_text(json.dumps(
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
         "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4,
         "num_hidden_layers": 2, "vocab_size": size, "rms_norm_eps": 1e-5,
         "max_position_embeddings": 1 << 16, "rope_theta": 10000.0, "tie_word_embeddings": True}))
    return tokenizer["model"]["vocab"]


class Writer:
    def __init__(self, vocabulary, seed):
        self.random = random.Random(seed)
        tokens = sorted(vocabulary, key=vocabulary.get)
        words = [token[1:] for token in tokens
                 if token.startswith("Ġ") and token[1:].isascii() and token[1:].isalpha()
                 and len(token) > 2]
        joined = [a + b for a, b in zip(words[200::7], words[500::5])]
        self.words = [word for group in zip(words[0::3], words[1::3], words[2::3], joined)
                      for word in group]
        weights = [1 / (rank + 3) for rank in range(len(self.words))]
        self.cumulative = list(itertools.accumulate(weights))

    def word(self):
        at = bisect.bisect(self.cumulative, self.random.random() * self.cumulative[-1])
        return self.words[min(at, len(self.words) - 1)]

    def sentence(self):
        words = [self.word() for _ in range(self.random.randint(4, 22))]
        if self.random.random() < 0.15:
            words.insert(len(words) // 2, str(self.random.randint(0, 10 ** self.random.randint(1, 6))))
        if self.random.random() < 0.3:
            words[len(words) // 2] += ","
        return words[0].capitalize() + " " + " ".join(words[1:]) + self.random.choice(".....?!:")

    def code(self):
        lines = [f"    {self.word()}_{self.word()} = {self.word()}({self.random.randint(0, 999)}, "
                 f"\"{self.word()}\")" for _ in range(self.random.randint(2, 8))]
        return f"```python\ndef {self.word()}({self.word()}):\n" + "\n".join(lines) + "\n```"

    def text(self, mean_words):
        left = math.exp(self.random.gauss(math.log(mean_words), 0.8))
        parts = []
        while left > 0 or not parts:
            parts.append(self.sentence() if self.random.random() > 0.04 else self.code())
            left -= 13
        return "".join(part + (self.random.choice(("\n\n", " ", " ", " ")) if at + 1 < len(parts)
                               else "") for at, part in enumerate(parts))

    def chat(self):
        messages = []
        if self.random.random() < 0.3:
            messages.append({"role": "system", "content": SYSTEM})
        for _ in range(min(6, 1 + int(self.random.expovariate(1.1)))):
            messages.append({"role": "user", "content": self.text(25)})
            messages.append({"role": "assistant", "content": self.text(90)})
        return {"messages": messages}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", required=True, help="vocabulary of GPT-2")
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, help="folder: model/ and chats.jsonl")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.out)
    writer = Writer(write_model(arguments.gguf, folder / "model"), arguments.seed)
    with open(folder / "chats.jsonl", "w", encoding="utf-8") as file:
        for _ in range(arguments.rows):
            file.write(json.dumps(writer.chat()) + "\n")


if __name__ == "__main__":
    main()
