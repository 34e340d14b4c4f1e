#!/bin/sh
# Installs the Debian packages that a file lists, one a line, where apt-get may do it.
# Tests of what is missing then skip with a reason.
set -eu
missing=""
for package in $(sed 's/#.*//' "$1"); do
  dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "not installed, and only root can:$missing" >&2
  exit 0
fi
echo "installing$missing"
apt-get update -qq >/dev/null
# shellcheck disable=SC2086  # one word for each package
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
