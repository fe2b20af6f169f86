#!/usr/bin/env bash
# Installs what Tessera builds with, as far as it is missing, on Debian 12 and Ubuntu 22.04 / 24.04.
# TESSERA_SETUP=0 skips it, for systems whose packages were installed by other means.
set -euo pipefail

[ "${TESSERA_SETUP:-1}" != 0 ] || exit 0

packages=(
  g++ cmake ninja-build pkg-config ccache                        # build
  libfmt-dev nlohmann-json3-dev libcli11-dev libgtest-dev        # libraries
  libopenblas-dev gnuplot-nox                                    # the benchmark's peer and its plots
  clang clang-format-14                                          # fuzzers and format check
  python3-venv                                                   # the Python package's tests
)
fail() {
  echo "setup: $1" >&2
  exit 1
}

. /etc/os-release 2>/dev/null || fail "no /etc/os-release, expected Debian 12 or Ubuntu 22.04 / 24.04"
case "$ID-${VERSION_ID:-}" in
  debian-12) packages+=(libclang-rt-14-dev) ;;
  ubuntu-22.04) ;; # clang 14 there depends on its runtime
  ubuntu-24.04) packages+=(libclang-rt-18-dev) ;;
  *) fail "${PRETTY_NAME:-$ID}: expected Debian 12 or Ubuntu 22.04 / 24.04; install the like of \
${packages[*]} and set TESSERA_SETUP=0" ;;
esac

missing=()
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
for package in "${packages[@]}"; do
  grep -qx "$package installed" <<<"$installed" || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || fail "not root and no sudo; as root: apt-get install ${missing[*]}"
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
# A source of the user's own that fails to update must not stand in the way of the distribution's.
"${as_root[@]}" apt-get update -q || echo "setup: apt-get update failed, trying to install anyway" >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -y -q --no-install-recommends "${missing[@]}" ||
  fail "apt-get install failed; missing packages: ${missing[*]}"
