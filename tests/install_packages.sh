#!/usr/bin/env bash
# install_packages.sh COMMAND[,COMMAND…] PACKAGE…: Debian's packages, unless the commands are there already.
# Ends with 1, and says so loudly, where they are missing and cannot be installed.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
commands=${1//,/ }
shift

missing() {
    local command
    for command in $commands; do
        command -v "$command" >/dev/null || return 0
    done
    return 1
}

missing || exit 0
if [ "$(id -u)" != 0 ]; then
    why="it takes root"
elif ! command -v apt-get >/dev/null; then
    why="there is no apt-get"
else
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    if apt-get update >"$log" 2>&1 && apt-get install --yes --no-install-recommends "$@" >>"$log" 2>&1; then
        missing || exit 0
        why="the packages lack one of $commands"
    else
        why="apt-get failed: $(tail -n 2 "$log" | tr '\n' ' ')"
    fi
fi
echo "================================================================================" >&2
echo "cannot install $*: $why" >&2
echo "================================================================================" >&2
exit 1
