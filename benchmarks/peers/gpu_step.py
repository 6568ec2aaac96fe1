"""The peer of `tandem bench step` on a GPU: LoRA training steps by PyTorch, transformers and PEFT.

Variants, each in its own process:
  bf16  LoRA on bf16 weights;
  nf4   LoRA on bitsandbytes NF4 weights with double quantization, bf16 compute. Without bitsandbytes
        it prints {"variant": "nf4", "skipped": why}.
Weights are random in the shape of --config (a Hugging Face config.json) and are made on the device,
layer by layer, so that no more than one layer is there unquantized. A step is --accumulation times
forward and backward over --batch sequences, and AdamW on the LoRA parameters of all seven
projections; every token is trained, with the loss of transformers. Packed micro-batches of whole
sequences of --seq tokens need no mask, so SDPA runs by is_causal (checked; its kernel is in the
record). LoRA parameters are fp32 under bf16 autocast, as Trainer(bf16=True) has them. Set up to be
fast: TF32 for what is fp32, no cache, fused AdamW, gradients set to None, no clipping, no
synchronisation within a step. tokens/s = tokens of a step / median seconds of a step, by events.

The gradient norm of the first step must be positive and the loss must fall: what learns nothing
is no measurement. Peak memory is that of the allocator during the steps, and what the device lost.

--device cpu tries the script out: it times nothing that matters."""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import statistics
import sys
import time
import warnings

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
INIT_STD = 0.02


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.json of the shape, or its folder")
    parser.add_argument("--variant", choices=("bf16", "nf4"), required=True)
    parser.add_argument("--seq", type=int, default=2048, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=2, help="sequences per micro-batch")
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches per step")
    parser.add_argument("--rank", type=int, default=16, help="LoRA rank; alpha is twice the rank")
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--recompute", action="store_true", help="checkpoint every block")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if min(arguments.seq, arguments.batch, arguments.accumulation, arguments.rank, arguments.steps,
           arguments.warmup) < 1:
        parser.error("--seq, --batch, --accumulation, --rank, --steps and --warmup are at least 1")
    return arguments


def skip(arguments, why):
    print(json.dumps({"variant": arguments.variant, "config": arguments.config, "skipped": why}))
    sys.exit(0)


# --- the model ------------------------------------------------------------------------------------


def load_config(path):
    from transformers import AutoConfig

    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
    with open(path, encoding="utf-8") as file:
        config = AutoConfig.for_model(**json.load(file))
    config.use_cache = False
    return config


def random_linear(layer, device):
    """The layer with weights of its own on the device: bf16, normal."""
    import torch

    made = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None,
                           device=device, dtype=torch.bfloat16)
    torch.nn.init.normal_(made.weight, std=INIT_STD)
    if made.bias is not None:
        torch.nn.init.zeros_(made.bias)
    return made.requires_grad_(False)


def quantized(layer, device):
    import bitsandbytes
    import torch

    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None,
        compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4", device="meta")
    made.weight = bitsandbytes.nn.Params4bit(
        layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4",
        module=made)
    made.bias = layer.bias
    made = made.to(device)  # quantizes where it was not yet
    assert made.weight.quant_state is not None
    return made


def fill(model, variant, device):
    """Gives a model on "meta" its weights. The largest thing that is not kept is one bf16 layer."""
    import torch

    for name, layer in list(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name.rpartition(".")[2] in PROJECTIONS:
            parent, _, leaf = name.rpartition(".")
            made = random_linear(layer, device)
            made = quantized(made, device) if variant == "nf4" else made
            setattr(model.get_submodule(parent), leaf, made)
    for name, layer in list(model.named_modules()):
        for leaf, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.ones(parameter.shape, dtype=torch.bfloat16, device=device)
                if parameter.dim() > 1:
                    torch.nn.init.normal_(value, std=INIT_STD)
                setattr(layer, leaf, torch.nn.Parameter(value, requires_grad=False))
    model.tie_weights()  # each of two tied ones was filled by itself
    rotary = type(model.model.rotary_emb)(config=model.config)
    model.model.rotary_emb = rotary.to(device)
    left = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    assert not left, left


def build(arguments, device):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = load_config(arguments.config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa")
    fill(model, arguments.variant, device)
    model = get_peft_model(model, LoraConfig(
        r=arguments.rank, lora_alpha=2 * arguments.rank, lora_dropout=0.0, bias="none",
        task_type="CAUSAL_LM", target_modules=list(PROJECTIONS)))
    model.train()
    if arguments.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.base_model.model.is_gradient_checkpointing
    return model


@contextlib.contextmanager
def watched_attention():
    """Which kernel computes attention, and that it was not given a mask."""
    from torch.nn import functional

    original = functional.scaled_dot_product_attention
    seen = {}

    def attention(*tensors, **options):
        out = original(*tensors, **options)
        if not options.get("is_causal") or options.get("attn_mask") is not None:
            raise SystemExit("attention was given a mask: the peer is not set up to be fast")
        if out.grad_fn is not None:
            node = out.grad_fn
            while "Attention" not in type(node).__name__ and node.next_functions:
                node = node.next_functions[0][0]
            seen["kernel"] = type(node).__name__
        return out

    functional.scaled_dot_product_attention = attention
    try:
        yield seen
    finally:
        functional.scaled_dot_product_attention = original


# --- time and memory ------------------------------------------------------------------------------


class Clock:
    """Seconds between marks: events on a GPU."""

    def __init__(self, device):
        self.is_gpu = device.type == "cuda"
        self.marks = []

    def mark(self):
        import torch

        if self.is_gpu:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        import torch

        if not self.is_gpu:
            return [b - a for a, b in zip(self.marks, self.marks[1:])]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:])]


