#!/usr/bin/env bash
# Puts the newest restic that Debian builds into the cache folder, for the comparison only. It comes from the
# unstable suite of the mirror this machine uses already, through lists of its own: nothing is installed, and apt's
# own configuration stays as it is. Without that suite the comparison uses the restic of the tests.
set -euo pipefail

cache=${HOLDFAST_CACHE:-$HOME/.cache/holdfast}
target=$cache/tools/restic-newest
[[ -x $target ]] && { "$target" version; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{parts,lists/partial,cache/archives/partial,deb}

# The first mirror of the main archive, in either format of apt's sources.
mirror=$({ cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true; } |
  awk '$1 == "URIs:" { print $2; exit } $1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /:\/\//) { print $i; exit } }')
[[ -n $mirror ]] || { echo "bench-setup: no apt source found" >&2; exit 1; }
cat >"$work/parts/unstable.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: sid
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES

apt=(-q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::State::Lists=$work/lists"
  -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" update
(cd "$work" && apt-get "${apt[@]}" download restic)
dpkg-deb -x "$work"/restic_*.deb "$work/deb"
install -D "$work/deb/usr/bin/restic" "$target.new"
"$target.new" version
mv "$target.new" "$target"
