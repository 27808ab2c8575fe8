#!/usr/bin/env bash
# Load-tests a real llama-server on this machine: builds it and makes its model if they are missing, starts it, runs
# `loadgen run` against it from the repository root and stops it again. PORT, SLOTS, CONTEXT and THREADS are serve.sh's.
# Arguments are passed on to loadgen and override those given here, for example: ./run.sh --step-time 5
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
loadgen=$(cd "$here/../.." && pwd)/.venv/bin/loadgen
export PORT=${PORT:-8090}
url=http://127.0.0.1:$PORT
log=$here/.cache/server.log

[[ -x $loadgen ]] || { echo "run.sh: $loadgen is missing; install this project into .venv first." >&2; exit 1; }
command -v curl >/dev/null || { echo "run.sh: curl is not on PATH; install it and run this again." >&2; exit 1; }
if curl --silent --max-time 2 --output /dev/null "$url/health"; then
    echo "run.sh: something already answers on port $PORT; stop it or set PORT to a free port." >&2
    exit 1
fi

"$here/build.sh"
[[ -f $here/.cache/tiny.gguf ]] || "$here/.cache/venv/bin/python" "$here/make_model.py" "$here/.cache/tiny.gguf"

"$here/serve.sh" >"$log" 2>&1 &
server=$!
# Not SIGTERM: with streams still open, llama-server takes up to 30 s (its ping interval) to notice that.
trap 'kill -KILL "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT
deadline=$((SECONDS + 60))
until curl --silent --fail --max-time 2 --output /dev/null "$url/health"; do
    if ! kill -0 "$server" 2>/dev/null || ((SECONDS > deadline)); then
        echo "run.sh: llama-server did not become healthy; see the end of $log." >&2
        exit 1
    fi
    sleep 0.2
done

cd "$here/../.."
"$loadgen" run chat --host "$url" --model tiny --steps 1,2,4,8,16,32 --step-time 15 \
    --prompt-tokens 64 --output-tokens 32 --agents local "$@"
