# Starts a server, and tells it (SIGHUP) when the certificates beside it were replaced.
#
#   sh reloaded.sh NAME PROGRAM [ARGUMENT...]     NAME is the process's once it serves
#
# The chart has a copy in files/. No `$` twice in a row: Kubernetes would make one of it.
set -eu
name=$1
shift
read -r self _ < /proc/self/stat
seen() { cat "${CERTIFICATES:-/run/evergreen}"/*.crt | cksum; }
was=$(seen)
while sleep "${RELOAD_SECONDS:-15}"; do
    now=$(seen)
    read -r running < "/proc/$self/comm"
    if [ "$now" != "$was" ] && [ "$running" = "$name" ]; then
        kill -HUP "$self"
        was=$now
    fi
done &
exec "$@"
