"""Puts the raw results of run.sh together: benchmarks.csv, benchmarks.md, and a short summary on the terminal."""
import argparse
import csv
import glob
import json
import math
import os
import platform
import re
import statistics

COLUMNS = ["op", "direction", "dtype", "shape", "threads", "kernel", "ours_us", "p10", "p90", "peer", "peer_us", "ratio", "goal", "GFLOP/s", "GB/s",
           "roof_us", "% of roof", "commit", "machine"]


def percentile(samples, q):
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def machine_name():
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def read_fovea(path):
    """{(case, series): (seconds, counters)} of one run of the Google Benchmark program; case -1 holds the ceilings."""
    with open(path) as file:
        runs = json.load(file)["benchmarks"]
    unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
    results = {}
    for run in runs:
        case, series = re.match(r"(-?\d+)/(\w+)", run["name"]).groups()
        results[int(case), series] = (run["real_time"] * unit[run["time_unit"]], run)
    return results


def collect(raw, threads):
    samples, counters = {}, {}
    for path in sorted(glob.glob(os.path.join(raw, f"fovea-{threads}-*.json"))):
        for key, (seconds, run) in read_fovea(path).items():
            samples.setdefault(key, []).append(seconds)
            counters[key] = run
    for path in sorted(glob.glob(os.path.join(raw, f"pytorch-{threads}-*.json"))):
        with open(path) as file:
            for line in file:
                result = json.loads(line)
                samples.setdefault((result["case"], "pytorch"), []).append(statistics.median(result["seconds"]))
    return samples, counters


def rows_of(cases, raw, threads, commit, machine):
    samples, counters = collect(raw, threads)
    copy_rate = counters[-1, "copy"]["bytes"] / min(samples[-1, "copy"]) if (-1, "copy") in samples else math.nan
    flop_rate = counters[-1, "fma"]["flops"] / min(samples[-1, "fma"]) if (-1, "fma") in samples else math.nan
    for number, case in enumerate(cases):
        ours = samples.get((number, "fovea"))
        if not ours:
            continue
        counter = counters[number, "fovea"]
        seconds, flops, moved = statistics.median(ours), counter.get("flops", 0), counter.get("bytes", 0)
        roof = max(flops / flop_rate, moved / copy_rate)
        peer = case["peer"] if (number, case["peer"]) in samples else "-"
        peer_seconds = statistics.median(samples[number, peer]) if peer != "-" else math.nan
        yield {
            "op": case["op"], "direction": case["direction"], "dtype": "float32", "shape": case["shape"], "threads": threads, "kernel": counter.get("label", ""),
            "ours_us": seconds * 1e6, "p10": percentile(ours, 0.1) * 1e6, "p90": percentile(ours, 0.9) * 1e6, "peer": peer, "peer_us": peer_seconds * 1e6,
            "ratio": peer_seconds / seconds, "goal": float(case["least_ratio"]), "GFLOP/s": flops / seconds / 1e9, "GB/s": moved / seconds / 1e9,
            "roof_us": roof * 1e6, "% of roof": 100 * roof / seconds, "commit": commit, "machine": machine,
        }
    yield {"ceilings": True, "threads": threads, "copy": copy_rate / 1e9, "flops": flop_rate / 1e9}


def shape_of(row):
    return dict(pair.split("=") for pair in row["shape"].split())


def other_goals(rows):
    """(what, got, goal) of the goals that are no ratio to a peer: of the copy rate, of our own matmul's rate, of two threads against one."""
    def matmul(size, threads):
        return next((r for r in rows if r["op"] == "matmul" and r["threads"] == threads and shape_of(r)["n"] == str(size)), None)

    for row in rows:
        where = f"{row['op']} {row['shape']} ({row['threads']} threads)"
        if row["op"] in ("add", "relu", "sum"):
            yield f"{where}: share of the copy rate", row["% of roof"] / 100, 0.8
        reference = matmul(1024, row["threads"])
        if row["op"] == "conv2d" and shape_of(row)["r"] == "3" and shape_of(row)["groups"] == "1" and reference:
            yield f"{where}, {row['direction']}: share of the rate of matmul 1024", row["GFLOP/s"] / reference["GFLOP/s"], 0.9 if row["direction"] == "forward" else 0.8
    one, two = matmul(2048, 1), matmul(2048, 2)
    if one and two:
        yield "matmul 2048: two threads against one", one["ours_us"] / two["ours_us"], 1.8


def cell(value):
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw", required=True)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--commit", default="unknown")
    arguments = parser.parse_args()
    with open(arguments.cases) as file:
        cases = list(csv.DictReader(file))
    machine = machine_name()
    counts = sorted({int(re.search(r"fovea-(\d+)-", path).group(1)) for path in glob.glob(os.path.join(arguments.raw, "fovea-*.json"))})
    rows, notes = [], []
    for threads in counts:
        for row in rows_of(cases, arguments.raw, threads, arguments.commit, machine):
            if "ceilings" in row:
                notes.append(f"{threads} thread(s): copy {row['copy']:.1f} GB/s (read + write), fused multiply-add {row['flops']:.0f} GFLOP/s")
            else:
                rows.append(row)

    with open(os.path.join(arguments.out, "benchmarks.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({key: cell(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    shown = [column for column in COLUMNS if column not in ("dtype", "kernel", "commit", "machine")]
    lines = [f"Machine: {machine}; commit {arguments.commit}; float32. Measured ceilings: {'; '.join(notes)}.", "", "| " + " | ".join(shown) + " |", "|" + "---|" * len(shown)]
    lines += ["| " + " | ".join(cell(row[column]) for column in shown) + " |" for row in rows]
    with open(os.path.join(arguments.out, "benchmarks.md"), "w") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))
    for what, got, goal in other_goals(rows):
        print(f"{what}: {got:.2f} of {goal}{'' if got >= goal else '   BELOW'}")
    missed = [row for row in rows if row["goal"] > 0 and row["ratio"] < row["goal"]]
    print(f"\n{len(rows)} rows, {len(missed)} below their goal" + "".join(f"\n  {r['op']} {r['direction']} {r['shape']} ({r['threads']} threads): {r['ratio']:.2f} of {r['goal']}" for r in missed))


if __name__ == "__main__":
    main()
