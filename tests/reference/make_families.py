"""Tiny random models of every family with the logits, losses and LoRA gradients that transformers
and PEFT compute for them in fp32: tests/fixtures/families/<family>/. README.md names the
tensors.

usage: make_families.py [FAMILY ...]
Without arguments all of them, and selection.json."""

import json
import sys
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from common import (
    FIXTURES, PROJECTIONS, bnb_roundtrip, draw_unambiguous, fresh_folder, save_tensors, seed_all,
    start, write_json)

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig, AutoModelForCausalLM, Gemma2Config, Gemma3Config, Gemma3TextConfig, LlamaConfig,
    MistralConfig, Phi3Config, Qwen2Config, Qwen3Config, SmolLM3Config)
from transformers.utils import logging as transformers_logging

LLAMA3_SCALING = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                  "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 64}


FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


@dataclass
class Family:
    config: object
    lengths: tuple = (21, 9, 18)
    dtype: torch.dtype = torch.float32
    shard_bytes: int = 0
    nf4: bool = False
    lora: dict = field(default_factory=dict)


def theta(value):
    return {"rope_type": "default", "rope_theta": value}


def longrope(pairs, **more):
    steps = torch.linspace(0, 1, pairs)
    return {"rope_type": "longrope", "rope_theta": 10000.0,
            "short_factor": [round(x, 3) for x in (1 + 0.5 * steps).tolist()],
            "long_factor": [round(x, 3) for x in (1.1 + 9 * steps**2).tolist()]} | more


def shape(hidden, inner, layers, heads, kv_heads, vocab, **more):
    return dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocab,
                bos_token_id=1, eos_token_id=2, pad_token_id=0, **more)


GEMMA3 = dict(head_dim=16, query_pre_attn_scalar=20, sliding_window=7, sliding_window_pattern=3,
              max_position_embeddings=128, rope_parameters={
                  "full_attention": theta(1000000.0) | {"rope_type": "linear", "factor": 8.0},
                  "sliding_attention": theta(10000.0)})

FAMILIES = {
    # A sequence of one token has nothing to train; 32 positions reach every branch of the scaling.
    "llama": Family(
        LlamaConfig(**shape(64, 112, 2, 4, 2, 160), rms_norm_eps=1e-5, max_position_embeddings=512,
                    rope_parameters=LLAMA3_SCALING),
        lengths=(17, 1, 32), nf4=True),
    "llama2": Family(
        LlamaConfig(**shape(48, 80, 2, 3, 3, 128), rms_norm_eps=1e-5, max_position_embeddings=128,
                    rope_parameters=theta(10000.0)),
        shard_bytes=100_000),
    "tinyllama": Family(
        LlamaConfig(**shape(64, 96, 2, 8, 2, 128), rms_norm_eps=1e-5, max_position_embeddings=128,
                    rope_parameters=theta(10000.0)),
        dtype=torch.bfloat16),
    "mistral": Family(
        MistralConfig(**shape(48, 80, 3, 4, 2, 128), rms_norm_eps=1e-5, head_dim=16,
                      max_position_embeddings=128, sliding_window=7,
                      rope_parameters=theta(1000000.0)),
        lengths=(30, 7, 12)),
    "qwen2": Family(
        Qwen2Config(**shape(48, 80, 2, 3, 1, 144), rms_norm_eps=1e-6, max_position_embeddings=128,
                    tie_word_embeddings=True, rope_parameters=theta(1000000.0))),
    "qwen3": Family(
        Qwen3Config(**shape(48, 80, 2, 4, 2, 144), head_dim=32, rms_norm_eps=1e-5,
                    max_position_embeddings=128, rope_parameters=theta(1000000.0)),
        nf4=True),
    "smollm2": Family(
        LlamaConfig(**shape(48, 96, 3, 3, 1, 144), rms_norm_eps=1e-5, max_position_embeddings=128,
                    tie_word_embeddings=True, rope_parameters=theta(100000.0)),
        lora={"r": 8, "lora_alpha": 16, "use_rslora": True,
              "target_modules": r".*\.(self_attn\.(q|v)_proj|mlp\.(up|down)_proj)",
              "rank_pattern": {r"model\.layers\.1\.self_attn\.q_proj": 2, "up_proj": 3},
              "alpha_pattern": {"up_proj": 5, r"layers\.2\.mlp\.down_proj": 32}}),
    "smollm3": Family(
        SmolLM3Config(**shape(48, 80, 4, 3, 1, 144), rms_norm_eps=1e-6, max_position_embeddings=128,
                      no_rope_layers=[1, 0, 1, 0], rope_parameters=theta(5000000.0)),
        lora={"target_modules": "all-linear"}),
    # All sequences are within the original length here, and all beyond it in phi3_long.
    "phi3": Family(
        Phi3Config(**shape(64, 80, 2, 4, 2, 144), rms_norm_eps=1e-5, max_position_embeddings=512,
                   original_max_position_embeddings=128, sliding_window=11,
                   rope_parameters=longrope(6, partial_rotary_factor=0.75)),
        lengths=(30, 11, 12), nf4=True, lora={"target_modules": FUSED}),
    "phi3_long": Family(
        Phi3Config(**shape(48, 80, 2, 3, 3, 144), rms_norm_eps=1e-5, max_position_embeddings=128,
                   original_max_position_embeddings=4, rope_parameters=longrope(8)),
        lora={"target_modules": "all-linear"}),
    # Scores and logits deviate by more than half of their caps.
    "gemma2": Family(
        Gemma2Config(**shape(48, 80, 3, 4, 2, 144), head_dim=32, query_pre_attn_scalar=24,
                     attn_logit_softcapping=3.0, final_logit_softcapping=2.5, sliding_window=7,
                     max_position_embeddings=128, rope_parameters=theta(10000.0)),
        lengths=(30, 7, 12)),
    "gemma3": Family(
        Gemma3TextConfig(**shape(48, 80, 3, 4, 1, 144), **GEMMA3),
        lengths=(30, 7, 12)),
    # The adapter is on the text part, whose tensors have other names here.
    "gemma3_multimodal": Family(
        Gemma3Config(
            text_config=shape(48, 80, 3, 4, 1, 144) | GEMMA3,
            vision_config=dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                               num_attention_heads=2, image_size=8, patch_size=4,
                               vision_use_head=False),
            image_token_index=140, boi_token_index=141, eoi_token_index=142,
            mm_tokens_per_image=4),
        lengths=(30, 7, 12),
        lora={"target_modules": r"model\.language_model\.(?:.*\.)?(?:" + "|".join(
            sorted(PROJECTIONS)) + ")"}),
}


