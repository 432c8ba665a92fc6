#!/usr/bin/env bash
# The REST routes with curl: compute, download, health, cache statistics.
#   examples/client_curl.sh [URL [MODEL]]
set -euo pipefail
url=${1:-http://127.0.0.1:3000}
model=${2:-esm2_mini}
fasta=$(dirname "$0")/proteins.fasta
file=$(mktemp)
trap 'rm -f "$file"' EXIT
call() { curl --silent --show-error --fail-with-body "$@"; }

echo "# compute"
reply=$(call -H 'Content-Type: text/x-fasta' --data-binary @"$fasta" "$url/embeddings/compute/$model") ||
  { echo "$reply" >&2 && exit 1; }
echo "$reply" | cut -c 1-300

echo "# download"
link=$(echo "$reply" | sed -n 's/.*"download_link":"\([^"]*\)".*/\1/p')
call --output "$file" "$url$link"
echo "$link: $(wc -c <"$file") bytes"

echo "# health"
call "$url/embeddings/health"
echo

echo "# cache"
call "$url/embeddings/cache/stats"
echo
