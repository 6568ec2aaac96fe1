"""`tandem prepare` beside datasets.map with transformers' apply_chat_template, alternating in one run.

Both read the same JSON Lines of chats (prepare_chats.py), render them by the same template, tokenize
with the same tokenizer.json, find the tokens that the assistant is to produce, and write the result
to disk. First the totals of tokens and of trained tokens are compared: they must be equal.

  tandem  1 rank x 2 threads, and 2 ranks x 1 thread; the whole program, from start to end
  peer    load_dataset("json"), map(num_proc=2), save_to_disk; without the start of Python and imports

rows/s = rows / seconds. CPU seconds are those of all its processes, user and system: on a machine
with other work they say more than the clock. Peak memory is that of the whole tree of processes, as the sum of their
proportional set sizes, sampled ten times a second. At the end tandem prepares more rows once, to
show whether its memory grows with them.

Needs datasets and transformers (tests/reference/requirements.txt). Machine and versions are in the
record, with the load of the machine before each measurement."""

import argparse
import json
import os
import pathlib
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
VARIANTS = ("tandem 1x2", "tandem 2x1", "peer")


def cpu_seconds(*whose):
    usages = [resource.getrusage(who) for who in whose]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# --- the peer, in a process of its own ------------------------------------------------------------


def run_peer(arguments):
    import datasets
    import transformers

    datasets.disable_progress_bars()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(arguments.model)

    def tokenize(batch):
        found = tokenizer.apply_chat_template(
            batch["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return {"input_ids": found["input_ids"], "assistant_masks": found["assistant_masks"]}

    everyone = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    start, spent = time.perf_counter(), cpu_seconds(*everyone)
    rows = datasets.load_dataset("json", data_files=arguments.data, split="train",
                                 cache_dir=os.path.join(arguments.out, "cache"))
    rows = rows.map(tokenize, batched=True, batch_size=arguments.batch, num_proc=2,
                    remove_columns=rows.column_names)
    rows.save_to_disk(os.path.join(arguments.out, "rows"))
    seconds, spent = time.perf_counter() - start, cpu_seconds(*everyone) - spent
    tokens = trained = 0
    for part in rows.iter(batch_size=1000):
        tokens += sum(map(len, part["input_ids"]))
        trained += sum(map(sum, part["assistant_masks"]))
    print(json.dumps({"seconds": seconds, "cpu_seconds": spent, "rows": len(rows), "tokens": tokens,
                      "trained_tokens": trained,
                      "versions": {"datasets": datasets.__version__,
                                   "transformers": transformers.__version__}}))


# --- measuring ----------------------------------------------------------------------------------


def tree_of(pid):
    found = [pid]
    for process in found:
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/children", encoding="ascii") as file:
                    found.extend(int(child) for child in file.read().split())
        except OSError:
            pass
    return found


def resident(pid):
    total = 0
    for process in tree_of(pid):
        try:
            with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        except OSError:
            pass
    return total * 1024


def watch(process):
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.1)
    return peak


def measure(command, environment):
    load = os.getloadavg()[0]
    start, spent = time.perf_counter(), cpu_seconds(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    peak, output = [], []
    watcher = threading.Thread(target=lambda: peak.append(watch(process)))
    watcher.start()
    output = process.communicate()
    watcher.join()
    seconds = time.perf_counter() - start
    spent = cpu_seconds(resource.RUSAGE_CHILDREN) - spent
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{output[1]}")
    return output[0], {"seconds": seconds, "cpu_seconds": spent, "peak_bytes": peak[0],
                       "load_before": load}


def measure_tandem(arguments, ranks, threads, data, settings=()):
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        command = [arguments.tandem, "prepare"]
        if ranks > 1:
            command = [str(ROOT / "launch" / "mpirun.sh"), str(ranks), *command]
        for setting in (f"model_name_or_path={arguments.model}", f"train_files={data}",
                        f"output_dir={folder}", f"max_length={arguments.max_length}", *settings):
            command += ["--set", setting]
        _, found = measure(command, {"OMP_NUM_THREADS": str(threads)})
        account = json.loads((pathlib.Path(folder) / "data" / "train.json").read_text())
    return {"variant": f"tandem {ranks}x{threads}", "rows": account["rows_kept"],
            "tokens": account["tokens"], "trained_tokens": account["trained_tokens"], **found,
            "settings": list(settings)}


def measure_peer(arguments, data):
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        command = [sys.executable, __file__, "--in-child", "--model", arguments.model, "--data",
                   data, "--out", folder, "--batch", str(arguments.batch)]
        output, found = measure(command, {
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    return {"variant": "peer", **found, **json.loads(output.splitlines()[-1])}


# --- the comparison -------------------------------------------------------------------------------


def cpu_name():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine(arguments):
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=False,
                            stdout=subprocess.PIPE, text=True).stdout.strip()
    return {"machine": cpu_name(), "cores": os.cpu_count(), "commit": commit,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "command": f"benchmarks/peers/prepare.py --rows {arguments.rows} --more "
                       f"{arguments.more} --rounds {arguments.rounds} --batch {arguments.batch}"}


def first_lines(source, target, count):
    with open(source, encoding="utf-8") as lines, open(target, "w", encoding="utf-8") as file:
        for _, line in zip(range(count), lines):
            file.write(line)
    return target


def check_equal(found, first):
    for key in ("rows", "tokens", "trained_tokens"):
        if found[key] != first[key]:
            raise SystemExit(f"{found['variant']}: {key} is {found[key]}, of {first['variant']} "
                             f"{first[key]}")


def summarize(measurements):
    def of(variant, key):
        return [m[key] for m in measurements if m["variant"] == variant]

    rates = {variant: [rows / seconds for rows, seconds in
                       zip(of(variant, "rows"), of(variant, "seconds"))] for variant in VARIANTS}
    for variant, found in rates.items():
        print(f"  {variant:11} {statistics.median(found):9.0f} rows/s ({min(found):.0f} to "
              f"{max(found):.0f}), {statistics.median(of(variant, 'cpu_seconds')):.1f} CPU s, peak "
              f"{statistics.median(of(variant, 'peak_bytes')) / (1 << 20):.0f} MiB")
    for variant in VARIANTS[:-1]:
        ratios = sorted(a / b for a, b in zip(rates[variant], rates["peer"]))
        spent = sorted(b / a for a, b in zip(of(variant, "cpu_seconds"), of("peer", "cpu_seconds")))
        print(f"  {variant} / peer, median of the rounds: {statistics.median(ratios):.2f} by the "
              f"clock ({ratios[0]:.2f} to {ratios[-1]:.2f}), {statistics.median(spent):.2f} by CPU "
              f"time ({spent[0]:.2f} to {spent[-1]:.2f})")


def make_chats(arguments):
    rows = max(arguments.rows, arguments.more)
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "peers" / "prepare_chats.py"),
                    "--gguf", arguments.gguf, "--rows", str(rows), "--out", arguments.work],
                   check=True)
    return arguments.work