# --- the base model ----------------------------------------------------------------------------


def is_block_linear(name):
    return any(name.endswith(f".{projection}.weight") for projection in PROJECTIONS + FUSED)


def draw_parameter(name, parameter, config, dtype):
    """Values at which every part of the model matters: norm weights spread around one, biases of
    the size of the activations, attention scores and logits with a deviation near one."""
    if "norm" in name:
        return (0 if "gemma" in config.model_type else 1) + 0.25 * torch.randn(parameter.shape)
    if name.endswith(".bias"):
        return 0.5 * torch.randn(parameter.shape)
    fan_in = parameter.shape[-1]
    if "embed_tokens" in name:
        return torch.randn(parameter.shape) * (
            fan_in**-0.5 if config.tie_word_embeddings else 0.7)
    gain = 1.4 if name.endswith(("q_proj.weight", "k_proj.weight", "qkv_proj.weight")) else 1.0
    draw = lambda: (torch.randn(parameter.shape) * gain * fan_in**-0.5).to(dtype)  # noqa: E731
    return draw_unambiguous(draw) if is_block_linear(name) else draw()


def build_base(family):
    model = AutoModelForCausalLM.from_config(family.config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw_parameter(name, parameter, family.config, family.dtype))
    return model.to(family.dtype).eval()


def save_base(model, family, folder):
    limit = {"max_shard_size": family.shard_bytes} if family.shard_bytes else {}
    model.save_pretrained(folder, **limit)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_older_config(folder)


def in_older_keys(config):
    rope = dict(config.pop("rope_parameters"))
    if "full_attention" in rope:
        local = rope["sliding_attention"]
        config["rope_local_base_freq"] = local["rope_theta"]
        config["sliding_window_pattern"] = config.pop("_sliding_window_pattern", 3)
        rope = dict(rope["full_attention"])
    if config["model_type"] == "phi3":
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor", 1.0)
        rope.pop("original_max_position_embeddings")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    if config["model_type"] != "qwen3":
        config.pop("layer_types", None)
    return config


