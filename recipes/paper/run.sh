#!/usr/bin/env bash
# One row of the paper's main table (arXiv 2406.11689), from prepared shards to every number that the row has.
#
#   python recipes/prepare/imagenet.py TRAIN VAL data/in1k             # once; TRAIN, VAL: the extracted archives
#   python recipes/prepare/caltech256.py 256_ObjectCategories data/ct256
#   bash recipes/paper/run.sh lgd_resnet18_in1k_200 [--dry-run] [--field.sub value ...]
#
# Rows, their recipes and the paper's numbers are in rows.tsv; hours and what was never run, in docs/results/imagenet.md. `--dry-run` prints
# the commands; further words are recipe fields for `distill`. A stopped run goes on where it was when it is started again.
#
#   DATA    folder of the shards in1k and ct256        [data]
#   OUT     folder of the runs                         [output/paper]
#   GPUS    processes of torchrun                      [those that nvidia-smi lists, else 1]
#   WORKERS   processes that read images for an evaluation   [8]
#   IN1K_NAMES, TEMPLATES, PROBE   what ImageNet's labels are called, prompt templates, further words for `evaluate linear-probe`
set -euo pipefail
cd "$(dirname "$0")/../.."
rows=recipes/paper/rows.tsv
row=${1:-}
[ $# -eq 0 ] || shift
line=$(awk -F '\t' -v row="$row" 'NR > 1 && $1 == row' "$rows")
if [ -z "$line" ]; then
    echo "run.sh: error: no row '$row' in $rows; there are: $(tail -n +2 "$rows" | cut -f 1 | tr '\n' ' ')" >&2
    exit 2
fi
IFS=$'\t' read -r row recipe student epochs names zs_in1k zs_ct256 lp_1 lp_10 lp_100 lp_ct256 <<<"$line"
dry=false
if [ "${1:-}" = --dry-run ]; then
    dry=true
    shift
fi

data=${DATA:-data} out=${OUT:-output/paper}/$row
gpus=${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c ^GPU || true)}
declare -A vocabulary=([in1k]=${IN1K_NAMES:-open_clip:imagenet-disambiguated} [ct256]=$data/ct256/names.txt)
templates=${TEMPLATES:-openai}
read -ra probe <<<"--protocol sgd --sgd-batch-size 2048 ${PROBE:-}"

say() {
    local words
    printf -v words '%q ' "$@"
    echo "${words% }"
}

# score NAME PAPER WHAT SHARDS [FLAG...]: one evaluation into $out/NAME.json, unless the paper's row has none or it is there already.
score() {
    local name=$1 paper=$2 command=(lgd-timm evaluate "$3" "$out/run/published" --data "$4" --workers "${WORKERS:-8}" "${@:5}" --json)
    [ "$paper" != - ] || return 0
    say "${command[@]}"
    if ! $dry && [ ! -s "$out/$name.json" ]; then
        "${command[@]}" >"$out/$name.part"
        mv "$out/$name.part" "$out/$name.json"
    fi
}

distil=(torchrun --nproc-per-node "$((gpus > 1 ? gpus : 1))" -m lgd_timm.cli distill "recipes/paper/$recipe.yaml" --output "$out/run" --resume)
images=${recipe#*_}
distil+=(--data.shards "$data/$images" --data.val_vocabulary "${vocabulary[$images]}" --student.model "lgd_$student" --schedule.epochs "$epochs")
distil+=(--vocabulary "${vocabulary[$names]}" --vocabulary.templates "$templates")
[ "$student" != mobilenetv2 ] || distil+=(--student.drop_rate 0.2) # as the released code's has it
say "${distil[@]}" "$@"
$dry || "${distil[@]}" "$@"

for labels in in1k ct256; do
    paper=zs_$labels
    score "$paper" "${!paper}" zero-shot "$data/$labels" --vocabulary "${vocabulary[$labels]}" --templates "$templates"
done
score lp_1 "$lp_1" linear-probe "$data/in1k" "${probe[@]}" --subset "$data/in1k/subset_13.json"
score lp_10 "$lp_10" linear-probe "$data/in1k" "${probe[@]}" --subset "$data/in1k/subset_128.json"
score lp_100 "$lp_100" linear-probe "$data/in1k" "${probe[@]}"
score lp_ct256 "$lp_ct256" linear-probe "$data/ct256" "${probe[@]}"
$dry || python recipes/paper/rows.py "$row" "$out"
