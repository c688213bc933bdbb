# The server: mosaic, the static mosaic-init and git, run by an ordinary user. `make image` builds it; README.md says how it is started and what
# that means.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY src src
# As the Makefile does: a folder of its own, or the next plain build puts a dynamic mosaic-init in the place of the static one.
RUN cargo rustc --locked --release --bin mosaic-init --no-default-features --target-dir target/init -- -C target-feature=+crt-static \
    && cargo build --locked --release --bin mosaic

FROM debian:bookworm-slim
# git fetches and pushes, ssh carries it where remotes ask for that. Nothing here is for agents: they run in images of their own.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates git openssh-client >/dev/null \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 mosaic \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/mosaic --shell /usr/sbin/nologin mosaic \
    && install -d -o mosaic -g mosaic -m 0700 /var/lib/mosaic
COPY --from=build /src/target/release/mosaic /src/target/init/release/mosaic-init /usr/local/bin/
USER 10001:10001
ENV MOSAIC_STATE=/var/lib/mosaic
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["mosaic", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["mosaic"]
CMD ["up"]
