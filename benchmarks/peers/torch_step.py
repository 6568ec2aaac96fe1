"""The peer of `tandem bench step` on a CPU: one LoRA training step by PyTorch and PEFT.

Variants:
  fp32         LoRA on fp32 weights;
  nf4          LoRA on bitsandbytes NF4 weights with double quantization, fp32 compute;
  nf4_bf16     the same with bnb_4bit_compute_dtype bf16, a bf16 model and autocast, as most have it;
  fp32_medium  fp32 under torch.set_float32_matmul_precision("medium"): products round their operands
               to bf16 where oneDNN gains by it, everything else stays fp32;
  nf4_medium   nf4 under the same.
Each has its own process, so that none inherits another's memory; with --serve a variant and its
_medium share one, since they differ in a switch only.

Weights are random in the shape of --config (a Hugging Face config.json). A step is forward,
backward and AdamW on the LoRA parameters of all seven projections; every token is trained, with the
loss of transformers. tokens/s = batch * seq / median seconds of a step, after a step of warm-up over
at most 512 tokens of a sequence.

Set up to be fast: SDPA by is_causal without a mask (checked, and its kernel is in the record), no
cache, fused AdamW, gradients freed by setting them to None, huge pages for tensors (tandem asks for
them too), no clipping. Peak memory is VmHWM during the steps, not while the model was built.

With --serve it says {"ready": ...} and then times N steps for every line "N [highest|medium]" that it
reads, so that runs of several variants can alternate without building their models again.

Needs torch, transformers, peft and bitsandbytes (tests/reference/requirements.txt)."""

import argparse
import contextlib
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

VARIANTS = ("fp32", "nf4", "nf4_bf16", "fp32_medium", "nf4_medium")
MEDIUM = "_medium"
GEMM_EXTENT = 2048
WARM_UP_TOKENS = 512
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
                        help="only this one (may be repeated); default is all")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--serve", action="store_true",
                        help="one --variant: time as many steps as each line of stdin says")
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.seq, arguments.batch, arguments.rank, arguments.threads, arguments.steps) < 1:
        parser.error("--seq, --batch, --rank, --threads and --steps must be at least 1")
    if arguments.serve and len(arguments.variant or ()) != 1:
        parser.error("--serve needs one --variant")
    if arguments.serve and arguments.variant[0].endswith(MEDIUM):
        parser.error("--serve: medium is asked for with the steps")
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


def dtype_of(variant):
    import torch

    return torch.bfloat16 if variant == "nf4_bf16" else torch.float32


def build(arguments, variant):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = load_config(arguments.config)
    dtype = dtype_of(variant)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if variant.startswith("nf4"):
        quantize(model, dtype)
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


class Trained:
    """A model with its optimizer, and what a step needs."""

    def __init__(self, arguments, variant):
        import torch

        torch.manual_seed(0)
        torch.set_num_threads(arguments.threads)
        self.variant = variant.removesuffix(MEDIUM)
        self.precision = "medium" if variant.endswith(MEDIUM) else "highest"
        self.warm = set()
        self.model = build(arguments, variant)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.tokens = torch.randint(
            0, self.model.config.vocab_size, (arguments.batch, arguments.seq))
        self.grad_norm = self.first_loss = self.last_loss = None
        self.resident_before = reset_peak()
        with watched_attention() as self.attention:
            self.warm_up(self.precision)
        if not self.grad_norm > 0:
            raise SystemExit(f"{variant}: gradient norm {self.grad_norm}: nothing is trained")

    def name(self):
        return self.variant + (MEDIUM if self.precision == "medium" else "")

    def warm_up(self, precision):
        """From now on with this precision, whose products have been made once."""
        import torch

        torch.set_float32_matmul_precision(precision)
        self.precision = precision
        if precision not in self.warm:
            self.step(self.tokens[:, :WARM_UP_TOKENS])
            self.warm.add(precision)

    def step(self, tokens):
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=self.variant == "nf4_bf16"):
            loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if self.grad_norm is None:
            norms = torch.stack([p.grad.norm() for p in self.parameters if p.grad is not None])
            self.grad_norm = norms.norm().item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def timed(self, steps):
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            loss = self.step(self.tokens)
            seconds.append(time.perf_counter() - start)
            self.first_loss = loss if self.first_loss is None else self.first_loss
            repeated, self.last_loss = self.last_loss is not None, loss
        if repeated and not self.last_loss < self.first_loss:
            raise SystemExit(f"{self.variant}: the loss went from {self.first_loss} to "
                             f"{self.last_loss}, so nothing was trained")
        return seconds


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
        seen["kernel"] = type(out.grad_fn).__name__
        seen["is_causal"] = True
        return out

    functional.scaled_dot_product_attention = attention
    try:
        yield seen
    finally:
        functional.scaled_dot_product_attention = original


