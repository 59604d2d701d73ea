# The image of controller and agent.
#
#   docker build -t stagenet:0.1.0 .          (or: podman build, buildah build)
#
# Debian, because the agent needs the iptables tools, in both variants (nft and legacy), and those need their libraries.
FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin stagenet && cp target/release/stagenet /stagenet

FROM docker.io/library/debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends iptables \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/*
COPY --from=build /stagenet /usr/local/bin/stagenet
COPY LICENSE /usr/share/doc/stagenet/LICENSE
# Memory that a change of ten thousand mappings needed for a moment is given back at once: an agent that has nothing to do would not get round to it (docs/performance.md).
ENV MIMALLOC_PURGE_DELAY=0
# The controller runs as this user; the agent's manifest asks for root, because iptables does.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/stagenet"]
