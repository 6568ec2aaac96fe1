"""Seeds of the fuzz targets in tests/fuzz but tokenizer and template. Files named found_* are inputs that once failed;
they stay."""

import gzip
import json
import struct
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
FUZZ = TESTS / "fuzz"
FIXTURES = TESTS / "fixtures"


def write(target, seeds):
    folder = FUZZ / f"{target}_corpus"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if not old.name.startswith("found_"):
            old.unlink()
    for name, data in seeds.items():
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def model_configs():
    seeds = {}
    for path in sorted(FIXTURES.glob("families/*/config*.json")) + [FIXTURES / "prequantized" / "config.json"]:
        seeds[f"{path.parent.name}_{path.stem}"] = compact(json.loads(path.read_text()))
    llama = json.loads((FIXTURES / "families/llama/config.json").read_text())
    qwen = json.loads((FIXTURES / "families/qwen3/config.json").read_text())
    linear = {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e4}
    window = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None}
    stored = json.loads((FIXTURES / "prequantized/config.json").read_text())
    stored["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", "model.layers.0.mlp.down_proj"]
    seeds["skips"] = compact(stored)
    seeds["linear"] = compact(llama | linear)
    seeds["window"] = compact(qwen | window)
    seeds["minimal"] = compact({"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4,
                                "num_hidden_layers": 1, "num_attention_heads": 2})
    seeds["generation"] = compact(llama) + "\0" + compact({"eos_token_id": [1, 2, 999], "bos_token_id": 0})
    seeds["generation_one"] = seeds["minimal"] + "\0" + compact({"eos_token_id": 3})
    phi = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "vocab_size": 64, "hidden_size": 32,
           "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
           "max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_theta": 10000.0,
           "partial_rotary_factor": 1.0, "sliding_window": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
           "tie_word_embeddings": False, "eos_token_id": [2, 3], "pad_token_id": 0,
           "rope_scaling": {"type": "longrope", "long_factor": [1.0, 1.5, 2.0, 2.5], "short_factor": [1.0] * 4}}
    seeds["phi3"] = compact(phi)
    gemma = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
             "query_pre_attn_scalar": 16, "sliding_window": 8, "rms_norm_eps": 1e-6,
             "hidden_activation": "gelu_pytorch_tanh", "layer_types": ["sliding_attention", "full_attention"]}
    seeds["gemma2"] = compact(gemma | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2",
                                       "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0})
    seeds["gemma3"] = compact(gemma | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
                                       "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2})
    write("model_config", seeds)


def safetensors(tensors, metadata=None, pad=True):
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = compact(header).encode()
    text += b" " * (-len(text) % 8 if pad else 0)
    return struct.pack("<Q", len(text)) + text + data


def safetensors_files():
    floats = struct.pack("<4f", 1, -2, 0.5, float("inf"))
    every = {f"t{i}": (dtype, [2], bytes(range(2 * size))) for i, (dtype, size) in enumerate(
        [("F32", 4), ("F16", 2), ("BF16", 2), ("U8", 1), ("I8", 1), ("I32", 4), ("I64", 8), ("BOOL", 1), ("F64", 8)])}
    seeds = {
        "one": safetensors({"a": ("F32", [2, 2], floats)}, {"format": "pt"}),
        "every_dtype": safetensors(every),
        "unaligned": safetensors({"z": ("U8", [1], b"x"), "a": ("F32", [1], b"\0\0\x80?")}, pad=False),
        "scalar_and_empty": safetensors({"s": ("F32", [], b"\0\0\x80?"), "e": ("F16", [0, 7], b"")}),
        "no_tensors": safetensors({}),
        "many_dimensions": safetensors({"d": ("U8", [1] * 8, b"x")}),
        "names": safetensors({"model.layers.0.self_attn.q_proj.weight": ("BF16", [2], b"abcd"),
                              "\u00e9\"\\": ("F16", [1], b"ab")}),
        "index": compact({"metadata": {"total_size": 9},
                          "weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}),
        "index_missing_tensor": compact({"weight_map": {"d": "1.safetensors"}}),
        "index_missing_file": compact({"weight_map": {"a": "3.safetensors"}}),
        "index_outside": compact({"weight_map": {"a": "../1.safetensors"}}),
    }
    first = seeds["one"]
    seeds["truncated"] = first[:-3]
    seeds["overlap"] = first.replace(b'"data_offsets":[0,16]', b'"data_offsets":[1,17]')
    seeds["long_header"] = struct.pack("<Q", 1 << 40) + first[8:]
    write("safetensors", seeds)


def adapters():
    def module(layer, name, rank, inside, outside):
        path = f"base_model.model.model.layers.{layer}.{name}"
        return {f"{path}.lora_A.weight": ("F32", [rank, inside], bytes(4 * rank * inside)),
                f"{path}.lora_B.weight": ("F32", [outside, rank], bytes(4 * rank * outside))}

    query = module(0, "self_attn.q_proj", 1, 4, 4) | module(1, "self_attn.q_proj", 1, 4, 4)
    down = module(0, "mlp.down_proj", 2, 6, 4) | module(1, "mlp.down_proj", 1, 6, 4)
    small = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    full = json.loads((FIXTURES / "train100/final_adapter/adapter_config.json").read_text())
    varied = small | {"target_modules": ".*\\.(q|down)_proj", "use_rslora": True, "lora_dropout": 0.1,
                      "rank_pattern": {"layers.0.mlp.down_proj": 2}, "alpha_pattern": {"down_proj": 4.5}}
    def sort(tensors):
        return dict(sorted(tensors.items()))
    half = {name: ("F16", shape, content[::2]) for name, (_, shape, content) in query.items()}
    write("adapter", {
        "query": compact(small).encode() + b"\0" + safetensors(sort(query), {"format": "pt"}),
        "half": compact(small).encode() + b"\0" + safetensors(half),
        "patterns": compact(varied).encode() + b"\0" + safetensors(sort(query | down)),
        "all_linear": compact(small | {"target_modules": "all-linear"}).encode() + b"\0" + safetensors(query),
        "missing": compact(small).encode() + b"\0" + safetensors(module(0, "self_attn.q_proj", 1, 4, 4)),
        "extra": compact(small).encode() + b"\0" + safetensors(query | down),
        "other_rank": compact(small | {"r": 2}).encode() + b"\0" + safetensors(query),
        "full_config": compact(full).encode() + b"\0" + safetensors(query),
        "dora": compact(small | {"use_dora": True}),
        "pissa": compact(small | {"init_lora_weights": "pissa_niter_4"}),
        "bad_pattern": compact(small | {"target_modules": "(q_proj"}),
        "slow_pattern": compact(small | {"target_modules": "(.*)*(.*)*(.*)*x"}),
    })


def run_configs():
    train = json.loads((FIXTURES / "train100/config.json").read_text())
    seeds = {path.stem: path.read_text() for path in sorted((TESTS.parent / "configs").glob("*.json"))}
    write("run_config", seeds | {
        "empty": "{}",
        "patterns": compact({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"k_proj": 0.5}, "target_modules": ".*proj"}),
        "lists": compact({"train_files": ["a.jsonl", "b.jsonl"], "eval_files": "c.jsonl", "output_dir": None}),
        "numbers": compact({"learning_rate": 1e-4, "max_steps": -1, "seed": 42, "adam_beta2": 0.95, "max_length": 2048}),
        "unknown": compact({"lerning_rate": 1}),
        "twice": '{"seed":1,"seed":2}',
        "out_of_range": compact({"lora_dropout": 1.5}),
        "choices": compact({"optim": "adamw_8bit", "lr_scheduler_type": "linear", "bad_rows": "skip", "too_long": "error"}),
        "set_text": "{}\0output_dir=7",
        "set_number": "{}\0learning_rate=1e-3",
        "set_list": '{}\0target_modules=["q_proj","v_proj"]',
        "set_unknown": "{}\0sed=1",
        "set_nothing": "{}\0=",
    })
    assert train  # the fixture is the model's config, listed with the models


ROWS = [
    {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi \u00e9\u4e2d"},
                  {"role": "assistant", "content": "Hello"}]},
    {"messages": [{"role": "user", "content": "2+3?"},
                  {"role": "assistant", "content": None, "tool_calls": [
                      {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}]},
                  {"role": "tool", "content": "5", "tool_call_id": "1"}, {"role": "assistant", "content": "5"}],
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"prompt": "2+3=", "completion": " 5"},
    {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
    {"text": "Once upon a time <|im_end|>"},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    {"input_ids": [1023, 0]},
    {"instruction": "Add.", "input": "2, 3", "output": "5"},
    {"instruction": "Name a colour.", "input": "", "output": "Red"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}],
     "chat_template_kwargs": {"enable_thinking": False}},
]


def rows():
    seeds = {}
    for i, row in enumerate(ROWS):
        for options in (0, 3, 7):
            seeds[f"row_{i:02}_{options}"] = bytes([options]) + compact(row).encode() + b"\n"
    every = "\n".join(compact(row) for row in ROWS).encode()
    seeds["all"] = b"\x11\xef\xbb\xbf" + every.replace(b"\n", b"\r\n")
    seeds["list"] = b"\x12" + compact(ROWS).encode()
    seeds["no_texts"] = b"\x23" + every
    seeds["no_tokenizer"] = b"\x08" + every
    seeds["refused"] = b"\0{}\n[]\n1\n\n{\"text\":1}\n{\"messages\":[]}\n{\"text\":\"\xff\"}\n{\"input_ids\":[1024]}\n"
    write("jsonl", seeds)


def zstd_frame(content):
    """A frame of one raw block, a single segment (RFC 8878)."""
    return b"\x28\xb5\x2f\xfd\x20" + bytes([len(content)]) + struct.pack("<I", len(content) << 3 | 1)[:3] + content


def lines():
    text = b'{"text":"a"}\n{"text":"b"}\r\n\n{"text":"' + b"c" * 40 + b'"}'
    packed = gzip.compress(text, mtime=0)
    zstd = zstd_frame(text)
    skippable = b"\x50\x2a\x4d\x18\x02\0\0\0xx"
    run = b"\x28\xb5\x2f\xfd\x20\x40" + struct.pack("<I", 64 << 3 | 3)[:3] + b"a"
    write("lines", {
        "plain": text, "mark": b"\xef\xbb\xbf" + text, "empty": b"", "line_end": b"\n", "return": b"\r",
        "list": b' [ {"a":[1,"]"]} , {"b":2}\n]\n', "list_open": b'[{"a":1},', "list_empty": b"[]",
        "gzip": packed, "gzip_two": packed + packed, "gzip_cut": packed[:-5], "gzip_damaged": packed[:-6] + b"\0" * 6,
        "gzip_more": packed + b"xyz", "gzip_empty": gzip.compress(b"", mtime=0),
        "gzip_list": gzip.compress(b'[1,{"a":"\\""}]', mtime=0), "gzip_zeros": gzip.compress(bytes(100000), mtime=0),
        "zstd": zstd, "zstd_two": zstd + zstd, "zstd_cut": zstd[:-4], "zstd_skippable": skippable + zstd,
        "zstd_run": run, "zstd_list": zstd_frame(b"[1,2]"),
        "xz": b"\xfd7zXZ\0\0", "parquet": b"PAR1\0", "utf16": '{"a":1}'.encode("utf-16"), "zip": b"PK\3\4",
    })


def manifests():
    prints = {key: f"{i:032x}" for i, key in enumerate(("base_model", "data", "config", "layout"))}
    one = {"format": "tandem checkpoint", "format_version": 2, "step": 5, "epoch": 0, "tokens_seen": 640, "seed": 42,
           "best": {"loss": 1.25, "step": 4}, "world_size": 1,
           "pages": {"n_elements": 8, "page_elements": 8, "n_pages": 1, "state_bytes": 8,
                     "owner": "page modulo world_size"},
           "incarnation": "1", "fingerprints": {key: "0" * 32 for key in prints},
           "files": [{"name": "pages-00000-of-00001.h5", "bytes": 4096, "xxh3_128": "0" * 32},
                     {"name": "adapter_config.json", "bytes": 7, "xxh3_128": "f" * 32}],
           "config": {"seed": 42, "target_modules": ["q_proj"], "rank_pattern": None}, "checksum": "0" * 32}
    two = one | {"world_size": 2, "fingerprints": prints, "pages": one["pages"] | {"n_elements": 16, "n_pages": 2},
                 "files": [{"name": f"pages-0000{i}-of-00002.h5", "bytes": 1, "xxh3_128": "0" * 32} for i in (0, 1)]}
    write("checkpoint_manifest", {
        "one_rank": json.dumps(one, indent=1), "two_ranks": compact(two),
        "outside": compact(one | {"files": one["files"] + [{"name": "../x", "bytes": 1, "xxh3_128": "0" * 32}]}),
        "missing_shard": compact(two | {"files": two["files"][:1]}), "other_version": compact(one | {"format_version": 3}),
        "many_ranks": compact(one | {"world_size": 1048576}), "huge_pages": compact(one | {"pages": one["pages"] | {
            "n_elements": 2**53, "page_elements": 2**30, "n_pages": 2**23, "state_bytes": 2**40}}),
    })


def changes():
    """For checkpoint_pages and token_store: a byte of switches, then place, length, bytes."""
    def change(place, content):
        return struct.pack(">HB", place, len(content)) + content

    def cut(place):
        return struct.pack(">HB", place, 32)

    seeds = {"none": b"\0", "cut": b"\0" + cut(0x300), "cut_short": b"\0" + cut(0x200),
             "damaged": b"\0" + change(0x230, b"\xff" * 8), "two": b"\2" + change(0, b"2") + change(0x40, b"3")}
    for place in range(0, 0x900, 0x40):
        seeds[f"change_{place:03x}"] = b"\2" + change(place, b"\1") + change(place + 0x20, b"\xff\xff")
    write("checkpoint_pages", seeds)
    write("token_store", seeds)


if __name__ == "__main__":
    model_configs()
    safetensors_files()
    adapters()
    run_configs()
    rows()
    lines()
    manifests()
    changes()
