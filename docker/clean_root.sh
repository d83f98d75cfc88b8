#!/usr/bin/env bash
# Follows Dockerfile.cpu in a fresh bookworm root, for machines without a Docker engine. As root, with debootstrap:
#   docker/clean_root.sh ROOT             every step: gigabytes, many minutes; ROOT is empty or not there
#   docker/clean_root.sh ROOT packages    only the steps that install Debian's packages
#   docker/clean_root.sh ROOT serve ...   afterwards: the image's command as its user, more arguments behind it
# Python is bookworm's own 3.11. pip is configured as it is outside; BIND="/a /b" shows ROOT folders that it needs for
# that, and MIRROR is where Debian's packages come from.
set -euo pipefail

root=${1:?usage: clean_root.sh ROOT [packages | serve ARGUMENTS...]}
mode=${2:-all}
source=$(cd "$(dirname "$0")/.." && pwd)

# In a mount namespace of its own, nothing has to be unmounted afterwards.
if [ -z "${TRIMTAB_UNSHARED:-}" ]; then
    TRIMTAB_UNSHARED=1 exec unshare --mount "$0" "$@"
fi

bootstrap() {
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    if [ -e /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/"; fi
}

mount_what_a_container_has() {
    local folder
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777,size=2g tmpfs "$root/dev/shm"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    for folder in ${BIND:-}; do
        mkdir -p "$root$folder"
        mount --bind -o ro "$folder" "$root$folder"
    done
}

mapfile -t pip < <(env | grep '^PIP_')
exports=''
workdir=/

# In the root, with the Dockerfile's ENV and WORKDIR so far: inside USER COMMAND
inside() {
    chroot --userspec="$1" "$root" /usr/bin/env -i HOME=/cache LANG=C.UTF-8 \
        PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "${pip[@]}" sh -c "cd $workdir && $exports $2"
}

step() {
    local instruction=$1 rest=$2 words
    case $instruction in
        FROM) exports='' workdir=/ ;;
        ENV) exports+="export $rest; " ;;
        WORKDIR) workdir=$rest && mkdir -p "$root$workdir" ;;
        RUN)
            if [ "$mode" = all ] || [[ $mode/$rest == packages/apt-get* ]]; then
                echo "--- RUN $rest"
                inside 0:0 "$rest"
            fi
            ;;
        COPY)
            # Both stages share the one root, so what comes from the other is there already.
            if [ "$mode" != all ] || [[ $rest == --from=* ]]; then return; fi
            read -ra words <<<"$rest"
            local last=${words[-1]}
            [[ $last == /* ]] || last=$workdir/$last
            mkdir -p "$(dirname "$root$last")"
            (cd "$source" && cp -a "${words[@]:0:${#words[@]}-1}" "$root$last")
            ;;
        USER) user=$rest ;;
        ENTRYPOINT | CMD) command+=" $(tr -d '[],"' <<<"$rest")" ;;
    esac
}

follow() {
    local line
    while IFS= read -r line <&3; do
        step "${line%% *}" "${line#* }"
    done 3< <(sed -e '/^#/d' -e '/^$/d' "$source/docker/Dockerfile.cpu" | sed -e ':a' -e '/\\$/{N;s/\\\n *//;ba}')
}

user=''
command=''
if [ "$mode" = serve ]; then
    mount_what_a_container_has
    follow
    inside "$user" "exec $command ${*:3}"
else
    bootstrap
    mount_what_a_container_has
    # The image's Python comes with pip and its headers.
    inside 0:0 "apt-get update && apt-get install -y --no-install-recommends python3.11-venv python3.11-dev"
    ln -s /usr/bin/python3.11 "$root/usr/local/bin/python"
    follow
fi
