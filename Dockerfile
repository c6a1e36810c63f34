# The broker's image. Two ways to the same image:
#
#   docker build -t sealmq .                     builds everything from source (the last stage; some twenty minutes)
#   docker build -t sealmq --target prebuilt .   takes this host's binaries from target/dist/ (built on Debian 12)
#
# Stages are in this order because the classic builder runs every stage before the one that is asked for.

ARG RUNTIME=debian:bookworm-slim
ARG RUST=rust:1-bookworm

# What both ways share: no shell script, no secret, one user without rights, and xxd, because the lessons
# look at the data directory with it from inside the container.
FROM ${RUNTIME} AS runtime
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends libstdc++6 xxd \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 65532 sealmq \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sealmq \
 && for program in sealmq sealmq-init sealmqctl sealmq-forensics sealmq-bench; do ln -s "../lib/sealmq/$program" "/usr/bin/$program"; done \
 && ln -s ../lib/sealmq/sealmqctl /usr/bin/rabbitmqctl \
 && ln -s ../lib/sealmq/sealmqctl /usr/bin/rabbitmq-diagnostics \
 && mkdir -p /etc/sealmq/conf.d /etc/rabbitmq/conf.d \
 && install -d -o 65532 -g 65532 -m 0755 /etc/rabbitmq/ssl \
 && install -d -o 65532 -g 65532 -m 0700 /var/lib/sealmq /var/lib/sealmq-secrets /run/sealmq
LABEL org.opencontainers.image.title="SealMQ" \
      org.opencontainers.image.description="An AMQPS-first message broker whose data directory holds nothing readable" \
      org.opencontainers.image.licenses="Apache-2.0"
# Named volumes take the owner of the folder that they cover: init and the broker need no root.
VOLUME ["/var/lib/sealmq", "/var/lib/sealmq-secrets"]
USER 65532:65532
EXPOSE 5671
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["/usr/bin/sealmq", "healthcheck"]
ENTRYPOINT ["/usr/bin/sealmq"]

# The LICENSE travels with the binaries; it also keeps this COPY valid where target/dist/ does not exist.
FROM runtime AS prebuilt
COPY LICENSE target/dist*/ /usr/lib/sealmq/

FROM ${RUST} AS build
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends g++ make pkg-config libclang-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# RocksDB first: it takes longest and changes least.
COPY Cargo.toml Cargo.lock rust-toolchain.toml ./
COPY scripts/env scripts/rocksdb scripts/
RUN scripts/rocksdb
COPY src src
RUN bash -c 'set -e; . scripts/env; cargo build --release --locked --bins' \
 && install -D -s -t /out target/release/sealmq target/release/sealmq-init target/release/sealmqctl target/release/sealmq-forensics target/release/sealmq-bench

FROM runtime AS sealmq
COPY LICENSE /usr/lib/sealmq/
COPY --from=build /out/ /usr/lib/sealmq/
