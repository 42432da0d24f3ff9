#!/bin/sh
# The road on real dumps with a small trained model; the README's table shows what it printed.
#   sh recipes/real_dumps.sh FOLDER_OF_DUMPS MODEL OUT
set -eu
[ $# = 3 ] || { echo "usage: sh recipes/real_dumps.sh FOLDER_OF_DUMPS MODEL OUT" >&2; exit 2; }
DUMPS=$1 MODEL=$2 OUT=$3
run() { printf '\n$ %s\n' "$*"; "$@"; }

run prefkit convert "$DUMPS/beer-2020-06/beer.stackexchange.com.7z" "$DUMPS/ai-2017-03" "$DUMPS/matheducators-2014-05" \
  "$DUMPS/bicycles.meta-2023-08" "$DUMPS/history.meta-2018-08-doctype" "$DUMPS/datascience.meta-2024-03" \
  "$DUMPS/conlang.meta-2020-08" "$DUMPS/avp.meta-2014-09" "$DUMPS/stackoverflow-head-2019-06" \
  --out "$OUT/data" --splits train=.4,test=.6
run prefkit train sft --config recipes/real_sft.yaml --model.path "$MODEL" --data.path "$OUT/data" --out "$OUT/sft"
run prefkit train dpo --config recipes/real_dpo.yaml --model.path "$OUT/sft" --data.path "$OUT/data" --out "$OUT/dpo"
for model in sft dpo; do
  run evalkit score --policy "$OUT/$model" --data "$OUT/data" --split test --out "$OUT/scores-$model"
  run evalkit report "$OUT/scores-$model" --out "$OUT/report-$model"
done
