#!/bin/sh
# curl against a bough server: ask.sh [BASE_URL]
set -eu
url="${1:-http://127.0.0.1:8000}"

curl -fsS "$url/v1/strategies"
echo

reply=$(curl -fsS "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "'"$(curl -fsS "$url/v1/models" | sed 's/.*"data":\[{[^}]*"id":"\([^"]*\)".*/\1/')"'",
  "messages": [{"role": "user", "content": "Tom has 4 pins. He buys 3 pins. How many pins does Tom have now?"}],
  "seed": 7,
  "bough": {"strategy": "best_of_n", "params": {"width": 4}}
}')
echo "$reply"

# The events of that run, numbered; -H "Last-Event-ID: 41" would go on after number 41.
run=$(echo "$reply" | sed 's/.*"run_id":"\([^"]*\)".*/\1/')
curl -fsSN "$url/v1/runs/$run/events"
