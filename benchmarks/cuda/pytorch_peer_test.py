"""Every row that pytorch_peer.py knows how to do, computed on the CPU with small shapes: typing errors and changes of PyTorch show before there is a GPU to measure on."""
import contextlib
import csv
import io
import os
import sys
import tempfile
import unittest
import unittest.mock

try:
    import torch
except ImportError:
    print("PyTorch is not installed")
    sys.exit(77)                                                 # for ctest: left out

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import pytorch_peer  # noqa: E402
import report  # noqa: E402


def peer(shapes, out, *options):
    """Runs the script's main() here, as loading PyTorch takes longer than all rows. Returns what it ended with: None where all went well."""
    with unittest.mock.patch.object(sys, "argv", ["pytorch_peer.py", "--device", "cpu", "--shapes", shapes, "--tier", "3", "--minutes", "5", "--out", out, *options]):
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                return pytorch_peer.main()
            except SystemExit as end:
                return end.code


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class PeerTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.out = os.path.join(self.folder.name, "pytorch.csv")

    def tearDown(self):
        self.folder.cleanup()

    def shapes_with(self, family, *lines):
        with open(os.path.join(self.folder.name, family + ".csv"), "w") as file:
            file.write("\n".join(["op,direction,dtype,layout,dims,tier,what", *lines]) + "\n")
        return self.folder.name

    def test_every_row_of_the_model_is_computed(self):
        shapes = os.path.join(HERE, "shapes", "model")
        self.assertIsNone(peer(shapes, self.out))
        lines = rows_of(self.out)
        self.assertEqual([line for line in lines if line["note"]], [])
        wanted = {tuple(row[name] for name in report.KEY) for family in pytorch_peer.MAKERS for row in rows_of(os.path.join(shapes, family + ".csv"))}
        self.assertEqual({tuple(line[name] for name in report.KEY) for line in lines}, wanted)
        self.assertEqual({line["vendor_us"] for line in lines}, {""}, "a time was written that is none of a GPU")
        self.assertEqual(len(report.read([self.out])), len(wanted))

    def test_a_step_of_resnet(self):
        shapes = self.shapes_with("steps", "resnet50_step,eager,bfloat16,nhwc,batch=2 height=32 width=32 classes=10,1,tiny",
                                  "resnet50_step,eager,float32,nchw,batch=2 height=32 width=32 classes=10,1,tiny")
        self.assertIsNone(peer(shapes, self.out, "--family", "steps gemm"))
        self.assertEqual([line["note"] for line in rows_of(self.out)], ["", ""])

    def test_a_row_that_fails_is_a_line_and_done_rows_are_left_out(self):
        good, bad = "copy,forward,float32,-,n=10,1,tiny", "frobnicate,forward,float32,-,n=10,1,tiny"
        shapes = self.shapes_with("elementwise", bad, good)
        for _ in range(2):
            self.assertIsNone(peer(shapes, self.out, "--family", "elementwise", "--skip-done"))
        lines = rows_of(self.out)
        self.assertEqual([line["op"] for line in lines], ["frobnicate", "copy"])
        self.assertIn("pytorch: 'frobnicate'", lines[0]["note"])

    def test_a_family_that_is_not_there(self):
        self.assertIn("there is no family cnov", peer(self.folder.name, self.out, "--family", "cnov"))

    def test_columns_are_those_of_the_program(self):
        with open(os.path.join(HERE, "row.cpp")) as file:
            source = file.read().split("names{", 1)[1].split("};", 1)[0]
        self.assertEqual([name.strip().strip('"') for name in source.split(",")], pytorch_peer.COLUMNS)


if __name__ == "__main__":
    torch.set_num_threads(1)                                     # tests run beside each other
    unittest.main()
