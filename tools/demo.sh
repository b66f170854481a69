#!/usr/bin/env bash
# The whole job on the built-in corpus, everything trained in the run:
#   pre-train a small HuBERT -> fine-tune it stably, on words and on emotion -> interpolate with the
#   pre-trained weights -> probe what each encoder knows.
#
#   tools/demo.sh [--quick] [-o DIR]      DIR: demo/ by default; --quick: a minute, to see it work
#
# Settings were chosen on dev data; sft-probe scores test data once a seed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${SFT_BUILD:-$root/build}
out=demo quick=no
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes ;;
    -o) out=$2; shift ;;
    *) echo "usage: tools/demo.sh [--quick] [-o DIR]" >&2; exit 2 ;;
  esac
  shift
done
if [ $quick = yes ]; then pretrain=60 words=60 emotion=40 probe=60 asr=60 seeds=1
else pretrain=1000 words=900 emotion=400 probe=500 asr=1000 seeds=3; fi
alpha=0.5
began=$(date +%s)
mkdir -p "$out"
cd "$out"

stage() { echo "== $* ($(($(date +%s) - began)) s)" >&2; }
sft() { "$bin/sft-$1" "${@:2}"; }
no_dropout="--set model.dropout=0 --set model.attention_dropout=0 --set model.input_dropout=0"

stage "a random encoder"
sft init hubert-tiny -o random.gguf --force
stage "pre-training: masked prediction of 100 clusters of MFCC"
sft pretrain random.gguf --data pretrain -o pretrained --steps $pretrain --force \
  --set optim.lr=1e-3 --set sched.warmup=0.1 $no_dropout
stage "stable fine-tuning on words (CTC)"
sft train pretrained --ctc digits -o words --head linear --steps $words --force \
  --set "data.units=$root/train/corpora/digits/words.txt" --set optim.lr=5e-4 \
  --set batch.utterances=4 --set augment.specaugment=false
stage "stable fine-tuning on emotion (dev and test data are of other actors)"
sft train pretrained --classify emotion --label emotion -o emotion --steps $emotion --force \
  --set optim.lr=5e-4 --set batch.utterances=8
stage "interpolation with the pre-trained weights, alpha $alpha"
sft merge pretrained words --alpha $alpha -o words-merged.gguf --force >words-merged.txt
sft merge pretrained emotion --alpha $alpha -o emotion-merged.gguf --force >emotion-merged.txt

# name, options of sft-probe
probes="words:--task asr --units $root/train/corpora/digits/words.txt --steps $asr --lr 3e-3 --head linear
word:--task ks --steps $probe
emotion:--task er --steps $probe
gender:--task er --label gender --steps $probe
speaker:--task sid --steps $probe"
encoders="random.gguf pretrained words words-merged.gguf emotion emotion-merged.gguf"
while IFS=: read -r name options; do
  for encoder in $encoders; do
    stage "probe: $name of ${encoder%.gguf}"
    sft probe "$encoder" $options --seeds $seeds -o "probes/$name-${encoder%.gguf}" --force -q \
      >"$name-${encoder%.gguf}.probe"
  done
done <<<"$probes"

score() { awk -F'\t' -v key="$1" '$1 == key { print $2 }' "$2"; }
echo
echo "Scores on test data, frozen encoder, fresh heads, $seeds seed(s), mean ± sample deviation:"
echo "word error rate of spoken digits (lower is better), accuracies (higher is better), in percent."
printf '%-26s' "encoder"
for name in "digits WER" "word of 10" "emotion of 4" "gender" "speaker of 5"; do printf '%18s' "$name"; done
echo
label() {
  case $1 in
    random.gguf) echo "random" ;;
    pretrained) echo "pre-trained" ;;
    words) echo "tuned on words" ;;
    words-merged.gguf) echo "  merged, alpha $alpha" ;;
    emotion) echo "tuned on emotion" ;;
    emotion-merged.gguf) echo "  merged, alpha $alpha" ;;
  esac
}
# printf pads bytes; the sign has two.
cell() { printf '%*s' $((18 + $(printf %s "$1" | grep -o '±' | wc -l))) "$1"; }
for encoder in $encoders; do
  printf '%-26s' "$(label "$encoder")"
  for name in words word emotion gender speaker; do
    cell "$(score test "$name-${encoder%.gguf}.probe" | sed 's/ %//')"
  done
  echo
done
printf '%-26s' "chance"
for name in words word emotion gender speaker; do
  chance=$(score chance "$name-random.probe" | sed 's/ %//')
  cell "${chance:--}"
done
echo
echo
echo "$(($(date +%s) - began)) s. Models, runs, merge reports and probes are in $(pwd)."
