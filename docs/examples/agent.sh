#!/bin/sh
# An agent without a model that keeps the whole agent contract (docs/agent-contract.md): it writes the task's instructions into NOTES.md.
# Needs only a POSIX shell, awk, sed and grep. To try it outside a sandbox, set AGENT_WORKSPACE, AGENT_MOSAIC and HOME to folders.
set -eu

workspace=${AGENT_WORKSPACE:-/workspace}
mosaic=${AGENT_MOSAIC:-/mosaic}
task=$mosaic/task.json

# Prints the text of one top-level key of the task; fails if there is none. A key of a nested object never counts.
text_of() {
    awk -v wanted="$1" '
        { json = json $0 "\n" }
        function unescaped(c,   code, i) {
            if (c == "n") return "\n"
            if (c == "t") return "\t"
            if (c == "r" || c == "b" || c == "f") return ""
            if (c != "u") return c
            code = 0
            for (i = 1; i <= 4; i++) code = code * 16 + index("0123456789abcdef", tolower(substr(json, at + i, 1))) - 1
            at += 4
            return code < 128 ? sprintf("%c", code) : "?"
        }
        function string(   text, c) {
            text = ""
            while (++at <= length(json)) {
                c = substr(json, at, 1)
                if (c == "\"") return text
                if (c == "\\") { at++; c = unescaped(substr(json, at, 1)) }
                text = text c
            }
            exit 1
        }
        END {
            for (at = 1; at <= length(json); at++) {
                c = substr(json, at, 1)
                if (c == "{" || c == "[") { depth++; key = "" }
                else if (c == "}" || c == "]") depth--
                else if (c == "\"") { text = string(); if (depth == 1 && is_value && key == wanted) { printf "%s", text; found = 1; exit 0 } if (depth == 1 && !is_value) key = text }
                if (c == ":") is_value = 1
                else if (c == "," || c == "{" || c == "\"") is_value = 0
            }
            exit !found
        }' "$task"
}

# Makes a JSON string of the arguments.
json() {
    printf '%s' "$*" | tr -d '\000-\010\013-\037' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g' |
        awk '{ all = all (NR > 1 ? "\\n" : "") $0 } END { printf "\"%s\"", all }'
}

# One JSON line on standard output tells how far we are; every other line goes to the log as it is.
progress() {
    printf '{"progress": {"fraction": %s, "message": %s}}\n' "$1" "$(json "$2")"
}

# The result: why nothing was changed, or what was, and the message of the commit that the controller makes.
result() {
    mkdir -p "$mosaic/out"
    printf '{"summary": %s, "commitMessage": %s}\n' "$(json "$1")" "$(json "$2")" >"$mosaic/out/result.json"
}

cd "$workspace"
if ! instructions=$(text_of instructions) || [ -z "$instructions" ]; then
    echo "the task has no instructions" >&2
    exit 1
fi
progress 0.1 "read the task $(text_of taskId || echo without id)"

# HOME is kept between attempts: what an agent wants to remember belongs there, not into the tree.
echo run >>"$HOME/example-agent-runs"
echo "this is run $(grep -c . "$HOME/example-agent-runs")"

# Earlier rounds were refused for these reasons. An agent with a model would hand the whole list to it.
if grep -q '"feedback"[^[]*\[[^]]*{' "$task"; then
    echo "earlier rounds were refused; the feedback is in $task"
fi

# The base branch moved, and both sides changed the same lines: here both are kept.
conflicts=$(grep -rlE --exclude-dir=.git '^<<<<<<< ' . || true)
if [ -n "$conflicts" ]; then
    progress 0.3 "resolving conflicts"
    printf '%s\n' "$conflicts" | while IFS= read -r file; do
        sed -e '/^<<<<<<< /d' -e '/^||||||| /,/^=======$/d' -e '/^=======$/d' -e '/^>>>>>>> /d' "$file" >"$file.resolved"
        cat "$file.resolved" >"$file"
        rm "$file.resolved"
    done
fi

progress 0.5 "writing NOTES.md"
first=$(printf '%s\n' "$instructions" | sed -n 1p)
if [ -f NOTES.md ] && grep -qxF -- "- $first" NOTES.md; then
    if [ -z "$conflicts" ]; then
        # Without this summary an unchanged tree would count as a failure.
        result "NOTES.md has this note already" ""
        exit 0
    fi
else
    printf -- '- %s\n' "$first" >>NOTES.md
fi

result "noted: $first" "Note: $first"
progress 1 "done"
