#!/bin/sh
# The whole road on a laptop: a synthetic dump, two models, one held-out number. Every line can be typed by hand.
set -eu
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # for a model this small, threads cost more than they give
OUT=${1:-demo}
run() { printf '\n$ %s\n' "$*"; "$@"; }

JUDGED=$(find "$OUT" -name '*.db' -o -name '*.sqlite*' 2>/dev/null | head -1)
if [ -n "$JUDGED" ]; then
  echo "error: $OUT holds judgements ($JUDGED): move them away, the demo begins with an empty folder" >&2
  exit 2
fi
rm -rf "$OUT"
run prefkit sample "$OUT/mending.example"
run prefkit convert "$OUT/mending.example" --out "$OUT/data" --splits train=.8,test=.2
run prefkit train tiny-model --data.path "$OUT/data" --out "$OUT/tiny"
run prefkit train sft --config recipes/demo_sft.yaml --model.path "$OUT/tiny" --data.path "$OUT/data" --out "$OUT/sft"
run prefkit train dpo --config recipes/demo_dpo.yaml --model.path "$OUT/sft" --data.path "$OUT/data" --out "$OUT/dpo"
run evalkit score --policy "$OUT/dpo" --data "$OUT/data" --split test --out "$OUT/scores"
run evalkit report "$OUT/scores" --out "$OUT/report"

cat <<END

Read $OUT/report/report.md. Then, in a browser:
  prefkit label $OUT/data --db $OUT/labels.db
  evalkit generate --model $OUT/sft --data $OUT/data --out $OUT/sft.jsonl --limit 20
  evalkit generate --model $OUT/dpo --data $OUT/data --out $OUT/dpo.jsonl --limit 20
  evalkit side-by-side $OUT/sft.jsonl $OUT/dpo.jsonl --db $OUT/votes.db
(first: . .venv/bin/activate)
END
