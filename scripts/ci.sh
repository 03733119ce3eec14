#!/bin/sh
# One job of the checks: scripts/ci.sh JOB. What CI runs is this, and nothing else.
#
# Jobs of every change:
#   fmt          rustfmt
#   clippy       lints, warnings are errors
#   doc          the documentation builds without warnings
#   shell        shellcheck of the scripts
#   layers       arrows point down, headers and sizes
#   units        systemd knows every word of the units; exposure at most 2.0
#   test         every tier of scripts/test
#   sim  fuzz-replay  netns  promises    one tier of it
#   cross        an arm64 build, its unit tests and a circuit through it, under qemu
#
# Jobs before a release, at full size:
#   sim-full     the simulated network over 5000 seeds
#   prop-full    every property over 20000 cases
#   noise-full   a million datagrams against a live node
#   kills-full   200 nodes killed one after the other: noticed within 2 s, new flows 1 s later
#   memory       a node with 1000 idle circuits: less than 40 MiB resident
#   fuzz-full    every parser over five million inputs
#   byzantine-full  10000 DC-nets with a liar each: no honest party is ever blamed
#   dcnet-soak   a DC-net of processes, a member joining or leaving every 2 s for 10 minutes
#   bench        what a cell costs, beside the committed baseline, in time and instructions
#   peer-full    transfers over 20000 seeds, 20 kills of a downloading process
#   rig          scripts/run: every promise, with its pcaps
#   package      both Debian packages: lintian, install, upgrade, remove, purge (needs root)
#   pi-rig       five emulated Pis with the package, driven over ssh (needs root once)
#   deny         cargo-deny: bans, licences, sources (installs cargo-deny if it is not there)
set -eu
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
}

job=${1-}
case "$job" in
-h | --help)
    usage
    exit 0
    ;;
'')
    usage >&2
    exit 2
    ;;
fmt | clippy | doc | shell | layers | units | cross | test | sim | fuzz-replay | netns | promises) ;;
sim-full | prop-full | noise-full | kills-full | memory | fuzz-full | byzantine-full | dcnet-soak | rig | deny) ;;
peer-full | package | pi-rig | bench) ;;
*)
    echo "expected a job, got $job" >&2
    usage >&2
    exit 2
    ;;
esac

scripts/need cc:build-essential
# shellcheck source=scripts/rust
. scripts/rust

case "$job" in
fmt) cargo fmt --check ;;
clippy) cargo clippy --locked --all-targets -- -D warnings ;;
doc) RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items ;;
shell)
    scripts/need shellcheck:shellcheck
    shellcheck -x scripts/need scripts/rust scripts/run scripts/test scripts/units scripts/ci.sh .ci/run \
        scripts/arm-cost scripts/cross scripts/flash scripts/package scripts/bench-peers scripts/pi-rig scripts/test-cross scripts/test-package \
        deploy/image/firstboot deploy/image/welcome deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm
    ;;
layers) cargo test --locked --test layers --test headers ;;
units) scripts/units ;;
test) scripts/test ;;
sim | fuzz-replay | netns) scripts/test "$job" ;;
promises) scripts/test rig ;;
sim-full) CEPA_SIM_SEEDS=5000 cargo test --locked --test sim ;;
prop-full) PROPTEST_CASES=20000 cargo test --locked --lib ;;
noise-full)
    CEPA_RIG_ONLY=hostile CEPA_NOISE_DATAGRAMS=1000000 scripts/test rig
    ;;
kills-full) CEPA_RIG_ONLY=kills CEPA_RIG_KILLS=200 scripts/test rig ;;
memory) CEPA_RIG_ONLY=idle-circuits scripts/test rig ;;
fuzz-full) CEPA_FUZZ_ROUNDS=5000000 cargo test --locked --test fuzz_replay ;;
byzantine-full)
    CEPA_DCNET_BYZANTINE_RUNS=10000 cargo test --locked --test dcnet_sim an_honest_party -- --nocapture
    ;;
dcnet-soak)
    CEPA_DCNET_SOAK_SECONDS=600 cargo test --locked --test dcnet_processes churn
    ;;
bench)
    scripts/need valgrind:valgrind
    cargo bench --locked --bench cells -- --instructions
    ;;
peer-full)
    CEPA_TRANSFER_SEEDS=20000 cargo test --locked --lib peer::transfer
    CEPA_PEER_KILLS=20 cargo test --locked --test peer a_kill_at_any_time
    ;;
rig) scripts/run ;;
cross) scripts/test-cross ;;
package) scripts/test-package ;;
pi-rig) scripts/pi-rig ;;
deny)
    command -v cargo-deny >/dev/null 2>&1 || cargo install --locked cargo-deny
    cargo deny --offline check bans licenses sources
    ;;
esac
