#!/usr/bin/env bash
# Installs what segnode needs from Debian, and Orthanc in a root of its own. Called by `make setup`.
#
#   deploy/install.sh             needs root, or sudo; takes under a second when all is there
#   deploy/install.sh --check     installs nothing; exit status 1 tells that something is missing
#
# Why Orthanc has its own root: Debian 12 and 13 carry Orthanc 1.10 and 1.12 with published heap
# overflows (CVE-2026-5437 to 5445) and no fix. Debian testing carries 1.13; mmdebstrap unpacks it,
# with the libraries it wants, into .orthanc/ and leaves this machine's own packages alone.
set -euo pipefail
export LC_ALL=C

readonly ORTHANC_SUITE=forky        # Debian testing by its codename, so that it cannot change under us
readonly ORTHANC_VERSION=1.13       # what the configuration and the tests were checked against
readonly ORTHANC_PACKAGES=orthanc,orthanc-python,orthanc-dicomweb,ca-certificates
readonly RECIPE=1                   # raise it when a root built by an older script must be rebuilt

repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository
readonly root="$repository/.orthanc"
readonly stamp="$root/.segnode-root"
readonly stamp_text="recipe $RECIPE, suite $ORTHANC_SUITE, Orthanc $ORTHANC_VERSION"

# What each is for: DICOM command line tools; the broker; dciodvfy, which checks what we return;
# the builder of Orthanc's root; the launcher that runs Orthanc in it; the program that finds text
# burned into pixels, and its English; the tests' second database.
packages=(dcmtk redis-server dicom3tools mmdebstrap bubblewrap tesseract-ocr tesseract-ocr-eng
    postgresql)

say() { printf '%s\n' "$*"; }
fail() { printf 'segnode setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        fail "'$*' needs root and there is no sudo. Run 'make setup' once as root."
    fi
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
            printf '%s\n' "$package"
    done
    python3.11 -c 'import ensurepip, venv' 2>/dev/null ||
        python3 -c 'import ensurepip, venv, sys; assert sys.version_info[:2] == (3, 11)' 2>/dev/null ||
        printf 'python3.11-venv\n'
}

root_is_ready() { [ -f "$stamp" ] && [ "$(<"$stamp")" = "$stamp_text" ]; }

# --- step 1: Debian packages ---------------------------------------------------------------------

# Debian starts a freshly installed daemon at once. segnode runs its own Redis on its own port, so
# a policy for the length of this installation says no (an existing policy stays as it is).
readonly policy=/usr/sbin/policy-rc.d
policy_is_ours=no

forbid_service_starts() {
    [ -e "$policy" ] && return 0
    policy_is_ours=yes
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}

allow_service_starts() {
    [ "$policy_is_ours" = no ] || as_root rm -f "$policy"
    policy_is_ours=no
}

# Debian's PostgreSQL would also make a cluster of the machine's own. The tests make theirs.
readonly no_cluster=/etc/postgresql-common/createcluster.d/segnode.conf

forbid_main_cluster() {
    as_root mkdir -p "${no_cluster%/*}"
    printf 'create_main_cluster = false\n' | as_root tee "$no_cluster" >/dev/null
}

allow_main_cluster() { as_root rm -f "$no_cluster"; }

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q "$@"; }

apt_update() {
    apt_get update >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "apt-get update failed (above). Check this machine's apt sources and its network."
    }
}

install_packages() {
    local missing=("$@")
    say "      installing ${missing[*]} (about a minute) ..."
    apt_update
    forbid_service_starts
    forbid_main_cluster
    apt_get install --yes --no-install-recommends "${missing[@]}" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        fail "apt-get install failed (above)."
    }
    allow_service_starts
    allow_main_cluster
    case " ${missing[*]} " in *" redis-server "*)
        # Not even after a reboot: nobody but segnode asked for this Redis.
        if [ -d /run/systemd/system ]; then
            as_root systemctl disable --quiet redis-server || true
        fi ;;
    esac
}

# --- step 2: Orthanc -----------------------------------------------------------------------------

