#!/usr/bin/env bash
# Serves .cache/tiny.gguf with llama-server on loopback until it is stopped. Settings come from the environment: PORT,
# SLOTS (sequences decoded at once; the rest queue), CONTEXT (tokens a slot) and THREADS (for the model; one leaves the
# other core to the load generator). Arguments are passed on, for example: ./serve.sh --api-key secret
set -euo pipefail

cache=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/.cache
port=${PORT:-8090} slots=${SLOTS:-8} context=${CONTEXT:-2048} threads=${THREADS:-1}

if [[ ! -x $cache/llama-server ]]; then
    echo "serve.sh: $cache/llama-server is missing; run build.sh first." >&2
    exit 1
fi
if [[ ! -f $cache/tiny.gguf ]]; then
    echo "serve.sh: $cache/tiny.gguf is missing; run .cache/venv/bin/python make_model.py .cache/tiny.gguf first." >&2
    exit 1
fi

# No prompt cache in host memory: llama-server's default lets it grow to 8 GiB, for prompts that never come again.
exec "$cache/llama-server" --model "$cache/tiny.gguf" --alias tiny --host 127.0.0.1 --port "$port" --metrics \
    --parallel "$slots" --ctx-size $((slots * context)) --cont-batching --threads "$threads" \
    --threads-batch "$threads" --cache-ram 0 --offline "$@"
