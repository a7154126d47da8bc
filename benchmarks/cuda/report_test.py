"""What report.py must do, on rows invented for this test (no figure here was measured)."""
import os
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

    def test_columns_are_those_of_the_program(self):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "row.cpp")) as file:
            source = file.read().split("names{", 1)[1].split("};", 1)[0]
        self.assertEqual([name.strip().strip('"') for name in source.split(",")], HEADING)


if __name__ == "__main__":
    unittest.main()
