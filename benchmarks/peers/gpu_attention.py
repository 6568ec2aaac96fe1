"""The peer of `tandem bench ops --only attention` on a GPU: attention alone, by PyTorch's backends.

For every --case DOCUMENTSxTOKENS: causal attention of so many whole documents, with the query and
key heads of --config (a Hugging Face config.json), in bf16 and in the layout that models have it,
forward and backward, by each of --backends (torch.nn.attention.sdpa_kernel):
  flash   FlashAttention as PyTorch brings it
  cudnn   cuDNN's, where its library is found
  math    plain products, for a trial on a CPU
First each backend's results and gradients are compared with plain ones in fp32, at no more than 256
tokens; what is wrong is not timed. Then medians of --samples, taken in turns by the backends, each
between two events around --calls calls. The backward pass is that of torch.autograd.grad, without
adding gradients up; the forward pass keeps what it needs. Keys and values are not repeated for
their group of queries (enable_gqa) unless a backend knows no groups; then they are repeated before
the time starts, and "repeated" says so. FLOPs: 4 D heads pairs forward, 10 backward, with
T (T + 1) / 2 pairs in each document: what has to be computed, for every backend the same.

One JSON line for each case and backend; {"variant": ..., "skipped": why} for one that cannot run.
--device cpu tries the script out: it times nothing that matters."""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time

VERIFIED_TOKENS = 256
TOLERANCE = 0.03  # of the largest value; bf16 has 8 bits


def case_of(text):
    documents, _, tokens = text.partition("x")
    if not (documents.isdigit() and tokens.isdigit() and int(documents) > 0 and int(tokens) > 1):
        raise argparse.ArgumentTypeError(f"{text}: expected DOCUMENTSxTOKENS, as 4x2048")
    return int(documents), int(tokens)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.json of the shape, or its folder")
    parser.add_argument("--case", type=case_of, action="append", help="4x2048 and 1x8192")
    parser.add_argument("--backends", default="flash,cudnn", help="with commas between them")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--calls", type=int, default=5, help="calls in a sample")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    arguments.case = arguments.case or [(4, 2048), (1, 8192)]
    arguments.backends = arguments.backends.split(",")
    if set(arguments.backends) - {"flash", "cudnn", "math"}:
        parser.error("--backends are flash, cudnn and math")
    if min(arguments.samples, arguments.calls) < 1:
        parser.error("--samples and --calls are at least 1")
    return arguments


def skip(arguments, backend, why, case=None):
    found = {"variant": backend, "config": arguments.config}
    if case:
        found.update(documents=case[0], seq=case[1])
    print(json.dumps({**found, "skipped": " ".join(str(why).split())}), flush=True)


def heads_of(path):
    """Query heads, key heads, values of a head."""
    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    heads = config["num_attention_heads"]
    return (heads, config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads)


class Attention:
    """Operands of one case, and one backend's passes over them."""

    def __init__(self, shape, case, backend, device, dtype):
        import torch

        self.heads, self.kv_heads, self.dim = shape
        self.documents, self.tokens = case
        self.backend, self.repeated = backend, False
        torch.manual_seed(0)
        self.q, self.k, self.v, self.dout = (
            torch.randn(self.documents, self.tokens, heads, self.dim, device=device, dtype=dtype)
            for heads in (self.heads, self.kv_heads, self.kv_heads, self.heads))
        self.out = None

    def prepare(self):
        """One forward pass; decides how groups of heads are told."""
        try:
            self.forward()
        except RuntimeError:
            if self.kv_heads == self.heads:
                raise
            group = self.heads // self.kv_heads
            self.k, self.v = (x.repeat_interleave(group, 2) for x in (self.k, self.v))
            self.repeated = True
            self.forward()

    def forward(self):
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        kinds = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
                 "math": SDPBackend.MATH}
        with sdpa_kernel(kinds[self.backend]):
            q, k, v = (x.requires_grad_().transpose(1, 2) for x in (self.q, self.k, self.v))
            self.out = scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.k.shape[2] != self.heads)

    def backward(self):
        import torch

        return torch.autograd.grad(self.out, (self.q, self.k, self.v),
                                   self.dout.transpose(1, 2), retain_graph=True)

    def flops(self):
        pairs = self.documents * self.tokens * (self.tokens + 1) // 2
        return 4 * self.dim * self.heads * pairs, 10 * self.dim * self.heads * pairs


