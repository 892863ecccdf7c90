# One image for everything of ours: `evergreen <service>`, `evergreen init`, `evergreen migrate`, …
ARG DEBIAN=trixie

FROM debian:${DEBIAN}-slim AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv
WORKDIR /build
# setuptools builds what is no wheel yet, and does not get into the image.
COPY requirements.txt .
RUN python3 -m venv tools \
 && sed -n '/^setuptools==/,/# via/p' requirements.txt > tools.txt \
 && tools/bin/pip install --no-cache-dir --require-hashes --requirement tools.txt
COPY deploy/docker/requirements.txt runtime.txt
RUN tools/bin/pip wheel --no-cache-dir --no-build-isolation --require-hashes \
      --wheel-dir wheels --requirement runtime.txt \
 && python3 -m venv /opt/evergreen \
 && /opt/evergreen/bin/pip install --no-compile --no-deps --no-index wheels/*.whl
COPY pyproject.toml README.md ./
COPY libs libs
COPY services services
COPY cli cli
COPY deploy deploy
RUN tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /opt/evergreen/bin/pip install --no-compile --no-deps --no-index dist/*.whl \
 && /opt/evergreen/bin/pip uninstall --yes pip \
 && /opt/evergreen/bin/python -m compileall -q -j 0 /opt/evergreen/lib

FROM debian:${DEBIAN}-slim
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/* \
 && useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin evergreen \
 # New volumes get the owner of these.
 && install --directory --owner evergreen --group evergreen --mode 0700 /run/evergreen \
      /var/lib/evergreen /var/lib/evergreen/operator /var/lib/evergreen/postgres \
      /var/lib/evergreen/postgres-data /var/lib/evergreen/nats /var/lib/evergreen/gateway \
      /var/lib/evergreen/identity /var/lib/evergreen/enrollment /var/lib/evergreen/policy \
      /var/lib/evergreen/telemetry /var/lib/evergreen/attestation /var/lib/evergreen/audit
COPY --from=build /opt/evergreen /opt/evergreen
# What is in the image, for whoever looks for vulnerable parts (CycloneDX).
COPY deploy/docker/sbom.py /tmp/sbom.py
RUN /opt/evergreen/bin/python /tmp/sbom.py > /usr/share/evergreen-sbom.cdx.json && rm /tmp/sbom.py
ENV PATH=/opt/evergreen/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["evergreen"]
CMD ["--help"]
