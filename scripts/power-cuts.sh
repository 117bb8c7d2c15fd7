#!/usr/bin/env bash
# Takes the file system away from under a controller's state, as a loss of power does, again and again, and checks that
# nothing acknowledged is lost. Needs root, a kernel with loop devices and ext4, and python3; `make power-cuts` runs it.
#
# The cut is EXT4_IOC_SHUTDOWN with NOLOGFLUSH on a loop mount: what is not on the disk by then never gets there. The
# writer is stopped first and its acknowledgements lie on another file system, so none can be written after the cut.
set -euo pipefail

cuts=${1:-100}
program=${2:-"${CARGO_TARGET_DIR:-target}/debug/examples/state_torture"}
[ -x "$program" ] || { echo "$program is missing: cargo build -p holdfast-controller --examples" >&2; exit 2; }

work=$(mktemp -d)
mount_point=$work/disk
writer=
cleanup() {
    [ -z "$writer" ] || kill -KILL "$writer" 2>/dev/null || true
    umount "$mount_point" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

truncate -s 512M "$work/image"
mkfs.ext4 -q -F "$work/image"
mkdir "$mount_point"

for cut in $(seq 1 "$cuts"); do
    mount -o loop "$work/image" "$mount_point"
    "$program" write "$mount_point/state" "boot $cut" >>"$work/acknowledged" &
    writer=$!
    sleep "$(awk -v seed="$cut$RANDOM" 'BEGIN { srand(seed); printf "%.3f", 0.05 + rand() * 1.2 }')"
    kill -STOP "$writer"
    # The lines written before the stop are whole; wait until it has really stopped.
    until grep -q '^State:.*T' "/proc/$writer/status"; do :; done
    python3 - "$mount_point" <<'PYTHON'
import fcntl, os, struct, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
fcntl.ioctl(folder, 0x8004587D, struct.pack("I", 2))
PYTHON
    kill -KILL "$writer"
    wait "$writer" 2>/dev/null || true
    writer=
    umount "$mount_point"
    mount -o loop "$work/image" "$mount_point"
    verdict=$("$program" check "$mount_point/state" "boot $cut, after" <"$work/acknowledged") || {
        echo "cut $cut: LOST" >&2
        exit 1
    }
    umount "$mount_point"
    if [ $((cut % 10)) -eq 0 ]; then echo "cut $cut: $verdict"; fi
done
echo "$cuts cuts, $(wc -l <"$work/acknowledged") acknowledged commits, nothing lost"