def gemm_flops(dtype):
    """What this PyTorch's products reach, to tell its library from what is around it."""
    import torch

    x = torch.ones(GEMM_EXTENT, GEMM_EXTENT, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.nn.functional.linear(x, x)
        seconds.append(time.perf_counter() - start)
    return 2 * GEMM_EXTENT**3 / min(seconds)


def prepare(arguments, variant):
    # Deprecations in the peers and a hint about optional kernels for other dtypes are not results.
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return Trained(arguments, variant)


def measure(arguments, variant):
    trained = prepare(arguments, variant)
    return report(arguments, trained, trained.timed(arguments.steps))


def serve(arguments):
    trained = prepare(arguments, arguments.variant[0])
    print(json.dumps({"ready": trained.variant}), flush=True)
    for line in sys.stdin:
        steps, precision = (line.split() + ["highest"])[:2]
        trained.warm_up(precision)
        reset_peak()
        seconds = trained.timed(int(steps))
        print(json.dumps(report(arguments, trained, seconds)), flush=True)
        reset_peak()


def report(arguments, trained, seconds):
    import bitsandbytes
    import peft
    import torch
    import transformers

    peak = status_bytes("VmHWM")
    median = statistics.median(seconds)
    return {
        "variant": trained.name(), "precision": trained.precision, "config": arguments.config, "seq": arguments.seq,
        "batch": arguments.batch, "rank": arguments.rank, "threads": torch.get_num_threads(),
        "recompute": arguments.recompute,
        "trainable_parameters": sum(p.numel() for p in trained.parameters),
        "step_s": median, "step_min_s": min(seconds), "step_max_s": max(seconds),
        "tokens_per_s": arguments.batch * arguments.seq / median,
        "resident_before_bytes": trained.resident_before, "peak_resident_bytes": peak,
        "first_loss": trained.first_loss, "last_loss": trained.last_loss,
        "first_grad_norm": trained.grad_norm, "attention": trained.attention,
        "gemm_flops": gemm_flops(dtype_of(trained.variant)), "load_average": os.getloadavg()[0], "cpu": cpu_name(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "peft": peft.__version__, "bitsandbytes": bitsandbytes.__version__}}


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


# --- the comparison ----------------------------------------------------------------------------


def environment_of(arguments):
    """Thread counts are fixed before any library starts its pool."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads),
            "THP_MEM_ALLOC_ENABLE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_child(arguments, variant):
    environment = environment_of(arguments)
    command = [sys.executable, __file__, *sys.argv[1:], "--in-child", "--variant", variant]
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False, text=True)
    if child.returncode:
        raise SystemExit(child.returncode)
    return json.loads(child.stdout.splitlines()[-1])


def print_row(found):
    mib = 1 << 20
    print(f"{found['variant']:11} {found['tokens_per_s']:9.1f} tokens/s   "
          f"step {found['step_s']:.3f} s (min {found['step_min_s']:.3f}, "
          f"max {found['step_max_s']:.3f})   "
          f"peak {found['peak_resident_bytes'] / mib:.0f} MiB   loss {found['first_loss']:.4f} -> "
          f"{found['last_loss']:.4f}")


def main():
    arguments = parse()
    if arguments.in_child and arguments.serve:
        serve(arguments)
        return
    if arguments.in_child:
        print(json.dumps(measure(arguments, arguments.variant[-1])))
        return
    if arguments.serve:
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:], "--in-child"],
                  environment_of(arguments))
    for number, variant in enumerate(arguments.variant or VARIANTS):
        found = run_child(arguments, variant)
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
