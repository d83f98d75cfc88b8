#!/usr/bin/env bash
# Builds the wheel, installs it with vLLM in a clean virtual environment, serves the demo that it brings, and asks it
# with the README's first curl: gigabytes, many minutes.
#   docker/check_wheel.sh [FOLDER]    FOLDER is kept, and what is installed in it is not installed again; by default
#                                     a temporary one that is removed
# It is served from a folder whose engine/, server/ and rewards/ are somebody else's, which nothing of ours may import.
set -euo pipefail

source=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
folder=${1:-}
server=''
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    temporary=$folder
fi
leave() {
    if [ -n "$server" ]; then kill -TERM "$server" 2>/dev/null && wait "$server" || true; fi
    if [ -n "${temporary:-}" ]; then rm -rf "$temporary"; fi
}
trap leave EXIT
mkdir -p "$folder"
cd "$folder"

[ -e venv ] || "$python" -m venv venv
bin=$folder/venv/bin
# From a copy: what an earlier build has left in build/ would go into the wheel.
rm -rf source wheel
mkdir source
tar -C "$source" --exclude=./.git --exclude=./.venv --exclude=./build --exclude=./out --exclude='*.egg-info' -c . | tar -C source -x
"$bin/pip" wheel -q --no-deps -w wheel ./source
wheel=$(echo wheel/trimtab-*.whl)
if "$bin/python" -m zipfile -l "$wheel" | tail -n +2 | grep -v '^trimtab[/-]'; then
    echo "check_wheel: $wheel holds more than trimtab/ and its dist-info" >&2
    exit 1
fi
# As in the Makefile: the CPU build of torch, and three packages that break every import of transformers.
"$bin/pip" install -q "$wheel[cpu]" \
    || "$bin/pip" install -q "$wheel[cpu]" --extra-index-url https://download.pytorch.org/whl/cpu
"$bin/pip" install -q --no-deps --force-reinstall "$wheel"
"$bin/python" -c 'import torchvision, torchaudio, torchcodec' 2>/dev/null \
    || "$bin/pip" uninstall -q -y torchvision torchaudio torchcodec

for package in engine server rewards; do
    mkdir -p "elsewhere/$package"
    echo 'raise ImportError("this is no part of trimtab")' > "elsewhere/$package/__init__.py"
done
cd elsewhere
port=$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$bin/trimtab" serve --port "$port" > ../server.log 2>&1 &
server=$!
began=$SECONDS
until curl -sf "http://127.0.0.1:$port/ready" > /dev/null; do
    if ! kill -0 "$server" 2>/dev/null; then
        tail -n 40 ../server.log >&2
        exit 1
    fi
    sleep 1
done
echo "ready after $((SECONDS - began)) s"
curl -sS --fail-with-body "http://127.0.0.1:$port/" | grep -q 'playground/js/main.js'
curl -sS --fail-with-body -o /dev/null "http://127.0.0.1:$port/playground/js/main.js"
request=$(sed -n "/^curl /,/^}'\$/p" "$source/README.md" | sed "/^}'\$/q" | sed "s/127.0.0.1:8000/127.0.0.1:$port/")
answer=$(eval "$request -sS --fail-with-body")
echo "$answer"
"$bin/python" -c '
import json, sys
answer = json.load(sys.stdin)
assert answer["alignment"]["strategy"] == "guided", answer
assert answer["alignment"]["weights"] == {"warmth": 1.0}, answer
assert answer["choices"][0]["message"]["content"], answer' <<< "$answer"
kill -TERM "$server"
wait "$server" || true
server=''
echo "check_wheel: 1 passed, 0 failed"
