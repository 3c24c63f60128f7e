# One image for every role: `dpp serve` (when nothing else is asked for), `dpp work`, `dpp reap`,
# `dpp migrate` and the operator's commands. It holds no settings beyond addresses to listen on, and
# no secrets: both come from the environment.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY migrations migrations
COPY config config
# Without the feature `dev`: no local services in what is shipped. A mounted cache is no part of the
# image, so the binary is copied out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --no-default-features --bin dpp \
    && cp target/release/dpp /usr/local/bin/dpp

FROM debian:bookworm-slim
# Certificates for TLS to PostgreSQL, Redis and AWS; curl for the health check.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin dpp
COPY --from=build /usr/local/bin/dpp /usr/local/bin/dpp
ENV DPP_ENV=production DPP_HOST=0.0.0.0 DPP_OPS_ADDR=0.0.0.0:9464
EXPOSE 8000 9464
USER 10001
# Whether the process lives. Whether its dependencies do is /readyz: restarting mends none of them.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:9464/health"]
ENTRYPOINT ["dpp"]
CMD ["serve"]
