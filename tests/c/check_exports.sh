#!/bin/sh
# check_exports.sh LIBRARY HEADERS: every symbol that the shared library exports must be declared in
# a public header, either as tessera_* or as something in namespace tessera.
set -eu
library=$1
headers=$2

exported=$(nm -D -C --defined-only "$library" | cut -d' ' -f3-)
[ -n "$exported" ] || { echo "$library: no exported symbols, expected the public API"; exit 1; }

# The name that a header must have: tessera_x, or X of tessera::X…, vtables and typeinfo included.
names=$(printf '%s\n' "$exported" |
  sed -E -e 's/^(vtable|typeinfo|typeinfo name) for //' \
         -e 's/^(tessera_[a-z0-9_]+)$/ok \1/' \
         -e 's/^tessera::([A-Za-z_0-9]+).*$/ok \1/' | sort -u)
foreign=$(printf '%s\n' "$names" | grep -v '^ok ' || true)
if [ -n "$foreign" ]; then
  echo "exported, but neither tessera_* nor in namespace tessera:"
  echo "$foreign"
  exit 1
fi
status=0
for name in $(printf '%s\n' "$names" | cut -d' ' -f2); do
  if ! grep -rqw -- "$name" "$headers"; then
    echo "exported, but in no public header: $name"
    status=1
  fi
done
for name in $(grep -rhoE '\btessera_[a-z_]+\(' "$headers" | tr -d '(' | sort -u); do
  case $name in tessera_contiguous) continue ;; esac # static inline
  if ! printf '%s\n' "$names" | grep -qx "ok $name"; then
    echo "declared in a public header, but not exported: $name"
    status=1
  fi
done
[ "$status" -ne 0 ] || echo "$(printf '%s\n' "$exported" | wc -l) exported symbols, all public"
exit "$status"
