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
  if [ $status -ne 1 ] || ! grep -qF -- "$expected" output.txt; then
    echo "FAILED: '$*' exited with $status; expected 1 and \"$expected\", got:" && cat output.txt && exit 1
  fi
}
# little_endian NUMBER BYTES: the number as bytes
little_endian() {
  local i
  for ((i = 0; i < $2; ++i)); do printf "\\x$(printf %02x $(($1 >> 8 * i & 255)))"; done
}
# edit_model IN OUT KEY VALUE: the same tensors, with another text in the metadata
edit_model() {
  local LC_ALL=C size header
  size=$(od -An -tu8 -N8 "$1" | tr -d ' ')
  header=$(head -c $((8 + size)) "$1" | tail -c "$size" | sed -E "s/\"$3\":\"([^\"\\]|\\\\.)*\"/\"$3\":\"$4\"/")
  while ((${#header} % 8)); do header+=" "; done
  { little_endian ${#header} 8 && printf %s "$header" && tail -c +$((9 + size)) "$1"; } >"$2"
}
# white_picture FILE WIDTH HEIGHT: a BMP, whatever the file is called
white_picture() {
  local row=$((($2 * 3 + 3) / 4 * 4))
  { printf BM && little_endian $((54 + row * $3)) 4 && little_endian 0 4 && little_endian 54 4 && little_endian 40 4 && little_endian $2 4 && little_endian $3 4 &&
    little_endian 1 2 && little_endian 24 2 && little_endian 0 4 && little_endian $((row * $3)) 4 && little_endian 0 16 && head -c $((row * $3)) /dev/zero | tr '\0' '\377'; } >"$1"
}
# What a mistake may take: so much memory (kB) and time (s) that a hang or a huge allocation fails the test.
bounded() { (ulimit -v 2000000; timeout 20 "$@"); }

small="--steps 60 --batch 4 --hidden 16 --evaluate-every 20 --threads 1"

echo "training writes everything it promises"
"$program" train --out straight $small >straight.txt
for file in model.safetensors history.csv history.png predictions.png checkpoint.safetensors; do test -s straight/$file; done
grep -q "held-out lines: CER" straight.txt

echo "a finished run that is resumed ends with the same files and the same figures"
cp -r straight again
"$program" train --out again $small --resume >again.txt
cmp straight/model.safetensors again/model.safetensors
cmp straight/predictions.png again/predictions.png
cmp <(grep "held-out lines: CER" straight.txt) <(grep "held-out lines: CER" again.txt)

echo "a run goes on with its own options only; each one that differs is named"
fails "another run: --batch was 4 and is 8, --lr was 0.002 and is 0.001, --seed was 1 and is 2, --steps was 60 and is 40" \
  "$program" train --out again --steps 40 --batch 8 --hidden 16 --seed 2 --lr 1e-3 --resume
cmp straight/model.safetensors again/model.safetensors

echo "a training that diverges stops, says what to do, and leaves the files as they were"
fails "the training diverged. Use a lower --lr than 1e+30" bounded "$program" train --out again $small --lr 1e30
cmp straight/model.safetensors again/model.safetensors
cmp straight/checkpoint.safetensors again/checkpoint.safetensors
fails "after 2 of 2 steps: the training diverged" bounded "$program" train --out again --steps 2 --batch 4 --hidden 16 --lr 1e38
cmp straight/model.safetensors again/model.safetensors

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
"$program" read --model folder/model.safetensors lines/00000.png lines/00001.png >read.txt
test "$(wc -l <read.txt)" -eq 2
"$program" describe --model folder/model.safetensors >describe.txt
grep -q "MACs" describe.txt
grep -qx "trained with batch 4, data lines, dropout 0.3, held-out 0.13, lr 0.002, seed 1, split page, steps 60" describe.txt

echo "a model is measured on the lines that its own run held out, whatever was split since"
held_out=$(grep -o "[0-9]* held out" folder.txt | cut -d" " -f1)
"$program" evaluate --model folder/model.safetensors --threads 1 >evaluate.txt
grep -q "^$held_out lines of lines that were held out (split by page, seed 1): CER" evaluate.txt
cmp <(grep -o "CER [0-9.]* %" evaluate.txt) <(grep "held-out lines" folder.txt | grep -o "CER [0-9.]* %")
"$program" train --data lines --out other_split --steps 4 --batch 4 --hidden 16 --held-out 0.5 --seed 7 >other_split.txt
"$program" evaluate --model other_split/model.safetensors --data ./lines/ --threads 1 | grep -q "^20 lines of ./lines/ that were held out (split by page, seed 7): CER"
"$program" evaluate --model straight/model.safetensors --threads 1 | grep -q "^400 drawn lines that were held out (seed 1): CER"
"$program" draw --out elsewhere --lines 20 --seed 5
fails "evaluate --all --data elsewhere measures all of them" "$program" evaluate --model folder/model.safetensors --data elsewhere
mv lines moved
fails "tell with --data where they are now" "$program" evaluate --model folder/model.safetensors
"$program" evaluate --model folder/model.safetensors --data moved --threads 1 >moved.txt
cmp <(grep -o "CER.*words)" evaluate.txt) <(grep -o "CER.*words)" moved.txt)
mv moved lines
fails "was trained on drawn lines" "$program" evaluate --model straight/model.safetensors --data elsewhere
"$program" evaluate --model folder/model.safetensors --data elsewhere --all --threads 1 | grep -q "^all 20 lines of elsewhere"
fails "another run: --held-out was 0.13 and is 0.5" "$program" train --data lines --out folder $small --held-out 0.5 --resume
fails "the alphabet is another, --data was lines and is elsewhere" "$program" train --data elsewhere --out folder $small --resume

echo "lines that cannot be learned from are told before, or counted"
fails "--batch 16 is more than the 10 lines there are to train on" bounded "$program" train --data elsewhere --out new --steps 3 --batch 16 --held-out 0.1
long_text() { head -c "$1" /dev/zero | tr "\0" a; }
mkdir long && cp elsewhere/*.png long
{ head -n 11 elsewhere/lines.tsv && printf '00010.png\tpage 1\t1\tdrawn\t%s\n00011.png\tpage 1\t2\tdrawn\tb\n' "$(long_text 160000)"; } >long/lines.tsv
white_picture long/00011.png 1 20000
"$program" train --data long --out long_out --steps 20 --batch 2 --hidden 8 --held-out 0.1 >long.txt        # the tall picture and the long text, held out or not
grep -q "held-out lines: CER" long.txt && test -s long_out/predictions.png
{ head -n 1 elsewhere/lines.tsv && awk -F'\t' -v OFS='\t' -v text="$(long_text 2000)" 'NR > 1 {$5 = text; print}' elsewhere/lines.tsv; } >long/lines.tsv
fails "wide enough for its text, so nothing was learned" "$program" train --data long --out long_out2 --steps 20 --batch 2 --hidden 8 --held-out 0.1
awk -F'\t' -v OFS='\t' -v text="$(long_text 2000)" 'NR % 4 == 2 {$5 = text} {print}' elsewhere/lines.tsv >long/lines.tsv
cp elsewhere/*.png long
"$program" train --data long --out long_out3 --steps 20 --batch 4 --hidden 8 --held-out 0.1 >long.txt
grep -q "of the 80 lines seen were too narrow for their texts" long.txt
white_picture long/00003.png 60000 1
fails "long/00003.png: the picture of 60000 x 1 pixels would be" bounded "$program" train --data long --out long_out4 --steps 20 --batch 4 --hidden 8 --held-out 0.1

echo "hostile pictures and models take neither time nor memory; the other pictures are read"
fails "long/00003.png: the picture of 60000 x 1 pixels would be" bounded "$program" read --model folder/model.safetensors lines/00000.png long/00003.png missing.png lines/00001.png
grep -q "missing.png" output.txt
cmp <(grep "^lines" output.txt) read.txt
for change in "rnn_layers 16" "hidden 4096" "channels 4096 4096 4096 4096" "height 512" "channels 16 32 64 96 96"; do
  edit_model folder/model.safetensors hostile.safetensors ${change%% *} "${change#* }"
  fails "hostile.safetensors" bounded "$program" read --model hostile.safetensors lines/00000.png
done
edit_model folder/model.safetensors hostile.safetensors hidden 99999999999
fails "expected a number from 1 to 4096" bounded "$program" describe --model hostile.safetensors
edit_model folder/model.safetensors hostile.safetensors alphabet aab
fails "letters twice" bounded "$program" describe --model hostile.safetensors
edit_model straight/model.safetensors hostile.safetensors run.held-out 99999999999
fails "expected a number from 1 to 100000" bounded "$program" evaluate --model hostile.safetensors
edit_model folder/model.safetensors hostile.safetensors run.split letter
fails "expected page or hand" bounded "$program" evaluate --model hostile.safetensors
fails "is a checkpoint" "$program" read --model folder/checkpoint.safetensors lines/00000.png

echo "help is given wherever it is asked for, and starts nothing"
for words in --help -h help "train --help" "train -h" "read -h" "evaluate --steps -h"; do "$program" $words >output.txt && grep -q "learn to read lines" output.txt; done
test ! -e out

echo "mistakes are told"
fails "unexpected \"extra\"" "$program" train extra words
fails "unknown option --model" "$program" train --model x
fails "unknown option -x" "$program" train -x
fails "option --out needs a value" "$program" train --out ""
fails "option --out needs a value" "$program" train --out --resume
fails "must be 1 to 1024" "$program" train --threads 4294967297
fails "option --device: \"gpu\" is no device; devices are cpu, cuda and cuda:1" "$program" train --device gpu
fails "option --device: " "$program" train --device cuda:1000
fails "must be 1 to 1000000000, got 9223372036854775808" "$program" train --steps 9223372036854775808
fails "must be 1 to 4096" "$program" train --batch 9223372036854775807
fails "must be 16 to 512" "$program" train --height 1000000
fails "must be 1 to 16" "$program" train --layers 100000
fails "are for the lines of a folder" "$program" train --held-out 0.5
fails "must lie between 0 and 1" "$program" train --data lines --held-out 5
fails "must be below 1" "$program" train --dropout 1
[ ! -e /dev/full ] || { status=0; "$program" describe >/dev/full 2>output.txt || status=$?; test $status -eq 1; grep -q "the output cannot be written" output.txt; }
test ! -e out
fails "cannot be written to" "$program" train --out /dev/null/out
fails "unknown option --stpes" "$program" train --stpes 5
fails "takes a whole number" "$program" train --steps many
fails "must be 1 to 1000000000" "$program" train --steps 0
fails "unknown command" "$program" trian
fails "no checkpoint to resume from" "$program" train --out new $small --resume
fails "another run: --hidden was 16 and is 8" "$program" train --out straight $small --resume --hidden 8
fails "nothing.safetensors" "$program" read --model nothing.safetensors lines/00000.png
head -c 1000 folder/model.safetensors >cut.safetensors
fails "cut.safetensors" "$program" read --model cut.safetensors lines/00000.png
fails "lines/lines.tsv" "$program" read --model folder/model.safetensors lines/lines.tsv
fails "nowhere" "$program" train --data nowhere --out new
printf 'file\ttext\n' >lines/lines.tsv
fails "lines.tsv" "$program" train --data lines --out new
echo "all of it holds"
