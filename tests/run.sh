#!/usr/bin/env bash
# Runs all tests of all binaries and ends with one line: `N passed, N failed, N skipped`.
#
# A test that cannot run because something is absent says `SKIPPED <test>: <what>` and is counted as skipped, not as passed.
# With MOSAIC_TEST_NO_SKIP=1 such a test fails. Arguments go to `cargo test`.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# What the build has left to be written goes to the disk first: a store that has to wait behind that for seconds is no mistake of the program.
CARGO_TERM_COLOR=never cargo test --locked --no-run "$@" >/dev/null 2>&1 && sync
CARGO_TERM_COLOR=never cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

# Adds up one column ("passed", "failed") of all `test result:` lines.
total() {
    grep -aoE '^test result: .*' "$log" | grep -oE "[0-9]+ $1" | awk '{ sum += $1 } END { print sum + 0 }'
}
passed=$(total passed)
failed=$(total failed)
# A part that another test plays in a child process is no test of its own: it is neither run nor skipped.
ignored=$(grep -aE '^test .* \.\.\. ignored' "$log" | grep -vc 'played by a child process of')
absent=$(grep -aoE 'SKIPPED [^ ]+: ' "$log" | sort -u | wc -l)

if [ "$absent" -gt 0 ]; then
    printf '\nNot run:\n'
    grep -aoE 'SKIPPED [^ ]+: .*' "$log" | sort -u | sed 's/^/  /'
fi
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    # A test binary that did not build or died prints no result; zero failures would be a lie.
    printf '\nThe test run itself failed, see above.\n'
    failed=1
fi
printf '\n%d passed, %d failed, %d skipped\n' "$((passed - absent))" "$failed" "$((ignored + absent))"
exit "$status"