def reset_peak(device):
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def memory(device, free_before):
    import torch

    if device.type != "cuda":
        with open("/proc/self/status", encoding="ascii") as file:
            peak = [line.split()[1] for line in file if line.startswith("VmHWM:")]
        return {"peak_bytes": int(peak[0]) * 1024}
    return {"peak_bytes": torch.cuda.max_memory_allocated(),
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "device_bytes": free_before - torch.cuda.mem_get_info()[0]}


def gemm_flops(device):
    """The same product as tandem's GEMM peak: 4096^3 in bf16 (2048^3 on a CPU)."""
    import torch

    extent = 4096 if device.type == "cuda" else 256
    x = torch.ones(extent, extent, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(5):
        clock = Clock(device)
        clock.mark()
        for _ in range(20):
            torch.nn.functional.linear(x, x)
        clock.mark()
        best = min(best, clock.seconds()[0] / 20)
    return 2 * extent**3 / best


# --- the steps ------------------------------------------------------------------------------------


def step(arguments, model, optimizer, batches, device):
    """Returns the sum of the losses, which stays on the device."""
    import torch

    total = torch.zeros((), device=device)
    for tokens in batches:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss / arguments.accumulation
        loss.backward()
        total += loss.detach()
    return total


def norm_of(parameters):
    import torch

    return torch.stack([p.grad.float().norm() for p in parameters if p.grad is not None]).norm()


def run(arguments):
    import torch

    device = torch.device(arguments.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    free_before = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 0
    start = time.perf_counter()
    model = build(arguments, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    batches = torch.randint(0, model.config.vocab_size, (
        arguments.accumulation, arguments.batch, arguments.seq), device=device)
    built = time.perf_counter() - start
    reset_peak(device)
    losses, norms, clock = [], [], Clock(device)
    with watched_attention() as attention:
        for index in range(arguments.warmup + arguments.steps):
            if index == arguments.warmup:
                clock.mark()
            losses.append(step(arguments, model, optimizer, batches, device))
            if index < arguments.warmup:
                norms.append(norm_of(parameters))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if index >= arguments.warmup:
                clock.mark()
    seconds = clock.seconds()
    first, last, norm = losses[0].item(), losses[-1].item(), norms[0].item()
    if not (norm > 0 and last < first):
        raise SystemExit(f"{arguments.variant}: gradient norm {norm}, loss {first} -> {last}: "
                         "nothing is learned")
    used = memory(device, free_before)
    return report(arguments, device, seconds, {
        "trainable": sum(p.numel() for p in parameters), "loss_first": first, "loss_last": last,
        "grad_norm": norm, "attention": attention.get("kernel", "unknown"), "build_s": built, **used})


def version_of(name):
    module = sys.modules.get(name)
    return getattr(module, "__version__", None)


def report(arguments, device, seconds, found):
    import torch

    median = statistics.median(seconds)
    tokens = arguments.batch * arguments.seq * arguments.accumulation
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU (a trial, no record)"
    return {
        "variant": arguments.variant, "config": arguments.config, "device": name,
        "seq": arguments.seq, "batch": arguments.batch, "accumulation": arguments.accumulation,
        "rank": arguments.rank, "recompute": arguments.recompute, "seconds": median,
        "seconds_min": min(seconds), "seconds_max": max(seconds), "samples": seconds,
        "tokens_per_second": tokens / median, **found, "gemm_peak_flops": gemm_flops(device),
        "load_average": os.getloadavg()[0],
        "versions": {key: version_of(key) for key in ("torch", "transformers", "peft",
                                                      "bitsandbytes") if version_of(key)}}


def main():
    arguments = parse()
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    for name in ("torch", "transformers", "peft"):
        if importlib.util.find_spec(name) is None:
            skip(arguments, f"no {name} in this Python")
    if arguments.variant == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        skip(arguments, "no bitsandbytes in this Python")
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        skip(arguments, "PyTorch finds no GPU")
    print(json.dumps(run(arguments)))


if __name__ == "__main__":
    main()
