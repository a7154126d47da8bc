"""Puts results of fovea_cuda_bench and pytorch_peer.py together: a table for every family, with the geometric mean AND the smallest ratio, and the goals met and missed.

    report.py --out report.md results.csv [more.csv ...]      ratio: the vendor's time over ours, so more than 1 is a win

Rows of several files are the same where op, direction, dtype, layout and dims are equal. A row without a time is listed with its reason, never left out.
"""
import argparse
import csv
import math
import os
import sys

KEY = ("op", "direction", "dtype", "layout", "dims")
MODEL = "model"                                                  # what stands for a time where the run was over the model of CUDA


def number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def cell(value):
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def dims_of(row):
    return dict(pair.split("=", 1) for pair in row["dims"].split())


def goals_of(row):
    """[(peer's beginning, least ratio)] of a row, or [("copy", least share of the copy rate)]. The goals were fixed before measuring."""
    family, dtype = row["family"], row["dtype"]
    if family == "conv":
        groups = int(dims_of(row).get("groups", "1"))
        return [("cuDNN", 1.5 if groups > 1 else 0.9 if dtype == "float32" else 0.5)]
    if family == "batchnorm":
        return [("cuDNN", 1.0 if row["layout"] == "nhwc" else 1.5)]
    if family == "lstm":
        # Where PyTorch's choice among cuDNN's algorithms is the standard one: everything but one layer of float16 in one direction, small enough and even.
        d = dims_of(row)
        is_persistent = (dtype == "float16" and d["layers"] == "1" and d["directions"] == "1" and int(d["hidden"]) <= 1024 and int(d["hidden"]) % 128 == 0
                         and int(d["batch"]) % 8 == 0 and int(d["batch"]) <= 128 and d["lengths"] == "equal")
        return [] if is_persistent else [("pytorch", 1.0)]
    if family == "ctc":
        return [("pytorch", 5.0), ("cuDNN", 2.0)]
    if family == "optimizer":
        return [("pytorch", 1.5)]
    if family == "elementwise" and int(dims_of(row).get("n", "0")) * (4 if dtype == "float32" else 2) >= 1 << 30:
        return [("copy", 0.9)]
    if family == "steps" and row["op"] == "crnn_step":
        return [("pytorch", 1.2)]
    return []


class Row:
    def __init__(self, cells):
        self.cells, self.peers, self.is_ours = cells, {}, False

    def add(self, cells):
        if cells["ours_us"] or not cells["vendor"]:
            self.cells, self.is_ours = cells, True
        if cells["vendor"]:
            name = cells["vendor"] + (" (" + cells["vendor_algorithm"] + ")" if cells["vendor"].startswith("pytorch") and cells["vendor_algorithm"] else "")
            self.peers[name] = cells

    @property
    def ours(self):
        return number(self.cells["ours_us"]) if self.is_ours else math.nan

    def ratio(self, name):
        return number(self.peers[name]["vendor_us"]) / self.ours

    def ratios(self, beginning=""):
        found = {name: self.ratio(name) for name in self.peers if name.startswith(beginning)}
        return {name: ratio for name, ratio in found.items() if not math.isnan(ratio)}

    def fails(self):
        return "OURS IS WRONG" in self.cells["note"] or self.cells["note"].startswith("ours:")


def read(paths):
    rows = {}
    for path in paths:
        with open(path, newline="") as file:
            for cells in csv.DictReader(file):
                if None in cells.values():                       # a line that a run was stopped in
                    continue
                key = tuple(cells[name] for name in KEY)
                rows.setdefault(key, Row(cells)).add(cells)
    return list(rows.values())


def verdicts(row):
    """[(text, is met)] of a row's goals; a goal without both times is neither met nor missed and does not appear."""
    results = []
    for peer, goal in goals_of(row.cells):
        if peer == "copy":
            share = number(row.cells["roof_percent"]) / 100
            if not math.isnan(share):
                results.append((f"{share:.2f} of the copy rate, goal {goal}", share >= goal))
            continue
        ratios = row.ratios(peer)
        if ratios:                                               # of several ways the peer has, its fastest counts
            name = min(ratios, key=ratios.get)
            results.append((f"{ratios[name]:.2f} against {name}, goal {goal}", ratios[name] >= goal))
    return results


def geomean(values):
    return math.exp(sum(math.log(v) for v in values) / len(values))


