#!/bin/sh
# Installs Holdfast from this folder and the programs beside it. Needs no network, starts nothing, and changes no
# configuration that exists. Run again after an upgrade.
#
#   deploy/install.sh [--prefix DIR] [--from DIR] [--root DIR] controller|agent|cli ...
#
#   --prefix DIR   where programs go: DIR/bin (default /usr/local)
#   --from DIR     where the built programs are (default target/release beside this folder)
#   --root DIR     install below DIR instead of /, and make no users: for packages and images
set -eu

prefix=/usr/local
here=$(cd "$(dirname "$0")" && pwd)
from=$here/../target/release
root=
parts=

usage() {
  sed -n '5,9s/^# \{0,1\}//p' "$0"
  exit "$1"
}

while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --from | --root)
      [ $# -ge 2 ] || usage 2 >&2
      case $1 in
        --prefix) prefix=$2 ;;
        --from) from=$2 ;;
        --root) root=$2 ;;
      esac
      shift 2
      ;;
    controller | agent | cli)
      parts="$parts $1"
      shift
      ;;
    --help | -h) usage 0 ;;
    *)
      echo "install.sh: unknown argument: $1" >&2
      usage 2 >&2
      ;;
  esac
done
[ -n "$parts" ] || usage 2 >&2
case $prefix in
  /*) ;;
  *)
    echo "install.sh: --prefix must be absolute: $prefix" >&2
    exit 2
    ;;
esac

say() { echo "install.sh: $*"; }

# program NAME: by a new name and a rename, since the old one may be running.
program() {
  [ -x "$from/$1" ] || {
    echo "install.sh: $from/$1 is missing: run 'make build' first" >&2
    exit 1
  }
  mkdir -p "$root$prefix/bin"
  install -m 0755 "$from/$1" "$root$prefix/bin/.$1.new"
  mv -f "$root$prefix/bin/.$1.new" "$root$prefix/bin/$1"
  say "$prefix/bin/$1"
}

# unit NAME
unit() {
  mkdir -p "$root/etc/systemd/system"
  sed "s|/usr/local/bin/|$prefix/bin/|" "$here/systemd/$1" >"$root/etc/systemd/system/$1.new"
  chmod 0644 "$root/etc/systemd/system/$1.new"
  mv -f "$root/etc/systemd/system/$1.new" "$root/etc/systemd/system/$1"
  say "/etc/systemd/system/$1"
}

# configuration NAME GROUP: never overwrites.
configuration() {
  mkdir -p "$root/etc/holdfast"
  if [ -e "$root/etc/holdfast/$1" ]; then
    say "/etc/holdfast/$1 exists and stays"
    return
  fi
  install -m 0640 "$here/$1" "$root/etc/holdfast/$1"
  [ -n "$root" ] || chgrp "$2" "/etc/holdfast/$1"
  say "/etc/holdfast/$1"
}

# user NAME: a system user without a login, and its folder.
user() {
  [ -z "$root" ] || return 0
  if ! id "$1" >/dev/null 2>&1; then
    useradd --system --user-group --no-create-home --home-dir "/var/lib/$1" --shell /usr/sbin/nologin "$1"
    say "user $1"
  fi
  install -d -m 0700 -o "$1" -g "$1" "/var/lib/$1"
}

for part in $parts; do
  case $part in
    controller)
      user holdfast
      program holdfast-controller
      configuration controller.yaml holdfast
      unit holdfast-controller.service
      ;;
    agent)
      user holdfast-agent
      program holdfast-agent
      configuration agent.yaml holdfast-agent
      unit holdfast-agent.service
      ;;
    cli) program holdfast ;;
  esac
done

if [ -z "$root" ] && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
say "done: nothing was started; the README says what comes next"
