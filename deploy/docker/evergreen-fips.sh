#!/bin/sh
# `evergreen` in the image for FIPS mode (Dockerfile.fips). OpenSSL's module tests itself on the
# machine that runs it, before the first command of each container; what it writes stays in /tmp.
#
#   EVERGREEN_FIPS_MODULES        the directory of a module of your own, fips.so; Debian's without
#   EVERGREEN_WHEN_REFUSED=stay   a service that is refused stays and does nothing, for Docker would
#                                 start it again and again; without, it ends with 78
set -u
program=${EVERGREEN_PROGRAM:-/opt/evergreen/bin/evergreen}
modules=${EVERGREEN_FIPS_MODULES:-}
written=${EVERGREEN_FIPS_WRITTEN:-/tmp/fipsmodule.cnf}
refused=78

case "${EVERGREEN_WHEN_REFUSED:-end} ${1:-} ${2:-}" in
"stay serve "* | "stay backup schedule") stays=yes ;;
*) stays= ;;
esac

end() {
    if [ -n "$stays" ]; then
        trap 'exit 0' TERM INT
        sleep infinity &
        wait
    fi
    exit $refused
}

refuse() {
    echo "FIPS mode refused: $1" >&2
    end
}

install() {
    [ ! -s "$written" ] || return 0
    [ -f "$modules/fips.so" ] || refuse "$modules/fips.so is not there; mount the directory of your module, or leave it out for Debian's (docs/fips.md)"
    if said=$(OPENSSL_CONF=/dev/null openssl fipsinstall -out "$written.$$" -module "$modules/fips.so" 2>&1); then
        mv "$written.$$" "$written"
    else
        rm -f "$written.$$"
        refuse "$modules/fips.so: $(echo "$said" | tail -n 1); give a module that passes its own tests (docs/fips.md)"
    fi
}

if [ "${EVERGREEN_FIPS:-off}" = required ]; then
    if [ -n "$modules" ]; then
        export OPENSSL_MODULES="$modules"
    else
        for file in /usr/lib/*/ossl-modules/fips.so; do modules=${file%/*}; done
    fi
    install
    export OPENSSL_CONF="${OPENSSL_CONF:-/etc/evergreen/openssl.cnf}"
    if [ -n "$stays" ]; then
        "$program" fips check --tls > /dev/null
        [ $? != $refused ] || end
    fi
fi
exec "$program" "$@"
