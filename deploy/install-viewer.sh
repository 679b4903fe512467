#!/usr/bin/env bash
# Installs what tests/viewer and `make gallery` need: Chromium from Debian, and the viewer OHIF as
# it is published on npm, in the versions and with the digests of tests/viewer/ohif.lock.
#
#   deploy/install-viewer.sh      needs root or sudo the first time; instant when all is there
#
# npm only fetches (`npm pack`): the package holds the whole built application, and nothing of it
# runs but in the browser. Exit status 1 tells that something cannot be had on this machine.
set -euo pipefail
export LC_ALL=C

repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository
readonly lock="$repository/tests/viewer/ohif.lock"
readonly home="$repository/.viewer"

work=$(mktemp -d)
readonly work
trap 'rm -rf "$work"' EXIT

fail() { printf 'viewer setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        fail "'$*' needs root and there is no sudo. Run 'make test-viewer' once as root."
    fi
}

# Each program unless it is there from elsewhere: npm comes with many other builds of Node.js.
install_programs() {
    local missing=()
    command -v chromium >/dev/null || missing+=(chromium fonts-dejavu-core)
    [ "$1" = 0 ] || command -v npm >/dev/null || missing+=(npm)
    [ ${#missing[@]} -eq 0 ] && return 0
    command -v apt-get >/dev/null || fail "${missing[*]} missing, and no apt-get to install them."
    printf 'viewer setup: installing %s (a minute or two) ...\n' "${missing[*]}"
    {
        as_root apt-get -q update &&
            as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get -q install --yes --no-install-recommends "${missing[@]}"
    } >"$work/apt.log" 2>&1 || {
        tail -n 20 "$work/apt.log" >&2
        fail "apt-get could not install ${missing[*]} (above)."
    }
}

# The digest is checked here and not left to npm: what was tested is what is unpacked.
install_ohif() {
    local version=$1 integrity=$2 archive digest
    printf 'viewer setup: fetching OHIF %s ...\n' "$version"
    (cd "$work" && npm pack --silent "@ohif/app@$version" >"$work/npm.log" 2>&1) || {
        tail -n 20 "$work/npm.log" >&2
        fail "npm could not fetch OHIF $version (above)."
    }
    archive="$work/ohif-app-$version.tgz"
    digest="sha512-$(sha512sum "$archive" | cut -c1-128 | tr a-f A-F | basenc --base16 --decode |
        base64 --wrap=0)"
    [ "$digest" = "$integrity" ] || fail "OHIF $version is not the package of ${lock##*/}: $digest"
    mkdir "$work/$version"
    tar -xzf "$archive" -C "$work/$version" --strip-components=2 --exclude='*.map' package/dist
    mkdir -p "$home"
    rm -rf "${home:?}/$version"
    mv "$work/$version" "$home/$version"
}

missing=()
while read -r version integrity; do
    [ -f "$home/$version/index.html" ] || missing+=("$version $integrity")
done <"$lock"

install_programs ${#missing[@]}
for line in "${missing[@]}"; do
    # shellcheck disable=SC2086  # two words: version and integrity
    install_ohif $line
done
