#!/bin/sh
# Builds the two libraries that have an OpenSSL or a BoringSSL of their own in their wheels, against
# the OpenSSL of this system: cryptography and grpcio, as requirements.txt pins them (docs/fips.md).
#
#   fips-wheels.sh REQUIREMENTS DIRECTORY    # on Debian 13, with the packages that Dockerfile.fips names
#
# A wheel of the pinned version that lies in the directory already is left as it is.
set -eu
requirements=$(realpath "$1")
mkdir -p "$2"
cd "$2"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/tools"
for name in cryptography grpcio; do
    sed -n "/^$name==/,/# via/p" "$requirements" > "$work/$name.txt"
    version=$(sed -n "s/^$name==\([^ ;]*\).*/\1/p" "$work/$name.txt")
    for found in "$name-$version"-*.whl; do
        [ ! -e "$found" ] || continue 2
    done
    # -g0: debugging information makes half of the work, and is not kept. CFLAGS would take the place
    # of -O2, and reach C alone.
    CPPFLAGS=-g0 GRPC_PYTHON_BUILD_SYSTEM_OPENSSL=1 GRPC_PYTHON_BUILD_SYSTEM_ZLIB=1 \
        GRPC_PYTHON_BUILD_EXT_COMPILER_JOBS="$(nproc)" \
        "$work/tools/bin/pip" wheel --no-cache-dir --no-deps --no-binary "$name" --require-hashes \
        --wheel-dir "$work/made" --requirement "$work/$name.txt"
    mv "$work/made/$name-$version"-*.whl .
done