# The mirror of this machine's own Debian archive, as apt knows it: apt has read both kinds of
# source files, and the signed Release file says which of them is Debian ("Origin: Debian").
debian_mirror() {
    # shellcheck disable=SC2016  # apt expands these, not the shell
    apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)' \
        'Created-By: Packages' 2>/dev/null |
        awk -F'|' '$1 == "Debian" && $2 == "Debian" && $3 == "main" && $4 !~ /-/ { print $5; exit }'
}

bootstrap() {
    local target=$1 mirror=$2
    shift 2
    as_root env LC_ALL=C mmdebstrap --variant=minbase --include="$ORTHANC_PACKAGES" \
        --aptopt='APT::Install-Recommends "false"' "$@" "$ORTHANC_SUITE" "$target" "$mirror" \
        >"$log" 2>&1
}

release_file_expired() { grep -qE 'is (not valid anymore|expired)|Valid-Until|is not valid yet' "$log"; }

build_orthanc_root() {
    local mirror target version
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        apt_update
        mirror=$(debian_mirror)
    fi
    [ -n "$mirror" ] || fail "apt knows no Debian archive on this machine; add one to its sources."
    target="$root.building"
    as_root rm -rf "$target"
    say "      unpacking Orthanc from Debian '$ORTHANC_SUITE' into .orthanc/ (about 30 s) ..."
    if ! bootstrap "$target" "$mirror"; then
        release_file_expired || {
            tail -n 20 "$log" >&2
            fail "mmdebstrap failed (above). Is '$ORTHANC_SUITE' on this machine's Debian mirror?"
        }
        say "WARNING: the mirror's Release file for '$ORTHANC_SUITE' has expired, so it may lack recent"
        say "         security updates. Its signature is checked and good; continuing with it."
        as_root rm -rf "$target"
        bootstrap "$target" "$mirror" --aptopt='Acquire::Check-Valid-Until "false"' || {
            tail -n 20 "$log" >&2
            fail "mmdebstrap failed (above)."
        }
    fi
    # shellcheck disable=SC2016  # dpkg-query expands it
    version=$(dpkg-query --admindir="$target/var/lib/dpkg" -W -f='${Version}' orthanc)
    case "$version" in
        "$ORTHANC_VERSION".*) ;;
        *) as_root rm -rf "$target"
           fail "the mirror's '$ORTHANC_SUITE' carries Orthanc $version, but segnode was checked" \
                "with $ORTHANC_VERSION only. Use a mirror (snapshot) that has it." ;;
    esac
    # The root is only read, by whoever runs the node.
    as_root chmod 755 "$target"
    printf '%s\n' "$stamp_text" | as_root tee "$target/${stamp##*/}" >/dev/null
    as_root rm -rf "$root"
    as_root mv "$target" "$root"
    say "      Orthanc $version"
}

# --- main ----------------------------------------------------------------------------------------

mapfile -t missing < <(missing_packages)

if [ "${1:-}" = --check ]; then
    [ ${#missing[@]} -eq 0 ] || fail "Debian packages missing: ${missing[*]}. Run 'make setup'."
    root_is_ready || fail "Orthanc is not unpacked in .orthanc/. Run 'make setup'."
    exit 0
fi

if [ ${#missing[@]} -eq 0 ] && root_is_ready; then
    say "setup: Debian packages and Orthanc $ORTHANC_VERSION are there"
    exit 0
fi

command -v apt-get >/dev/null || fail "this needs Debian 12 (no apt-get here)."
log=$(mktemp)
readonly log
trap 'allow_service_starts; allow_main_cluster; rm -f "$log"' EXIT
SECONDS=0

if [ ${#missing[@]} -eq 0 ]; then
    say "[1/2] Debian packages: all there"
else
    say "[1/2] Debian packages"
    install_packages "${missing[@]}"
fi
if root_is_ready; then
    say "[2/2] Orthanc $ORTHANC_VERSION: there"
else
    say "[2/2] Orthanc $ORTHANC_VERSION"
    build_orthanc_root
fi
say "setup: done in $SECONDS s"
