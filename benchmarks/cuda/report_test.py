"""What report.py must do, on rows invented for this test (no figure here was measured)."""
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import report  # noqa: E402

HEADING = ("op,direction,dtype,layout,dims,family,tier,what,kernel,ours_us,ours_p10,ours_p90,vendor,vendor_algorithm,vendor_us,vendor_p10,vendor_p90,ratio,gflop,mb,tflops,tbs,"
           "roof_us,roof_percent,bound,error_ours,error_vendor,workspace_mb,vendor_workspace_mb,deterministic,cache,timing,sm_mhz,device,driver,commit,note").split(",")


def line(**cells):
    return ",".join(cells.get(name, "") for name in HEADING)


def rows_of(*files):
    paths = []
    folder = tempfile.mkdtemp()
    for i, lines in enumerate(files):
        paths.append(os.path.join(folder, f"{i}.csv"))
        with open(paths[-1], "w") as file:
            file.write("\n".join([",".join(HEADING), *lines]) + "\n")
    return report.read(paths)


def conv(ours, vendor, groups="1", **more):
    return line(op="conv2d", direction="forward", dtype="bfloat16", layout="nhwc", dims=f"n=1 groups={groups} w={ours}", family="conv", ours_us=ours, vendor="cuDNN 9",
                vendor_us=vendor, **more)


class ReportTest(unittest.TestCase):
    def test_geomean_does_not_hide_the_minimum(self):
        text = "\n".join(report.summary(rows_of([conv("10", "40"), conv("20", "5")])))
        self.assertIn("| conv | cuDNN | 2 | 1.00 | 0.25 | 1 | 1 |", text)
        self.assertIn("0.25 against cuDNN 9, goal 0.5", text)

    def test_grouped_convolutions_have_a_goal_of_their_own(self):
        self.assertIn("goals missed", "\n".join(report.summary(rows_of([conv("10", "14", groups="32")]))))
        self.assertEqual([is_met for _, is_met in report.verdicts(rows_of([conv("10", "14", groups="32")])[0])], [False])
        self.assertEqual([is_met for _, is_met in report.verdicts(rows_of([conv("10", "14", groups="1")])[0])], [True])

    def test_pytorch_is_joined_by_the_row_and_its_fastest_way_counts(self):
        key = dict(op="adamw", direction="step", dtype="float32", layout="-", dims="parameters=crnn", family="optimizer")
        ours = line(**key, ours_us="100")
        fused = line(**key, vendor="pytorch", vendor_algorithm="fused", vendor_us="140")
        foreach = line(**key, vendor="pytorch", vendor_algorithm="foreach", vendor_us="300")
        rows = rows_of([ours], [fused, foreach])
        self.assertEqual(len(rows), 1)
        self.assertEqual(report.verdicts(rows[0]), [("1.40 against pytorch (fused), goal 1.5", False)])

    def test_the_model_gives_no_figures(self):
        rows = rows_of([conv("model", "model")])
        self.assertEqual(report.verdicts(rows[0]), [])
        self.assertIn("| conv | - | 0 | - | - | 0 | 0 |", report.summary(rows))
        self.assertIn("| model |", "\n".join(report.family_lines("conv", rows)))

    def test_a_wrong_or_refused_row_is_listed(self):
        text = "\n".join(report.summary(rows_of([conv("10", "10", note="OURS IS WRONG: error 1"), conv("", "", note="ours: takes float32")])))
        self.assertIn("2 rows wrong or refused", text)
        self.assertIn("takes float32", text)

    def test_a_line_that_a_run_was_stopped_in_is_left_out(self):
        rows = rows_of([conv("10", "20"), conv("30", "20")[:40]])
        self.assertEqual(len(rows), 1)
        self.assertIn("| conv | cuDNN | 1 | 2.00 | 2.00 | 1 | 0 |", report.summary(rows))

    def test_everything_that_a_run_writes_is_read(self):
        folder = tempfile.mkdtemp()
        paths = {name: os.path.join(folder, name) for name in ("results.csv", "machine.csv", "report.md")}
        with open(paths["results.csv"], "w") as file:
            file.write("\n".join([",".join(HEADING), conv("10", "40", roof_percent="50", error_ours="1e-6", cache="cold", timing="graph of 3", kernel="k")]) + "\n")
        with open(paths["machine.csv"], "w") as file:
            file.write("name,value\ndevice,invented\ndriver,1\nruntime,13.0\ncommit,abc\nproducts_by,cuBLAS\ncopy,4e12\nfloat32,5e13\ntf32,4e14\nfloat16,8e14\nbfloat16,8e14\n")
        program = [sys.executable, report.__file__, "--machine", paths["machine.csv"], "--out", paths["report.md"], paths["results.csv"], os.path.join(folder, "pytorch.csv")]
        summary = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        with open(paths["report.md"]) as file:
            text = file.read()
        for part in ("Device: invented; driver 1; CUDA 13.0; commit abc.", "copy 4.00 TB/s", "| conv | cuDNN | 1 | 4.00 | 4.00 | 1 | 0 |"):
            self.assertIn(part, summary)
            self.assertIn(part, text)
        self.assertIn("cuDNN 9: 40 (4.00)", text)
        empty = subprocess.run(program[:-2] + [os.path.join(folder, "pytorch.csv")], capture_output=True, text=True)
        self.assertEqual(empty.returncode, 1)
        self.assertIn("no results in", empty.stderr)

    def test_columns_are_those_of_the_program(self):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "row.cpp")) as file:
            source = file.read().split("names{", 1)[1].split("};", 1)[0]
        self.assertEqual([name.strip().strip('"') for name in source.split(",")], HEADING)


if __name__ == "__main__":
    unittest.main()
