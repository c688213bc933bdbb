# The demo's agent: plain shell that keeps the agent contract (docs/agent-contract.md). It knows the seven Roman symbols and nothing of
# the six pairs such as IV; those it learns from what the gate said. So the first round is refused, and the second does just what the
# feedback names. It counts no rounds: without feedback it would do the same again.
set -eu
task=/mosaic/task.json

progress() { printf '{"progress": {"fraction": %s, "message": "%s"}}\n' "$1" "$2"; }

# Rows "VALUE SYMBOL", one a line, that the library has now.
rows() { sed -n 's/^    (\([0-9]*\), "\([A-Z]*\)"),$/\1 \2/p' src/lib.rs; }

# Writes the library with the rows of standard input, largest value first.
write_library() {
    sorted=$(sort -rnu)
    {
        cat <<'RUST'
//! Roman numerals.

/// Values and their symbols, the largest first.
const SYMBOLS: &[(u16, &str)] = &[
RUST
        printf '%s\n' "$sorted" | sed 's/^\([0-9]*\) \([A-Z]*\)$/    (\1, "\2"),/'
        cat <<'RUST'
];

/// Writes a number from 1 to 3999 as a Roman numeral.
pub fn to_roman(mut number: u16) -> String {
    let mut numeral = String::new();
    for &(value, symbol) in SYMBOLS {
        while number >= value {
            numeral.push_str(symbol);
            number -= value;
        }
    }
    numeral
}
RUST
    } > src/lib.rs.new
    mv src/lib.rs.new src/lib.rs
}

progress 0.1 "reading the task"
named=$(grep -o 'wrong: [0-9]* is [A-Z]*' "$task" | sed 's/^wrong: //; s/ is / /' | sort -u || true)
if [ -z "$named" ]; then
    echo "No feedback: writing to_roman with the symbols that I know."
    progress 0.5 "writing to_roman"
    printf '%s\n' '1000 M' '500 D' '100 C' '50 L' '10 X' '5 V' '1 I' | write_library
    summary="to_roman writes numbers with the seven symbols"
else
    echo "The tests gate names numbers that come out wrong; adding just those:"
    printf '%s\n' "$named"
    progress 0.5 "mending what the gate named"
    { rows; printf '%s\n' "$named"; } | write_library
    summary="to_roman writes numbers as Roman numerals, pairs such as IV included"
fi
printf '{"summary": "%s", "commitMessage": "Write numbers as Roman numerals\\n\\n%s."}\n' "$summary" "$summary" > /mosaic/out/result.json
progress 1.0 "done"
