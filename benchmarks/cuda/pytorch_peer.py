"""Times PyTorch, eager, on rows of shapes/*.csv, and writes lines with the columns of fovea_cuda_bench (ours empty, vendor = pytorch). Called by run_gpu.sh.

What runs one after the other on the GPU is recorded in a CUDA graph where that is possible, as ours is: kernels are compared, not Python. Optimizers and whole training
steps are also what a user would wait for, and are timed eager where the row says so. TF32 is on in rows of dtype tf32 only, for products and convolutions alike.
--device cpu computes each row once, on the CPU: with small shapes a test of this script where there is no GPU. It writes no times.
"""
import argparse
import csv
import math
import os
import sys
import time

import torch
import torch.nn.functional as F

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEVICE = "cuda"                                                  # --device
# Of these families the vendor's library has already been measured by the program itself.
ELSEWHERE = ("gemm",)
KEY = ("op", "direction", "dtype", "layout", "dims")
COLUMNS = ("op,direction,dtype,layout,dims,family,tier,what,kernel,ours_us,ours_p10,ours_p90,vendor,vendor_algorithm,vendor_us,vendor_p10,vendor_p90,ratio,gflop,mb,tflops,tbs,"
           "roof_us,roof_percent,bound,error_ours,error_vendor,workspace_mb,vendor_workspace_mb,deterministic,cache,timing,sm_mhz,device,driver,commit,note").split(",")


def parse(dims):
    values = dict(pair.split("=", 1) for pair in dims.split())
    return {name: int(value) if value.lstrip("-").isdigit() else value for name, value in values.items()}


class Recognizer(torch.nn.Module):
    """examples/handwriting/recognizer.h, layer by layer."""

    def __init__(self, height, classes, channels=(32, 64, 128, 128), hidden=128):
        super().__init__()
        layers, previous = [], 1
        for i, count in enumerate(channels):
            layers += [torch.nn.Conv2d(previous, count, 3, padding=1, bias=False), torch.nn.BatchNorm2d(count), torch.nn.ReLU(), torch.nn.MaxPool2d((2, 2 if i < 2 else 1))]
            previous = count
        self.features = torch.nn.Sequential(*layers)
        self.rnn = torch.nn.LSTM(previous * (height >> len(channels)), hidden, num_layers=2, bidirectional=True)
        self.head = torch.nn.Linear(2 * hidden, classes)

    def forward(self, x):
        return self.head(self.rnn(self.features(x).permute(3, 0, 1, 2).flatten(2))[0])


