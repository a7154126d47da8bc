#!/usr/bin/env bash
# A row that takes too long ends the program with status 3 and a line that says so; the next run goes on behind it. A row in which the program died with the vendor's library is
# measured without it, and left out if it died again.   Usage: restart_test.sh PROGRAM FOLDER (over the model of CUDA)
set -uo pipefail
bench=$1 out=$2/results.csv shapes=$(cd "$(dirname "$0")" && pwd)/shapes/model
mkdir -p "$2" && rm -f "$out" "$out.row"
fail() { echo "restart_test.sh: $1" >&2; cat "$out" >&2; exit 1; }
run() { "$bench" --shapes "$shapes" --family "$1" --filter "$2" --out "$out" --vendor none --minutes 1 --skip-done "${@:3}"; }

run steps crnn_step,eager --row-seconds 0.05
[ $? -eq 3 ] || fail "a row that takes too long did not end the program with status 3"
grep -q "crnn_step,eager.*ours: not finished after" "$out" || fail "the row has no line that says it took too long"
[ ! -e "$out.row" ] || fail "the note of a row that has its line is still there"
run steps crnn_step,eager || fail "a row that is done was measured again, or is no end"
[ "$(grep -c crnn_step,eager "$out")" -eq 1 ] || fail "the row has not one line"

row=$(sed -n 2p "$shapes/softmax.csv" | cut -d, -f1-5)
echo "with $row" >"$out.row"
run softmax "$row" || fail "a row in which the program died with the vendor is not measured without it"
grep -q "^$row,softmax" "$out" || fail "the row that was measured without a vendor has no line"
row=$(sed -n 3p "$shapes/softmax.csv" | cut -d, -f1-5)
echo "without $row" >"$out.row"
run softmax "$row"
[ $? -eq 1 ] || fail "a row in which the program died twice is not counted as a bad one"
grep -q "^$row,softmax.*the program ended in this row" "$out" || fail "the row in which the program died twice has no line"