def write_older_config(folder):
    """config_v4.json: the same model in the keys of transformers 4, which most folders have."""
    config = json.loads((folder / "config.json").read_text())
    if "text_config" in config:
        config["text_config"] = in_older_keys(config["text_config"])
    else:
        config = in_older_keys(config)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.51.3"
    write_json(folder / "config_v4.json", config)
    check_older_config(folder)


def check_older_config(folder):
    older = AutoConfig.for_model(**json.loads((folder / "config_v4.json").read_text())).to_dict()
    newer = AutoConfig.from_pretrained(folder).to_dict()
    for key in newer.keys() - {"_name_or_path", "transformers_version", "architectures"}:
        if key == "rope_parameters":
            older[key].pop("type", None)
        assert older.get(key) == newer[key], (folder.name, key, older.get(key), newer[key])


def load_base(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()


def quantize_blocks(model):
    """Replaces the weights of the blocks' linear layers by what NF4 double quantization keeps."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_block_linear(name):
                parameter.copy_(bnb_roundtrip(parameter))
    return model


# --- what the model computes -------------------------------------------------------------------


def draw_batch(family):
    """Token ids, and labels where a prompt and some spans are not trained. The first token of a
    sequence keeps its label: the shift alone must leave it out."""
    ids, labels, starts = [], [], [0]
    for number, length in enumerate(family.lengths):
        tokens = torch.randint(3, family.config.get_text_config().vocab_size, (length,))
        label = tokens.clone()
        if number % 2 == 0 and length > 8:
            label[1 : length // 3] = -100
            label[length - 4 : length - 2] = -100
        ids.append(tokens)
        labels.append(label)
        starts.append(starts[-1] + length)
    return ids, labels, torch.tensor(starts)


def all_logits(model, ids):
    return torch.cat([model(input_ids=tokens[None]).logits[0] for tokens in ids])


def joint_loss(model, ids, labels):
    """Sum of the cross entropy over the tokens trained after the shift, divided by their number."""
    total, count = 0.0, 0
    for tokens, label in zip(ids, labels):
        logits = model(input_ids=tokens[None]).logits[0, :-1].float()
        total = total + F.cross_entropy(logits, label[1:], ignore_index=-100, reduction="sum")
        count += int((label[1:] != -100).sum())
    return total / count


def greedy(model, vocab, prompt_length=5, new_tokens=14, margin=1e-2):
    """A prompt and its most likely continuation, with no two tokens close at any step. The end of
    sequence does not stop it."""
    while True:
        prompt = torch.randint(3, vocab, (prompt_length,))
        tokens, clear = prompt, True
        for _ in range(new_tokens):
            best = model(input_ids=tokens[None]).logits[0, -1].topk(2)
            clear = clear and (best.values[0] - best.values[1]).item() > margin
            tokens = torch.cat([tokens, best.indices[:1]])
        if clear:
            return {"greedy_prompt": prompt, "greedy_ids": tokens[prompt_length:]}


def lora_config(**changes):
    settings = dict(r=4, lora_alpha=8, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                    target_modules=list(PROJECTIONS))
    return LoraConfig(**(settings | changes))


def add_random_adapter(model, folder, **changes):
    """A LoRA whose B is not zero, so that a wrong scale, order or transpose shows."""
    model = get_peft_model(model, lora_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.12 * torch.randn(parameter.shape))
    model.peft_config["default"].base_model_name_or_path = folder.name
    return model.eval()


def save_adapter(model, folder):
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)


def gradients(model, prefix):
    """Gradients under the names the adapter file has."""
    return {f"{prefix}{name.replace('.default', '')}": parameter.grad.clone()
            for name, parameter in model.named_parameters() if parameter.requires_grad}


def expected_of(model, ids, labels, prefix=""):
    model.zero_grad()
    with torch.no_grad():
        found = {f"{prefix}lora_logits": all_logits(model, ids)}
    loss = joint_loss(model, ids, labels)
    loss.backward()
    return found | {f"{prefix}loss": loss.reshape(1)} | gradients(model, f"{prefix}grad.")


def expected_quantized(folder, ids, labels):
    model = quantize_blocks(load_base(folder))
    with torch.no_grad():
        found = {"nf4_logits": all_logits(model, ids)}
    model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True).eval()
    return found | expected_of(model, ids, labels, "nf4_")


def check_adapter_names(folder, found):
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    named = {key.removeprefix("grad.") for key in found if key.startswith("grad.")}
    assert stored.keys() == named, stored.keys() ^ named


def make_family(name, family, seed):
    seed_all(seed)
    folder = fresh_folder(FIXTURES / "families" / name)
    save_base(build_base(family), family, folder)
    ids, labels, starts = draw_batch(family)
    model = load_base(folder)
    found = {"input_ids": torch.cat(ids), "labels": torch.cat(labels), "cu_seqlens": starts}
    with torch.no_grad():
        found["logits"] = all_logits(model, ids)
        found |= greedy(model, family.config.get_text_config().vocab_size)
    model = add_random_adapter(model, folder, **family.lora)
    save_adapter(model, folder / "adapter")
    found |= expected_of(model, ids, labels)
    if family.nf4:
        found |= expected_quantized(folder, ids, labels)
    check_adapter_names(folder, found)
    save_tensors(folder / "expected.safetensors", found)
    spread = found["logits"].std().item()
    moved = (found["lora_logits"] - found["logits"]).abs().mean().item()
    print(f"{name:10} logits deviate {spread:.2f}, the adapter moves them by {moved:.3f}, "
          f"loss {found['loss'].item():.6f}")


# --- which modules PEFT adapts -----------------------------------------------------------------

SELECTIONS = [
    {"target_modules": PROJECTIONS},
    {"target_modules": "all-linear"},
    {"target_modules": "ALL-Linear"},
    {"target_modules": ["q_proj"]},
    {"target_modules": ["self_attn.q_proj", "mlp.down_proj"]},
    {"target_modules": ["model.layers.1.self_attn.k_proj"]},
    {"target_modules": ["0.self_attn.v_proj"]},
    {"target_modules": ["v_proj", "lm_head"]},
    {"target_modules": r".*_proj"},
    {"target_modules": r".*\.q_proj"},
    {"target_modules": r"model\.layers\.(0|1)\.self_attn\.(q|k)_proj"},
    {"target_modules": r"(?!.*mlp).*\.layers\.\d+\..*_proj"},
    {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 16}},
    {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 2}},
    {"target_modules": PROJECTIONS, "rank_pattern": {r"layers\.0\..*": 2, "q_proj": 6},
     "alpha_pattern": {r"self_attn\.(q|k)_proj": 3, r"model\.layers\.1\.mlp\.up_proj": 24}},
    {"target_modules": PROJECTIONS, "rank_pattern": {"proj": 9, "roj": 9, "own_proj": 9}},
    {"target_modules": PROJECTIONS, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 7}},
    {"target_modules": ["gate_proj"], "use_rslora": True, "rank_pattern": {"0.mlp.gate_proj": 16}},
    {"target_modules": ["o_proj"], "use_rslora": True, "r": 3, "lora_alpha": 7},
]


def select(folder, case):
    settings = {"r": 4, "lora_alpha": 8} | case
    model = get_peft_model(load_base(folder), lora_config(**settings))
    modules = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and len(module.lora_A):
            modules[name.removeprefix("base_model.model.")] = {
                "r": module.r["default"], "alpha": module.lora_alpha["default"],
                "scaling": module.scaling["default"]}
    return {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False} | settings | {
        "modules": modules}


def select_nothing(folder, targets):
    """What PEFT refuses."""
    try:
        get_peft_model(load_base(folder), lora_config(target_modules=targets))
    except ValueError:
        return {"r": 4, "lora_alpha": 8, "target_modules": targets, "rank_pattern": {},
                "alpha_pattern": {}, "use_rslora": False, "modules": {}}
    raise AssertionError(targets)


def make_selection():
    folder = FIXTURES / "families" / "llama"
    cases = [select(folder, case) for case in SELECTIONS]
    cases += [select_nothing(folder, targets) for targets in (["proj"], r"q_proj", ["Q_PROJ"])]
    write_json(folder.parent / "selection.json", {"base": "llama", "cases": cases})
    print(f"selection: {len(cases)} cases, {[len(case['modules']) for case in cases]} modules")


def main():
    start()
    transformers_logging.disable_progress_bar()
    chosen = sys.argv[1:]
    for number, (name, family) in enumerate(FAMILIES.items()):
        if not chosen or name in chosen:
            make_family(name, family, 100 + number)
    if not chosen:
        make_selection()


if __name__ == "__main__":
    sys.exit(main())
