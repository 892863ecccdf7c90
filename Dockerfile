# One image for everything of ours: `evergreen serve <service>`, `evergreen init`, `evergreen migrate`, …
ARG DEBIAN=trixie

FROM debian:${DEBIAN}-slim AS build
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv
WORKDIR /build
# setuptools builds what is no wheel yet, and does not get into the image.
COPY requirements.txt .
RUN python3 -m venv tools \
 && sed -n '/^setuptools==/,/# via/p' requirements.txt > tools.txt \
 && tools/bin/pip install --no-cache-dir --require-hashes --requirement tools.txt
COPY deploy/docker/requirements.txt runtime.txt
RUN tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --require-hashes \
      --wheel-dir wheels --requirement runtime.txt \
 && sha256sum wheels/*.whl > wheels.sha256 \
 && python3 -m venv /opt/evergreen \
 && /opt/evergreen/bin/pip install --no-compile --no-deps --no-index wheels/*.whl \
 # Of what the library of S3 knows of Amazon's services, only what logs in and stores is needed.
 && find /opt/evergreen/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d \
      ! -name s3 ! -name sts ! -name sso ! -name sso-oidc -exec rm -r {} +
COPY pyproject.toml README.md LICENSE ./
COPY libs libs
COPY services services
COPY cli cli
COPY deploy deploy
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/evergreen/bin/pip install --no-compile --no-deps --no-index dist/*.whl \
 && /opt/evergreen/bin/pip uninstall --yes pip \
 && /opt/evergreen/bin/python -m compileall -q -j 0 /opt/evergreen/lib

FROM debian:${DEBIAN}-slim
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 tzdata ca-certificates openssh-client \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* \
 && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin evergreen \
 # New volumes get the owner of these.
 && install --directory --owner evergreen --group evergreen --mode 0700 /run/evergreen \
      /var/lib/evergreen /var/lib/evergreen/operator /var/lib/evergreen/postgres \
      /var/lib/evergreen/postgres-data /var/lib/evergreen/nats /var/lib/evergreen/gateway \
      /var/lib/evergreen/identity /var/lib/evergreen/enrollment /var/lib/evergreen/policy \
      /var/lib/evergreen/telemetry /var/lib/evergreen/attestation /var/lib/evergreen/audit \
      /var/lib/evergreen/backup /backups
COPY --from=build /opt/evergreen /opt/evergreen
# What is in the image, for those who look for vulnerable parts (CycloneDX).
COPY --from=build /build/wheels.sha256 /usr/share/evergreen-wheels.sha256
RUN /opt/evergreen/bin/python -m deploy.docker.sbom --wheels /usr/share/evergreen-wheels.sha256 \
      > /usr/share/evergreen-sbom.cdx.json
ENV PATH=/opt/evergreen/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 TZ=UTC
USER 10001:10001
ENTRYPOINT ["evergreen"]
CMD ["--help"]
# At the end, for each build may have others: what the image was built of (`evergreen version`).
ARG VERSION=0.4.0.dev0
ARG COMMIT=
ARG CREATED=
ENV EVERGREEN_BUILD_COMMIT=$COMMIT EVERGREEN_BUILD_TIME=$CREATED
LABEL org.opencontainers.image.title="Evergreen Selfhost Backend" \
      org.opencontainers.image.description="Self-hosted device management for EvergreenOS fleets" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT \
      org.opencontainers.image.created=$CREATED