def family_lines(family, rows):
    lines = [f"## {family}", "", "| op | direction | dtype | layout | dims | ours us | p10..p90 | peer: us (ratio) | TFLOP/s | TB/s | % of roof | error | cache, timing | kernels |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        c = row.cells
        is_model = c["ours_us"] == MODEL
        peers = "; ".join(f"{name}: {MODEL if p['vendor_us'] == MODEL else cell(number(p['vendor_us']))}"
                          + ("" if math.isnan(row.ratio(name)) else f" ({row.ratio(name):.2f})") for name, p in row.peers.items())
        shown = MODEL if is_model else cell(row.ours)
        spread = "-" if is_model or math.isnan(row.ours) else f"{cell(number(c['ours_p10']))}..{cell(number(c['ours_p90']))}"
        kernels = c["kernel"] if not row.fails() else "**" + c["note"] + "**"
        lines.append("| " + " | ".join([c["op"], c["direction"], c["dtype"], c["layout"], c["dims"], shown, spread, peers or "-", cell(number(c["tflops"])), cell(number(c["tbs"])),
                                        cell(number(c["roof_percent"])), c["error_ours"] or "-", f"{c['cache']}, {c['timing']}".strip(", ") or "-", kernels or "-"]) + " |")
    return lines + [""]


def summary(rows):
    """Lines about families: rows, ratios (geometric mean and minimum) for every peer, goals; then what was missed, worst first, and what failed."""
    lines, missed, failed = [], [], []
    lines += ["| family | peer | rows compared | geomean | minimum | goals met | goals missed |", "|---|---|---|---|---|---|---|"]
    for family in dict.fromkeys(row.cells["family"] for row in rows):
        of_family = [row for row in rows if row.cells["family"] == family]
        met = sum(is_met for row in of_family for _, is_met in verdicts(row))
        lost = [(text, row) for row in of_family for text, is_met in verdicts(row) if not is_met]
        missed += lost
        failed += [row for row in of_family if row.fails()]
        peers = sorted({name.split(" ")[0] for row in of_family for name in row.ratios()})
        for peer in peers or ["-"]:
            best = [min(row.ratios(peer).values()) for row in of_family if row.ratios(peer)] if peer != "-" else []
            numbers = [str(len(best)), f"{geomean(best):.2f}", f"{min(best):.2f}"] if best else ["0", "-", "-"]
            lines.append("| " + " | ".join([family, peer] + numbers + [str(met), str(len(lost))]) + " |")
    lines += ["", f"{len(rows)} rows, {len(missed)} goals missed, {len(failed)} rows wrong or refused"]
    lines += [f"- missed: {' '.join(row.cells[name] for name in KEY)}: {text}" for text, row in sorted(missed, key=lambda item: float(item[0].split()[0]))]
    lines += [f"- failed: {' '.join(row.cells[name] for name in KEY)}: {row.cells['note']}" for row in failed]
    return lines


def machine_lines(path):
    if not path or not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        values = {row["name"]: row["value"] for row in csv.DictReader(file)}
    rates = [f"copy {number(values.get('copy')) / 1e12:.2f} TB/s (read + write)"] + [f"{n} {number(values.get(n)) / 1e12:.0f} TFLOP/s" for n in ("float32", "tf32", "float16", "bfloat16")]
    is_model = values.get("copy") == MODEL
    ceilings = "Over the model of CUDA on the CPU: nothing here is a time." if is_model else f"Ceilings read on this machine: {', '.join(rates)} (products by {values.get('products_by')})."
    return [f"Device: {values.get('device')}; driver {values.get('driver')}; CUDA {values.get('runtime')}; commit {values.get('commit')}. {ceilings}", ""]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--machine", default="", help="machine.csv of fovea_cuda_bench --ceilings")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    rows = read([path for path in arguments.results if os.path.exists(path)])
    if not rows:
        sys.exit("report.py: no results in " + ", ".join(arguments.results))
    short = machine_lines(arguments.machine) + summary(rows)
    lines = ["# Measured on a GPU" if not any(row.cells["ours_us"] == MODEL for row in rows) else "# A run over the model of CUDA: no figures", ""] + short + [""]
    for family in dict.fromkeys(row.cells["family"] for row in rows):
        lines += family_lines(family, [row for row in rows if row.cells["family"] == family])
    with open(arguments.out, "w") as file:
        file.write("\n".join(lines))
    print("\n".join(short))


if __name__ == "__main__":
    main()
