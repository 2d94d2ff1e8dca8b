#!/usr/bin/env bash
# Learning curves for benchmarks/replay.py: searches at random in which no trial is stopped. About 15 minutes a table on 2 cores.
#   benchmarks/record_tables.sh RUNS [default|photographs|architecture|poisson ...]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
runs=$1
shift
tables=("$@")
[[ $# -gt 0 ]] || tables=(default photographs architecture poisson)
common=(--sampler random --pruner none --epochs 27 --images-per-epoch 640 --trials 64 --wandb disabled --keep 3
    --set batch_size=32 --set dropout=0 --set lr_schedule=cosine)
residual=(--set blocks=1 --set depth=3 --set output=residual --set adversarial_weight=0.1)
for table in "${tables[@]}"; do
    case $table in
    default) options=("${common[@]}" "${residual[@]}" --set width=8 --seed 11) ;;
    poisson) options=("${common[@]}" "${residual[@]}" --set width=4 --seed 12 --noise poisson:30) ;;
    photographs)
        mkdir -p "$runs/images"
        "$python" -c 'import sys; sys.path.insert(0, "benchmarks"); import photographs; from pathlib import Path
photographs.prepare(Path(sys.argv[1]))' "$runs/images"
        options=("${common[@]}" "${residual[@]}" --set width=4 --seed 13 --data "$runs/images/photographs" --crop 32) ;;
    architecture) # what it searches cannot be set
        options=("${common[@]::14}" --set batch_size=32 --seed 14 --space benchmarks/small_architecture.py) ;;
    esac
    "$python" -m hpo.cli search "$table" --runs "$runs" "${options[@]}"
    "$python" benchmarks/replay.py record "$runs" "$table" --table "benchmarks/tables/$table.json.gz"
done
