"""100 optimizer steps of PEFT on a bitsandbytes NF4 base: tests/fixtures/train100/.

The base is loaded by transformers with BitsAndBytesConfig (nf4, double quantization, fp32 compute),
so its linear layers are real Linear4bit modules. A second run on explicitly dequantized fp32
weights, one row at a time, must tell the same story; its distance is what rounding alone does."""

import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from common import FIXTURES, PROJECTIONS, fresh_folder, seed_all, start, write_json, write_jsonl
from make_families import Family, build_base, lora_config, quantize_blocks, shape, theta

import bitsandbytes
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, get_cosine_schedule_with_warmup)
from transformers.utils import logging as transformers_logging

FOLDER = FIXTURES / "train100"
STEPS = 100
ROWS = 64
ROWS_PER_MICRO_BATCH = 2
ACCUMULATION = 2
WARMUP_STEPS = 10
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
CLIP = 1.0
VOCAB = 256


def make_base():
    seed_all(500)
    config = LlamaConfig(
        **shape(64, 128, 2, 4, 2, VOCAB), rms_norm_eps=1e-5, max_position_embeddings=128,
        rope_parameters=theta(10000.0))
    model = build_base(Family(config))
    model.save_pretrained(FOLDER)
    (FOLDER / "generation_config.json").unlink(missing_ok=True)


def make_row(number):
    """A walk over the tokens with a fixed stride after a prompt that names the stride. The first
    token keeps its label in some rows, although no loss is ever taken there."""
    length = 8 + (number * 29) % 41
    stride = 1 + number % 7
    first = int(torch.randint(3, VOCAB, ()))
    ids = [3 + (first + stride * at) % (VOCAB - 3) for at in range(length)]
    ids[0], ids[-1] = 1, 2
    prompt = length - 1 if number == 5 else 1 + (number * 5) % (length // 2)
    labels = [-100] * prompt + ids[prompt:]
    if number % 4 == 0:
        labels[0] = ids[0]
    if number % 6 == 3 and length > 20:
        labels[-8:-4] = [-100] * 4
    return {"input_ids": ids, "labels": labels}


def make_data():
    seed_all(501)
    rows = [make_row(number) for number in range(ROWS)]
    write_jsonl(FOLDER / "data.jsonl", rows)
    return rows


def load_quantized():
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32))
    quantized = 0
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # Otherwise evaluation on a CPU with AVX512-BF16 would repack the weights into bf16.
            module.support_avx512bf16_for_cpu = False
            assert module.weight.quant_state.nested and module.compute_dtype == torch.float32
            quantized += 1
    assert quantized == 2 * len(PROJECTIONS), quantized
    return model


def load_dequantized():
    return quantize_blocks(AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="sdpa"))


def make_initial_adapter():
    seed_all(502)
    model = get_peft_model(load_quantized(), lora_config(r=8, lora_alpha=16))
    save_adapter(model, "initial_adapter")


def save_adapter(model, name):
    model.peft_config["default"].base_model_name_or_path = FOLDER.name
    model.save_pretrained(FOLDER / name, save_embedding_layers=False)
    (FOLDER / name / "README.md").unlink(missing_ok=True)


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    fill = lambda row, key, value: row[key] + [value] * (longest - len(row[key]))  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(row, "input_ids", 0) for row in rows]),
        "labels": torch.tensor([fill(row, "labels", -100) for row in rows]),
        "attention_mask": torch.tensor(
            [[int(at < len(row["input_ids"])) for at in range(longest)] for row in rows]),
    }


def trained_tokens(rows):
    return sum(label != -100 for row in rows for label in row["labels"][1:])


def summed_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=-100,
        reduction="sum")


def rows_of_step(rows, step):
    count = ROWS_PER_MICRO_BATCH * ACCUMULATION
    return [rows[(step * count + at) % len(rows)] for at in range(count)]


def train(model, rows, rows_per_micro_batch):
    """AdamW, clipping and the schedule as the Trainer of transformers combines them."""
    model = PeftModel.from_pretrained(model, FOLDER / "initial_adapter", is_trainable=True)
    model.train()
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, STEPS)
    steps = []
    for step in range(STEPS):
        batch = rows_of_step(rows, step)
        count, total = trained_tokens(batch), 0.0
        for at in range(0, len(batch), rows_per_micro_batch):
            loss = summed_loss(model, padded(batch[at : at + rows_per_micro_batch])) / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(weights, CLIP).item()
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.append({"loss": total, "grad_norm": norm, "lr": rate, "trained_tokens": count})
    return model, steps


def largest_difference(first, second, key):
    return max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(first, second))


def adapter_difference(model):
    final = load_file(FOLDER / "final_adapter" / "adapter_model.safetensors")
    worst = 0.0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            worst = max(worst, (parameter - final[name.replace(".default", "")]).abs().max().item())
    return worst


def compare_runs(rows, steps):
    model, shadow = train(load_dequantized(), rows, 1)
    for key in ("loss", "grad_norm"):
        apart = largest_difference(steps, shadow, key)
        print(f"{key}: largest relative difference between the two runs {apart:.2e}")
        assert apart < 1e-5
    print(f"final adapter: largest difference {adapter_difference(model):.2e}")


def main():
    start()
    transformers_logging.disable_progress_bar()
    fresh_folder(FOLDER)
    make_base()
    rows = make_data()
    make_initial_adapter()
    model, steps = train(load_quantized(), rows, ROWS_PER_MICRO_BATCH)
    save_adapter(model, "final_adapter")
    settings = {
        "steps": STEPS, "rows_per_micro_batch": ROWS_PER_MICRO_BATCH, "accumulation": ACCUMULATION,
        "warmup_steps": WARMUP_STEPS, "learning_rate": LEARNING_RATE, "schedule": "cosine",
        "weight_decay": WEIGHT_DECAY, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "clip": CLIP}
    write_json(FOLDER / "losses.json", {"settings": settings, "steps": steps})
    clipped = sum(step["grad_norm"] > CLIP for step in steps)
    print(f"loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}, {clipped} of {STEPS} clipped")
    assert 0 < clipped < STEPS
    compare_runs(rows, steps)
    assert json.loads((FOLDER / "losses.json").read_text())["steps"][0]["lr"] == 0.0


if __name__ == "__main__":
    sys.exit(main())
