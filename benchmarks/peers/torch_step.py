"""The peer of `tandem bench step` on a CPU: one QLoRA training step by PyTorch and PEFT.

Two variants, each in its own process so that neither inherits the other's memory:
  fp32  LoRA on fp32 weights;
  nf4   LoRA on bitsandbytes NF4 weights with double quantization, fp32 compute.
Weights are random in the shape of --config (a Hugging Face config.json). A step is forward,
backward and AdamW on the LoRA parameters of all seven projections; every token is trained,
attention is SDPA. tokens/s = batch * seq / median seconds of a step, after one step of warm-up.

Needs torch, transformers, peft and bitsandbytes (tests/reference/requirements.txt)."""

import argparse
import ctypes
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings

VARIANTS = ("fp32", "nf4")
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NF4_BLOCK = 64


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.json of the shape, or its folder")
    parser.add_argument("--seq", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=1, help="sequences per step")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank; alpha is twice the rank")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=5, help="timed steps after the warm-up")
    parser.add_argument("--recompute", action="store_true", help="checkpoint every block")
    parser.add_argument("--variant", choices=VARIANTS, action="append",
                        help="only this one (may be repeated); default is both")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.seq, arguments.batch, arguments.rank, arguments.threads, arguments.steps) < 1:
        parser.error("--seq, --batch, --rank, --threads and --steps must be at least 1")
    return arguments


# --- one variant, in a process of its own ------------------------------------------------------


def quantize(model, compute_dtype):
    """Replaces the linear layers of the blocks by Linear4bit, one at a time."""
    import bitsandbytes
    from torch import nn

    for name, layer in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if leaf not in PROJECTIONS or not isinstance(layer, nn.Linear):
            continue
        if layer.in_features % NF4_BLOCK:
            raise SystemExit(
                f"{name}: bitsandbytes reads rows of {layer.in_features} elements wrongly on a CPU "
                f"with AVX-512; use a shape with multiples of {NF4_BLOCK}")
        replaced = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None,
            compute_dtype=compute_dtype, compress_statistics=True, quant_type="nf4", device="meta")
        replaced.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4",
            module=replaced)
        replaced.bias = layer.bias
        setattr(model.get_submodule(parent), leaf, replaced.to("cpu"))
        assert replaced.weight.quant_state is not None


def load_config(path):
    from transformers import AutoConfig

    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
    with open(path, encoding="utf-8") as file:
        config = AutoConfig.for_model(**json.load(file))
    config.use_cache = False
    return config


def build(arguments, variant):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = load_config(arguments.config)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="sdpa")
    if variant == "nf4":
        quantize(model, torch.float32)
    model = get_peft_model(model, LoraConfig(
        r=arguments.rank, lora_alpha=2 * arguments.rank, lora_dropout=0.0, bias="none",
        task_type="CAUSAL_LM", target_modules=PROJECTIONS))
    model.train()
    if arguments.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.base_model.model.is_gradient_checkpointing
    return model


def status_bytes(key):
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


def reset_peak():
    """Forgets what building the model took: the peak reported is that of the steps."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return status_bytes("VmRSS")


def step(model, optimizer, tokens):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return loss.item()


def measure(arguments, variant):
    import torch

    # Deprecations in the peers and a hint about optional kernels for other dtypes are not results.
    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    model = build(arguments, variant)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tokens = torch.randint(0, model.config.vocab_size, (arguments.batch, arguments.seq))
    before = reset_peak()
    first = step(model, optimizer, tokens)
    seconds = []
    for _ in range(arguments.steps):
        start = time.perf_counter()
        last = step(model, optimizer, tokens)
        seconds.append(time.perf_counter() - start)
    if not last < first:
        raise SystemExit(f"{variant}: the loss went from {first} to {last}, so nothing was trained")
    return report(arguments, variant, model, trained, seconds, before, (first, last))


def report(arguments, variant, model, trained, seconds, before, losses):
    import bitsandbytes
    import peft
    import torch
    import transformers

    median = statistics.median(seconds)
    return {
        "variant": variant, "config": arguments.config, "seq": arguments.seq,
        "batch": arguments.batch, "rank": arguments.rank, "threads": arguments.threads,
        "recompute": arguments.recompute, "trainable_parameters": sum(p.numel() for p in trained),
        "step_s": median, "step_min_s": min(seconds), "step_max_s": max(seconds),
        "tokens_per_s": arguments.batch * arguments.seq / median,
        "resident_before_bytes": before, "peak_resident_bytes": status_bytes("VmHWM"),
        "first_loss": losses[0], "last_loss": losses[1], "cpu": cpu_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "peft": peft.__version__, "bitsandbytes": bitsandbytes.__version__}}


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


# --- the comparison ----------------------------------------------------------------------------


def run_child(variant):
    """Thread counts are fixed before any library starts its pool."""
    arguments = parse()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
                   "OMP_NUM_THREADS": str(arguments.threads),
                   "MKL_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, __file__, *sys.argv[1:], "--in-child", "--variant", variant]
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False, text=True)
    if child.returncode:
        raise SystemExit(child.returncode)
    return json.loads(child.stdout.splitlines()[-1])


def print_row(found):
    mib = 1 << 20
    print(f"{found['variant']:5} {found['tokens_per_s']:9.1f} tokens/s   "
          f"step {found['step_s']:.3f} s (min {found['step_min_s']:.3f}, "
          f"max {found['step_max_s']:.3f})   "
          f"peak {found['peak_resident_bytes'] / mib:.0f} MiB   loss {found['first_loss']:.4f} -> "
          f"{found['last_loss']:.4f}")


def main():
    arguments = parse()
    if arguments.in_child:
        print(json.dumps(measure(arguments, arguments.variant[-1])))
        return
    for number, variant in enumerate(arguments.variant or VARIANTS):
        found = run_child(variant)
        if arguments.json:
            print(json.dumps(found), flush=True)
            continue
        if number == 0:
            print(f"{found['cpu']}, {found['threads']} threads, "
                  f"seq {found['seq']} x {found['batch']}, rank {found['rank']}, "
                  f"{found['trainable_parameters']} trainable parameters, "
                  f"{'block recompute' if found['recompute'] else 'no recompute'}, "
                  + ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
        print_row(found)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
