#!/usr/bin/env bash
# Tries the handwriting program as a person would, and as a careless one would. Usage: tests/handwriting_program.sh PROGRAM
set -euo pipefail
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

fails() {                                        # fails "text of the error" command...: must exit with 1 and say so
  local expected=$1 status=0
  shift
  "$@" >output.txt 2>&1 || status=$?
  if [ $status -ne 1 ] || ! grep -qF "$expected" output.txt; then
    echo "FAILED: '$*' exited with $status; expected 1 and \"$expected\", got:" && cat output.txt && exit 1
  fi
}
small="--steps 60 --batch 4 --hidden 16 --evaluate-every 20 --threads 1"

echo "training writes everything it promises"
"$program" train --out straight $small >straight.txt
for file in model.safetensors history.csv history.png predictions.png checkpoint.safetensors; do test -s straight/$file; done
grep -q "held-out lines: CER" straight.txt

echo "a run that was stopped by Ctrl-C and resumed ends with the same weights, bit for bit"
"$program" train --out stopped $small >stopped.txt & process=$!
until grep -qs "step 20/" stopped.txt; do kill -0 $process; sleep 0.05; done
status=0
kill -INT $process && wait $process || status=$?
test $status -eq 130 -o $status -eq 0                # 0: it was faster than the signal
[ $status -eq 0 ] || "$program" train --out stopped $small --resume >>stopped.txt
cmp straight/model.safetensors stopped/model.safetensors

echo "a killed run leaves a checkpoint that can be resumed"
"$program" train --out killed $small >killed.txt & process=$!
until grep -qs "step 20/" killed.txt; do kill -0 $process; sleep 0.05; done
{ kill -KILL $process && wait $process; } 2>/dev/null || true
[ ! -f killed/checkpoint.safetensors ] || "$program" train --out killed $small --resume >>killed.txt
[ ! -f killed/model.safetensors ] || cmp straight/model.safetensors killed/model.safetensors

echo "a folder of lines is drawn, learned, measured and read"
"$program" draw --out lines --lines 40
"$program" train --data lines --out folder $small >folder.txt
grep -q "split by page" folder.txt
"$program" evaluate --model folder/model.safetensors --data lines --threads 1 | grep -q "CER"
test "$("$program" read --model folder/model.safetensors lines/00000.png lines/00001.png | wc -l)" -eq 2
"$program" describe --model folder/model.safetensors | grep -q "MACs"

echo "mistakes are told"
fails "cannot be written to" "$program" train --out /dev/null/out
fails "unknown option --stpes" "$program" train --stpes 5
fails "takes a whole number" "$program" train --steps many
fails "must be at least 1" "$program" train --steps 0
fails "unknown command" "$program" trian
fails "no checkpoint to resume from" "$program" train --out new $small --resume
fails "another network" "$program" train --out straight $small --resume --hidden 8
fails "nothing.safetensors" "$program" read --model nothing.safetensors lines/00000.png
head -c 1000 folder/model.safetensors >cut.safetensors
fails "cut.safetensors" "$program" read --model cut.safetensors lines/00000.png
fails "lines/lines.tsv" "$program" read --model folder/model.safetensors lines/lines.tsv
fails "nowhere" "$program" train --data nowhere --out new
printf 'file\ttext\n' >lines/lines.tsv
fails "lines.tsv" "$program" train --data lines --out new
echo "all of it holds"
