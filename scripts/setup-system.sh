#!/usr/bin/env bash
# Installs the programs that some tests use and pip cannot bring: Chromium (the playground page) and Prometheus (its
# scraper and promtool). Tests that miss them are skipped. Debian and Ubuntu; needs root or sudo without a password.
set -euo pipefail
exec </dev/null

say() { echo "setup-system: $*"; }

missing=()
for program in chromium prometheus; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if ((${#missing[@]} == 0)); then
    say "chromium and prometheus are here"
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    say "no apt-get here; install by hand: ${missing[*]}"
    exit 1
fi
as_root=()
if [[ $(id -u) != 0 ]]; then
    if ! sudo -n true 2>/dev/null; then
        say "needs root; run: sudo apt-get install --no-install-recommends ${missing[*]}"
        exit 1
    fi
    as_root=(sudo)
fi

# Debian starts a packaged service as soon as it is installed; nobody asked for a Prometheus on port 9090.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

"${as_root[@]}" apt-get -qq update || say "apt-get update failed; trying with the lists that are here"
failed=()
for program in "${missing[@]}"; do
    say "installing $program"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$program" \
        >/dev/null || failed+=("$program")
done
if ((${#failed[@]} > 0)); then
    say "could not install: ${failed[*]}; tests that use them are skipped"
    exit 1
fi
say "done"
