# The default image of sandboxes: git, a shell and Python, and nothing of Mosaic: mosaic-init, the task and the tree are mounted into it.
# Any image will do that has what an agent and its gates run; it needs no user, no entry point and no network.
FROM debian:bookworm-slim
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bash ca-certificates git make python3 >/dev/null \
    && rm -rf /var/lib/apt/lists/*
