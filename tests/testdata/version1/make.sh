#!/bin/bash
# Makes the data of this folder with the code of commit 564c667, whose checkout is the current
# directory: bash tests/testdata/version1/make.sh OUTPUT (an absolute path; README.md says more).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
output=$1
export JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=1
mkdir -p "$output"
cp "$here"/{speech,text}.jsonl "$output"
python -m experiments.train_tokenizer --input="$output/text.jsonl" --format=text_jsonl \
  --vocab_size=64 --nobyte_fallback --character_coverage=1 \
  --output="$output/tokenizer"
rm -f "$output/tokenizer.vocab"
python -m experiments.prepare_data --input="$output/speech.jsonl" --format=reference_jsonl \
  --unit_count=20 --tokenizer="$output/tokenizer.model" --records_per_shard=4 \
  --output="$output/speech_records"
python -m experiments.prepare_data --input="$output/text.jsonl" --format=text_jsonl \
  --tokenizer="$output/tokenizer.model" --output="$output/text_records"
settings=(
  --gin_file=experiments/configs/models/tiny.gin --gin_file=experiments/configs/data/speech_text.gin
  --gin_file=experiments/configs/runs/tiny.gin
)
bindings=(
  --gin.DIM_LOCAL=8 --gin.DIM_GLOBAL=16 --gin.NUM_LAYERS_GLOBAL=1 --gin.NUM_LAYERS_DECODER=1
  --gin.NUM_HEADS_LOCAL=2 --gin.NUM_HEADS_GLOBAL=2 --gin.MULTIPLE_OF=8 --gin.ATTENTION='"dense"'
  --gin.UNIT_COUNT=20 --gin.NUM_STEPS=2 --gin.WARMUP_STEPS=1 --gin.BATCH_ROWS=2
  --gin.NUM_PATCHES=32 --gin.LOG_EVERY=1 --gin.CHECKPOINT_EVERY=2
  --gin.TOKENIZER="\"$output/tokenizer.model\""
  --gin.SPEECH_RECORDS="\"$output/speech_records\"" --gin.TEXT_RECORDS="\"$output/text_records\""
)
python -m experiments.train "${settings[@]}" "${bindings[@]}" --gin.NUM_TOKENS=48 \
  --workdir="$output/lst_run"
python -m experiments.train "${settings[@]}" --gin_file=experiments/configs/runs/baseline.gin \
  "${bindings[@]}" --gin.NUM_TOKENS=32 --workdir="$output/baseline_run"
python -m experiments.port_checkpoint --input="$output/lst_run" --to=safetensors \
  --output="$output/lst_safetensors"
# Small is better than complete: one of the runs can be resumed, the other only read.
rm -rf "$output"/*_run/{events,metrics.jsonl,config.gin}
rm -rf "$output"/lst_run/checkpoints/2/{optimizer,data,progress}
python "$here/expected.py" "$output"