def compare(arguments):
    whole = str(pathlib.Path(arguments.chats) / "chats.jsonl")
    data = first_lines(whole, str(pathlib.Path(arguments.work) / "some.jsonl"), arguments.rows)
    measurements = []
    with open(arguments.record, "w", encoding="utf-8") as record:
        def keep(found):
            record.write(json.dumps(found) + "\n")
            record.flush()
            return found

        keep(machine(arguments))
        alternating = (lambda: measure_tandem(arguments, 1, 2, data),
                       lambda: measure_tandem(arguments, 2, 1, data),
                       lambda: measure_peer(arguments, data))
        for measure_one in alternating * arguments.rounds:
            measurements.append(keep(measure_one()))
            check_equal(measurements[-1], measurements[0])
        print(f"{measurements[0]['rows']} chats, {measurements[0]['tokens']} tokens, "
              f"{arguments.rounds} rounds; tokens and masks add up to the same")
        summarize(measurements)
        for rows, settings in ((data, ("deduplicate=near",)), (whole, ()),
                               (whole, ("deduplicate=near",))):
            found = keep(measure_tandem(arguments, 1, 2, rows, settings))
            print(f"  tandem 1x2, {found['rows']} chats kept {' '.join(settings)}: "
                  f"{found['seconds']:.1f} s, peak {found['peak_bytes'] / (1 << 20):.0f} MiB")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tandem", default=str(ROOT / "build" / "release" / "tandem"))
    parser.add_argument("--gguf", help="vocabulary of GPT-2 (see prepare_chats.py)")
    parser.add_argument("--rows", type=int, default=50000)
    parser.add_argument("--more", type=int, default=200000, help="rows for memory alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=100, help="rows of a batch of the peer")
    parser.add_argument("--max-length", type=int, default=1 << 16)
    parser.add_argument("--chats", help="folder that prepare_chats.py wrote, with --more rows; "
                                        "without, it is made for this run")
    parser.add_argument("--record", help="JSON Lines to write")
    for name in ("--model", "--data", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_child:
        run_peer(arguments)
        return
    if not arguments.record or not (arguments.gguf or arguments.chats):
        parser.error("--record and --gguf (or --chats) are needed")
    arguments.work = tempfile.mkdtemp(prefix="tandem-prepare-")
    try:
        arguments.chats = arguments.chats or make_chats(arguments)
        arguments.model = str(pathlib.Path(arguments.chats) / "model")
        compare(arguments)
    finally:
        shutil.rmtree(arguments.work, ignore_errors=True)


if __name__ == "__main__":
    main()
