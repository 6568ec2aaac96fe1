"""What a user does with a model folder, from chats to a merged model, against transformers, PEFT and bitsandbytes.

usage: check_families.py TANDEM ADAPTER_LOGITS TEXT [FAMILY ...]

For every family a tiny random folder is made with a tokenizer in the style of the family, trained on TEXT (a folder, see
make_tokenizers.py), and its published chat template as the trl package has it. tandem trains on two ranks; then are compared
  evaluate     the loss on held-out chats with PEFT's, on the tokens that trl's marked template marks;
  generate     the greedy answer with transformers' generate;
  check_adapter.py and check_merged.py: the adapter, the merged folder, the NF4 folder;
  stored       the same losses from a folder that transformers quantized, with modules left whole, on one rank and on two.
Exit status 1 when something differs."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import common
import make_families
import make_tokenizers
import spm_tokenizers as spm
from make_families import Family, longrope, shape, theta

from peft import PeftModel
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma3Config, Gemma3TextConfig, Phi3Config,
    Qwen3Config)
from transformers.utils import logging as transformers_logging

HERE = Path(__file__).resolve().parent
RANKS = HERE.parents[1] / "launch" / "mpirun.sh"
VOCABULARY = 832  # more than the tokenizers have, as in the published folders
SIZES = (64, 128, 3, 4, 2, VOCABULARY)
GEMMA3 = dict(head_dim=32, query_pre_attn_scalar=32, sliding_window=16, sliding_window_pattern=3,
              max_position_embeddings=512, tie_word_embeddings=True,
              rope_parameters=make_families.GEMMA3["rope_parameters"])

# Family, style of the tokenizer, template, first and end token.
CASES = {
    "phi3": (Phi3Config(**shape(*SIZES), max_position_embeddings=512, sliding_window=400,
                        original_max_position_embeddings=320,
                        rope_parameters=longrope(6, partial_rotary_factor=0.75)),
             spm.phi3, "phi3", "<s>", "<|endoftext|>"),
    "gemma2": (Gemma2Config(**shape(*SIZES), head_dim=32, query_pre_attn_scalar=24,
                            attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                            sliding_window=16, max_position_embeddings=512,
                            rope_parameters=theta(10000.0)),
               spm.gemma, "gemma", "<bos>", "<eos>"),
    "gemma3": (Gemma3TextConfig(**shape(*SIZES), **GEMMA3), spm.gemma, "gemma3", "<bos>", "<eos>"),
    "gemma3_multimodal": (
        Gemma3Config(text_config=shape(*SIZES) | GEMMA3, vision_config=dict(
            hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            image_size=8, patch_size=4, vision_use_head=False), image_token_index=VOCABULARY - 3,
            boi_token_index=VOCABULARY - 2, eoi_token_index=VOCABULARY - 1, mm_tokens_per_image=4),
        spm.gemma, "gemma3", "<bos>", "<eos>"),
    "qwen3": (Qwen3Config(**shape(*SIZES), head_dim=32, max_position_embeddings=512,
                          rope_parameters=theta(1000000.0)),
              spm.tinyllama_chat, "qwen3_instruct_2507", "<s>", "<|im_end|>"),
}


def templates():
    return Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"


def fill_up(made):
    for number in range(len(made["model"]["vocab"]), VOCABULARY):
        made["model"]["vocab"][f"<unused{number}>"] = number
    made["added_tokens"].append(spm.added("<image_soft_token>", VOCABULARY))


def write_base(folder, name, pieces):
    config, style, template, first, end = CASES[name]
    family = Family(config)
    model = make_families.build_base(family)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    made, _ = style(pieces)
    assert len(made["model"]["vocab"]) + 10 < VOCABULARY
    if "gemma3" in name:  # the published tokenizer has one token that models of text have no row for
        fill_up(made)
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    common.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": first, "eos_token": end,
        "unk_token": "<unk>", "chat_template": (templates() / f"{template}.jinja").read_bytes().decode()})


def write_chats(text, folder):
    """Single and multi turns; half is held out."""
    chats = []
    for line in (text / "seed_tasks.jsonl").read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        instance = task["instances"][0]
        messages = [{"role": "user", "content": task["instruction"][:60]},
                    {"role": "assistant", "content": "  " + instance["output"][:60] + " \u65e5\U0001f600"}]
        if len(chats) % 3 == 0:
            messages += [{"role": "user", "content": instance["input"][:40] + "?"},
                         {"role": "assistant", "content": "Done.\n\tYes"}]
        chats.append({"messages": messages})
        if len(chats) == 24:
            break
    for name, rows in (("train", chats[:16]), ("held", chats[16:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return chats[16:]


def whole_characters(tokenizer, row, found):
    """transformers marks only the first token of the last character, and SPM may have two there."""
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    mask = list(found["assistant_masks"])
    for i in range(1, len(mask)):
        if mask[i - 1] and tuple(spans[i]) == tuple(spans[i - 1]):
            mask[i] = 1
    return mask


class Check:
    def __init__(self, name, work, programs, text, pieces):
        self.name, self.work, self.failed = name, work, 0
        self.tandem, self.logits = programs
        self.base = work / "base"
        self.base.mkdir()
        write_base(self.base, name, pieces)
        self.held = write_chats(text, work)

    def report(self, what, good, detail):
        print(f"{'ok    ' if good else 'FAILED'} {self.name}: {what}: {detail}", flush=True)
        self.failed += not good

    def run(self, *command, ranks=None):
        prefix = [str(RANKS), str(ranks)] if ranks else []
        done = subprocess.run(prefix + [str(part) for part in command], capture_output=True,
                              text=True, timeout=300)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))}: code {done.returncode}\n"
                             f"{done.stdout}{done.stderr}")
        return done.stdout

    def train(self, base, out, ranks=2):
        self.run(self.tandem, "train", *sum((["--set", setting] for setting in [
            f"model_name_or_path={base}", f"train_files={self.work}/train.jsonl",
            f"output_dir={out}", "max_length=256", "max_steps=4", "lora_r=4", "lora_alpha=16",
            "gradient_accumulation_steps=4", "learning_rate=0.02", "logging_steps=1",
            "lora_dropout=0"]), []), ranks=ranks)
        return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").open()
                if '"loss"' in line]

    def script(self, what, *command):
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
        lines = (done.stdout if done.returncode == 0 else done.stdout + done.stderr).splitlines()
        self.report(what, done.returncode == 0, "; ".join(lines[-8:]))

    def adapter(self):
        asked = self.work / "asked.safetensors"
        save_file({"input_ids": torch.randint(3, VOCABULARY - 4, (150,), dtype=torch.int32),
                   "cu_seqlens": torch.tensor([0, 40, 150], dtype=torch.int32)}, asked)
        found = self.work / "found.safetensors"
        for flags in ([], ["--nf4"]):
            self.run(self.logits, self.base, self.work / "run/adapter", asked, found, *flags)
            self.script("adapter by PEFT" + "".join(flags), HERE / "check_adapter.py", self.base,
                        self.work / "run/adapter", found, *flags)

    def tuned(self):
        return PeftModel.from_pretrained(
            make_families.load_base(self.base), self.work / "run/adapter").eval()

    def evaluate(self, model, tokenizer):
        template = templates() / f"{CASES[self.name][2]}_training.jinja"
        total, count = 0.0, 0
        for row in self.held:
            found = tokenizer.apply_chat_template(
                row["messages"], chat_template=template.read_bytes().decode(), tokenize=True,
                return_dict=True, return_assistant_tokens_mask=True)
            assert found["input_ids"] == tokenizer.apply_chat_template(row["messages"])["input_ids"]
            ids = torch.tensor(found["input_ids"])
            mask = torch.tensor(whole_characters(tokenizer, row, found))[1:].bool()
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(
                logits[mask], ids[1:][mask], reduction="sum").item()
            count += int(mask.sum())
        answer = json.loads(self.run(
            self.tandem, "evaluate", "--model", self.base, "--adapter", self.work / "run/adapter",
            "--data", self.work / "held.jsonl", "--json", "--set", "load_in_4bit=false", "--set", "max_length=256",
            ranks=2))
        self.report("evaluate", abs(answer["loss"] - total / count) < 1e-4, f"{answer} against "
                    f"{total / count:.6f} over {count} tokens")

    def generate(self, model, tokenizer):
        asked = self.held[0]["messages"][0]["content"]
        ids = tokenizer.apply_chat_template([{"role": "user", "content": asked}], tokenize=True,
                                            add_generation_prompt=True, return_dict=True,
                                            return_tensors="pt")["input_ids"]
        expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids),
                                  max_new_tokens=24, do_sample=False, pad_token_id=0,
                                  eos_token_id=None)[0, ids.shape[1]:]
        answer = self.run(self.tandem, "generate", "--model", self.base, "--adapter",
                          self.work / "run/adapter", "--chat", asked, "--max-new-tokens", 24,
                          "--set", "load_in_4bit=false")
        text = tokenizer.decode(expected, skip_special_tokens=True)
        # Where an end token comes, ours stops.
        same = answer.strip() == text.strip() or (
            len(answer.strip()) > 0 and text.strip().startswith(answer.strip()))
        self.report("generate", same, f"{answer!r} against {text!r}")

    def stored(self):
        folder = self.work / "stored"
        self.script("folder that transformers quantizes", HERE / "make_prequantized.py", self.base,
                    folder, "--skip", "lm_head", "layers.1.mlp", "0.self_attn.o_proj")
        if not folder.exists():
            return
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((self.base / name).read_bytes())
        losses = [self.train(folder, self.work / f"stored{ranks}", ranks) for ranks in (1, 2)]
        self.report("training on it, 1 and 2 ranks", losses[0] == losses[1] and len(losses[0]) == 4,
                    losses[0])
        self.script("its logits", HERE / "check_merged.py", "stored", folder,
                    self.work / "stored2/adapter", self.logits)

    def all(self):
        losses = self.train(self.base, self.work / "run")
        self.report("train", len(losses) == 4 and losses[-1] < losses[0], losses)
        model, tokenizer = self.tuned(), AutoTokenizer.from_pretrained(self.base)
        self.adapter()
        self.evaluate(model, tokenizer)
        self.generate(model, tokenizer)
        for into in ("same", "nf4-dequantized"):
            self.run(self.tandem, "merge", "--model", self.base, "--adapter",
                     self.work / "run/adapter", "--output", self.work / into, "--into", into,
                     "--max-shard-size", "300K")
            self.script(f"merge into {into}", HERE / "check_merged.py", "merged", self.base,
                        self.work / "run/adapter", self.work / into, self.logits,
                        *(["--nf4"] if into != "same" else []))
        self.run(self.tandem, "quantize", "--model", self.base, "--output", self.work / "nf4")
        self.script("quantize", HERE / "check_merged.py", "nf4", self.base, self.work / "nf4")
        again = self.train(self.work / "nf4", self.work / "again")
        self.report("training on the NF4 folder", again == losses, again)
        self.stored()
        return self.failed


def main():
    programs, text = [Path(item).resolve() for item in sys.argv[1:3]], Path(sys.argv[3])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    pieces = spm.trained_pieces(make_tokenizers.training_texts(text), 400)[:2]
    failed = 0
    for name in sys.argv[4:] or CASES:
        common.seed_all(11)
        with tempfile.TemporaryDirectory() as work:
            failed += Check(name, Path(work), programs, text, pieces).all()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