class Bottleneck(torch.nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        def conv(i, o, k, s=1):
            return [torch.nn.Conv2d(i, o, k, stride=s, padding=k // 2, bias=False), torch.nn.BatchNorm2d(o)]
        relu = torch.nn.ReLU(inplace=True)
        self.body = torch.nn.Sequential(*conv(before, width, 1), relu, *conv(width, width, 3, stride), relu, *conv(width, 4 * width, 1))
        self.shortcut = torch.nn.Sequential(*conv(before, 4 * width, 1, stride)) if stride > 1 or before != 4 * width else torch.nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x), inplace=True)


class ResNet50(torch.nn.Module):
    """resnet.h in this folder, layer by layer."""

    def __init__(self, classes=1000):
        super().__init__()
        body, before = [torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(3, 2, 1)], 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                body.append(Bottleneck(before, 64 << stage, 2 if stage > 0 and block == 0 else 1))
                before = 256 << stage
        self.body, self.head = torch.nn.Sequential(*body), torch.nn.Linear(2048, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def random(row, *shape):
    x = torch.randn(*shape, device=DEVICE).to(DTYPES[row["dtype"]])
    return x.contiguous(memory_format=torch.channels_last) if row["layout"] == "nhwc" and len(shape) == 4 else x


def lengths_of(kind, count, largest):
    if kind == "uniform":
        return torch.tensor([max(1, largest * (40 * count + 60 * (i * 7 % count)) // (100 * count)) for i in range(count)])
    return torch.full((count,), largest)


def backward_of(y, leaves, dy):
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def conv(row, d):
    stride, pad, dilation, groups = d["stride"], d["pad"], d["dilation"], d["groups"]
    x, w = random(row, d["n"], d["c"], d["h"], d["w"]), random(row, d["k"], d["c"] // groups, d["r"], d["s"])
    if row["direction"] == "forward":
        return [("", lambda: F.conv2d(x, w, None, stride, pad, dilation, groups))]
    dy = torch.randn_like(F.conv2d(x, w, None, stride, pad, dilation, groups))
    mask = [row["direction"] == "backward_data", row["direction"] == "backward_weight", False]
    return [("", lambda: torch.ops.aten.convolution_backward(dy, x, w, None, [stride] * 2, [pad] * 2, [dilation] * 2, False, [0, 0], groups, mask))]


def lstm(row, d):
    net = torch.nn.LSTM(d["input"], d["hidden"], num_layers=d["layers"], bidirectional=d["directions"] == 2).to(DEVICE).to(DTYPES[row["dtype"]])
    net.flatten_parameters()
    x = random(row, d["time"], d["batch"], d["input"])
    if d["lengths"] != "equal":
        lengths = lengths_of(d["lengths"], d["batch"], d["time"])
        def forward(x):
            packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return torch.nn.utils.rnn.pad_packed_sequence(net(packed)[0], total_length=d["time"])[0]
    else:
        def forward(x):
            return net(x)[0]
    name = "PackedSequence" if d["lengths"] != "equal" else "padded"
    if row["direction"] == "forward":
        def infer():
            with torch.no_grad():
                return forward(x)
        return [(name, infer)]
    x.requires_grad_()
    dy = torch.randn_like(forward(x))
    return [(name, lambda: torch.autograd.grad(forward(x), (x, *net.parameters()), dy))]


def ctc(row, d):
    kind, batch, target = d["lengths"], d["batch"], d["target"]
    logits = random(row, d["time"], batch, d["classes"]).float().requires_grad_()       # PyTorch's CTC takes float32
    labels = torch.randint(1, d["classes"], (batch, target))
    if kind == "repeats":
        labels = torch.randint(1, d["classes"], (batch, (target + 1) // 2)).repeat_interleave(2, 1)[:, :target]
    counts, steps = lengths_of(kind, batch, target), lengths_of(kind, batch, d["time"])
    if kind == "empty":
        counts[::2] = 0
    if kind == "infeasible":
        steps[::2] = max(1, target // 2)
    labels = labels.to(DEVICE)                                     # lengths stay on the host, where PyTorch would copy them to
    dy = torch.ones(batch, device=DEVICE)
    def run():
        return torch.autograd.grad(F.ctc_loss(F.log_softmax(logits, 2), labels, steps, counts, reduction="none"), logits, dy)
    return [("native, float32", run)]


def batch_norm(row, d):
    c = d["c"]
    x = random(row, d["n"], c, d["h"], d["w"])
    gamma, beta, mean, variance = torch.rand(c, device=DEVICE) + 0.5, torch.randn(c, device=DEVICE), torch.zeros(c, device=DEVICE), torch.ones(c, device=DEVICE)
    residual = random(row, *x.shape) if row["op"] == "batch_norm_add_relu" else None
    def forward():
        y = F.batch_norm(x, mean, variance, gamma, beta, row["direction"] != "eval")
        return y if row["op"] == "batch_norm" else F.relu(y if residual is None else y + residual)
    if row["direction"] != "backward":
        return [("", forward)]
    leaves = [t.requires_grad_() for t in (x, gamma, beta) + ((residual,) if residual is not None else ())]
    y = forward()
    return [("", backward_of(y, leaves, torch.randn_like(y)))]


def parameters_of(name):
    if name == "crnn":
        return [p.detach().clone() for p in Recognizer(32, 80).parameters()]
    if name == "resnet50":
        return [p.detach().clone() for p in ResNet50().parameters()]
    count, size = name.split("x")
    return [torch.randn(int(size)) for _ in range(int(count))]


def optimizer(row, d):
    classes = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "clip_adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
               "adagrad": torch.optim.Adagrad}
    ways = []
    for way in ("fused", "foreach"):
        if way == "fused" and row["op"] in ("rmsprop", "adagrad"):
            continue
        parameters = [p.to(DEVICE).requires_grad_() for p in parameters_of(d["parameters"])]
        for p in parameters:
            p.grad = torch.randn_like(p) * 0.1
        options = {"lr": 1e-3, way: True, **({"momentum": 0.9, "weight_decay": 1e-4} if row["op"] == "sgd" else {})}
        if DEVICE == "cuda" and row["op"] not in ("sgd", "adagrad"):
            options["capturable"] = True                          # the step count on the device, so that a graph of steps counts; the others need none or have no such option
        update = classes[row["op"]](parameters, **options)
        def step(update=update, parameters=parameters):
            if row["op"] == "clip_adamw":
                torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            update.step()
        ways.append((way, step))
    return ways


def elementwise(row, d):
    op = row["op"]
    if op == "sum_axis":
        x = random(row, d["outer"], d["size"], d["inner"])
        return [("", lambda: x.sum(1))]
    if op == "transpose":
        x = random(row, d["rows"], d["columns"])
        return [("", lambda: x.t().contiguous())]
    if op == "add_bias":
        x, b = random(row, d["n"], d["c"], d["h"], d["w"]), random(row, 1, d["c"], 1, 1)
        return [("", lambda: x + b)]
    a, b = random(row, d["n"]), random(row, d["n"]) if op in ("add", "add_relu", "relu_backward") else None
    return [("", {"copy": lambda: a.clone(), "add": lambda: a + b, "relu": lambda: torch.relu(a), "gelu": lambda: F.gelu(a), "sigmoid": lambda: torch.sigmoid(a),
                  "add_relu": lambda: torch.relu(a + b), "sum": lambda: a.sum(), "max": lambda: a.max(),
                  "relu_backward": lambda: torch.ops.aten.threshold_backward(b, a, 0)}[op])]


def softmax(row, d):
    x = random(row, d["n"], d["classes"])
    if row["op"] == "cross_entropy":
        labels = torch.randint(0, d["classes"], (d["n"],), device=DEVICE)
        x.requires_grad_()
        return [("", lambda: torch.autograd.grad(F.cross_entropy(x, labels), x))]
    if row["direction"] == "forward":
        return [("", lambda: torch.softmax(x, 1))]
    dy = random(row, d["n"], d["classes"])
    x.requires_grad_()
    return [("", lambda: torch.autograd.grad(torch.softmax(x, 1), x, dy))]


def pooling(row, d):
    x = random(row, d["n"], d["c"], d["h"], d["w"])
    def forward(x):
        return (F.max_pool2d if row["op"] == "max_pool2d" else F.avg_pool2d)(x, d["kernel"], d["stride"], d["pad"])
    if row["direction"] == "forward":
        return [("", lambda: forward(x))]
    y = forward(x.requires_grad_())
    return [("", backward_of(y, x, torch.randn_like(y)))]


def step(row, d):
    batch = d["batch"]
    if row["op"] == "crnn_step":
        net = Recognizer(d["height"], d["classes"]).to(DEVICE)
        update = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
        x, labels = torch.randn(batch, 1, d["height"], d["width"], device=DEVICE), torch.randint(1, d["classes"], (batch, d["target"]), device=DEVICE)
        steps, counts = torch.full((batch,), d["width"] // 4), torch.full((batch,), d["target"])      # on the host, where PyTorch would copy them to
        def loss_of():
            return F.ctc_loss(F.log_softmax(net(x), 2), labels, steps, counts)
    else:
        net = ResNet50(d["classes"]).to(DEVICE)
        update = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)
        x, labels = torch.randn(batch, 3, d["height"], d["width"], device=DEVICE), torch.randint(0, d["classes"], (batch,), device=DEVICE)
        def loss_of():
            return F.cross_entropy(net(x), labels)
    dtype = DTYPES[row["dtype"]]                                   # a half type: mixed precision, as ours under Autocast
    if row["layout"] == "nhwc":
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    def run():
        update.zero_grad()
        with torch.autocast(DEVICE, dtype=dtype, enabled=dtype != torch.float32):
            loss = loss_of()
        loss.backward()
        if row["op"] == "crnn_step":
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        update.step()
    return [("eager, fused optimizer", run)]


# In the order in which the goals of report.py need them.
MAKERS = {"ctc": ctc, "lstm": lstm, "optimizer": optimizer, "steps": step, "conv": conv, "batchnorm": batch_norm, "elementwise": elementwise, "softmax": softmax,
          "pooling": pooling}


class Shot:
    """A call repeated until it takes a tenth of a millisecond or more, recorded in a graph unless `is_eager` or impossible. Everything of a row runs on one stream that is not
    the default one: a backward pass runs where its forward pass did, and on the default stream nothing can be recorded."""

    def __init__(self, run, is_eager):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        self.run, self.graph, self.count = run, None, 1
        self.count = max(1, min(50, math.ceil(1e-4 / max(self.seconds(), 1e-6))))
        self.how = f"{self.count} launches (host included)"
        if is_eager:
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                for _ in range(self.count):
                    run()
            graph.replay()
            torch.cuda.synchronize()
            self.graph, self.how = graph, f"graph of {self.count}"
        except Exception as error:  # noqa: BLE001: whatever hinders a recording, the row is timed without
            torch.cuda.synchronize()
            self.how += f"; no graph: {str(error).splitlines()[0][:60]}"

    def seconds(self):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        if self.graph:
            self.graph.replay()
        else:
            for _ in range(self.count):
                self.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / self.count


def measure(run, is_eager, seconds):
    """(samples in order, how they were taken); on the CPU no samples: it is computed twice, once to see that it can be repeated."""
    if DEVICE == "cpu":
        run()
        run()
        return [], "on the CPU: no times"
    shot = Shot(run, is_eager)
    warm = time.perf_counter() + 0.1
    while time.perf_counter() < warm:
        shot.seconds()
    samples, end = [], time.perf_counter() + seconds
    while len(samples) < 10 or (time.perf_counter() < end and len(samples) < 100):
        samples.append(shot.seconds())
    return sorted(samples), shot.how


def clean(text):
    return str(text).replace(",", " ").replace("\n", " ").replace('"', " ")


def cells_of(row, arguments):
    cells = dict.fromkeys(COLUMNS, "")
    cells.update({name: row[name] for name in KEY + ("family", "tier", "what")})
    cells.update(vendor=f"pytorch {torch.__version__}", device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", commit=arguments.commit)
    return cells


def measured_lines(row, arguments):
    """A line for every way PyTorch has of doing the row; one with a note where it cannot."""
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = row["dtype"] == "tf32"
    try:
        for name, run in MAKERS[row["family"]](row, parse(row["dims"])):
            cells = cells_of(row, arguments)
            # Training steps are what a user waits for; CTC's lengths and packed sequences are copied from the host at every call, which no graph can hold.
            is_eager = row["family"] in ("steps", "ctc") or "Packed" in name
            samples, how = measure(run, is_eager, arguments.seconds)
            cells.update(vendor_algorithm=clean(name), timing=clean(how), cache="warm (1 set)")
            for column, q in (("vendor_us", 0.5), ("vendor_p10", 0.1), ("vendor_p90", 0.9)):
                cells[column] = f"{samples[min(len(samples) - 1, int(q * len(samples)))] * 1e6:.4g}" if samples else ""
            yield cells
    except Exception as error:  # noqa: BLE001: one row's failure is a line in the results, not the end of the run
        cells = cells_of(row, arguments)
        cells["note"] = clean(f"pytorch: {error}"[:200])
        yield cells


def rows_to_measure(arguments, done):
    """Rows of all families, tier by tier."""
    wanted_families = arguments.family.split()
    for family in wanted_families:
        if family not in MAKERS and family not in ELSEWHERE:
            sys.exit(f"pytorch_peer.py: there is no family {family}; there are {', '.join(MAKERS)}")
    rows = []
    for family in MAKERS:
        if family in wanted_families:
            with open(os.path.join(arguments.shapes, family + ".csv"), newline="") as file:
                rows += [{**row, "family": family} for row in csv.DictReader(file)]
    wanted = [row for row in rows if int(row["tier"]) <= arguments.tier and arguments.filter in ",".join(row.values()) and tuple(row[name] for name in KEY) not in done]
    return sorted(wanted, key=lambda row: int(row["tier"]))


def device_is_lost():
    try:
        torch.cuda.synchronize()
        return False
    except RuntimeError:
        return True


def main():
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "shapes"))
    parser.add_argument("--family", default=" ".join(MAKERS), help="one or several, in quotes")
    parser.add_argument("--filter", default="", help="only rows that contain this")
    parser.add_argument("--tier", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=0.2, help="of samples for each row")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--skip-done", action="store_true", help="adds to --out what it does not hold yet")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    DEVICE = arguments.device
    if DEVICE == "cuda":
        if not torch.cuda.is_available():
            sys.exit("pytorch_peer.py: PyTorch finds no CUDA device")
        torch.cuda.set_stream(torch.cuda.Stream())
    torch.backends.cudnn.benchmark = True                        # cuDNN's algorithms are timed and the best is taken
    end = time.perf_counter() + 60 * arguments.minutes
    done, is_new = set(), not (arguments.skip_done and os.path.exists(arguments.out))
    if not is_new:
        with open(arguments.out, newline="") as file:
            done = {tuple(row[name] for name in KEY) for row in csv.DictReader(file)}
    left = 0
    with open(arguments.out, "w" if is_new else "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        for row in rows_to_measure(arguments, done):
            if time.perf_counter() > end:
                left += 1
                continue
            for cells in measured_lines(row, arguments):
                writer.writerow(cells)
                file.flush()
                print(" ".join(cells[name] for name in KEY + ("vendor_algorithm", "vendor_us", "timing", "note")), flush=True)
            if DEVICE == "cuda":
                if device_is_lost():
                    print("the device is lost; started again with --skip-done, the next rows can be measured", flush=True)
                    os._exit(3)                                   # nothing can be freed any more
                torch.cuda.empty_cache()
    if left:
        print(f"time was up, {left} rows were not measured")


if __name__ == "__main__":
    main()