def plain(attention):
    """Output and gradients in fp32, of heads repeated and then added up by autograd."""
    import torch

    q, k, v = (x.detach().float().requires_grad_() for x in (attention.q, attention.k, attention.v))
    group = attention.heads // k.shape[2]
    queries = q.transpose(1, 2)
    keys, values = (x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    scores = queries @ keys.transpose(2, 3) / attention.dim**0.5
    above = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
    out = scores.masked_fill(above, float("-inf")).softmax(3) @ values
    return (out, *torch.autograd.grad(out, (q, k, v), attention.dout.float().transpose(1, 2)))


def verify(shape, case, backend, device, dtype):
    small = min(case[0], 2), min(case[1], VERIFIED_TOKENS)
    attention = Attention(shape, small, backend, device, dtype)
    attention.prepare()
    names = ("out", "dq", "dk", "dv")
    for name, got, wanted in zip(names, (attention.out, *attention.backward()), plain(attention)):
        worst = ((got.float() - wanted).abs().max() / wanted.abs().max()).item()
        if not worst <= TOLERANCE:
            raise SystemExit(f"{backend}: {name} is wrong by {worst:.3g} of its largest value")


def seconds_of(call, calls, device):
    import torch

    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def report(arguments, attention, forward, backward, device):
    import torch

    flops = attention.flops()
    seconds = statistics.median(forward), statistics.median(backward)
    name, cudnn = "CPU (a trial, no record)", None
    if device.type == "cuda":
        name, cudnn = torch.cuda.get_device_name(), torch.backends.cudnn.version()
    return {
        "variant": attention.backend, "config": arguments.config,
        "device": name,
        "documents": attention.documents, "seq": attention.tokens, "heads": attention.heads,
        "kv_heads": attention.kv_heads, "head_dim": attention.dim, "repeated": attention.repeated,
        "kernel": type(attention.out.grad_fn).__name__, "forward_seconds": seconds[0],
        "backward_seconds": seconds[1], "forward_flops": flops[0], "backward_flops": flops[1],
        "forward_samples": forward, "backward_samples": backward,
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "cudnn": cudnn}}


def ready(arguments, shape, case, device, dtype):
    """Verified and warm ones; says of the others why not."""
    found = []
    for backend in arguments.backends:
        try:
            verify(shape, case, backend, device, dtype)
            attention = Attention(shape, case, backend, device, dtype)
            attention.prepare()
            attention.backward()
            found.append(attention)
        except RuntimeError as error:
            skip(arguments, backend, str(error)[:200], case)
    return found


def measure(arguments, case, device):
    import torch

    dtype = torch.bfloat16
    shape = heads_of(arguments.config)
    # Plain products in fp32 are to be fp32's.
    torch.set_float32_matmul_precision("highest")
    timed = [(attention, [], []) for attention in ready(arguments, shape, case, device, dtype)]
    for _ in range(arguments.samples):
        for attention, forward, backward in timed:
            forward.append(seconds_of(attention.forward, arguments.calls, device))
            backward.append(seconds_of(attention.backward, arguments.calls, device))
    for attention, forward, backward in timed:
        print(json.dumps(report(arguments, attention, forward, backward, device)), flush=True)


def main():
    arguments = parse()
    if importlib.util.find_spec("torch") is None:
        why = "no torch in this Python"
    else:
        import torch

        why = None
        if arguments.device == "cuda" and not torch.cuda.is_available():
            why = "PyTorch finds no GPU"
    if why:
        for backend in arguments.backends:
            skip(arguments, backend, why)
        sys.exit(0)
    for case in arguments.case:
        measure(arguments, case, torch.device(arguments.device))


if __name__ == "__main__":
    main()
