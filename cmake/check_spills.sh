#!/usr/bin/env bash
# check_spills.sh LIST COMMAND…: runs a CUDA compiler (with -Xptxas=-v). What its kernels take goes to
# OBJECT.resources, a line each: chip, registers, bytes of stack, bytes spilled (stores and loads),
# bytes of static shared memory, kernel. It fails if one spills more than LIST allows it
# (src/cuda/spills.txt); with - for LIST it does not.
set -uo pipefail

list=$1
shift
object=
for ((n = 1; n < $#; ++n)); do
  if [ "${!n}" = -o ]; then
    next=$((n + 1))
    object=${!next}
  fi
done
said=$(mktemp)
trap 'rm -f "$said"' EXIT
"$@" 2>"$said"
status=$?
sed '/^ptxas info/d; / bytes stack frame, /d' "$said" | { grep -v '^ *$' || true; } >&2
if [ "$status" -ne 0 ] || [ -z "$object" ] || ! grep -q '^ptxas info' "$said"; then
  exit "$status"
fi

# kernel's mangled name, chip, registers, stack, spilled bytes, shared memory
awk -F "'" '
  /Compiling entry function/ { name = $2; chip = $4 }
  / bytes stack frame, / { split($0, word, " "); stack = word[1]; spilled = word[5] + word[9] }
  / Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
    shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH - 11) : 0
    if (name != "") print name, chip, registers, stack, spilled, shared
    name = ""
  }' "$said" |
  c++filt | sed -E 's/^void //; s/tessera::cuda:://g; s/\(anonymous namespace\):://g' |
  sed -E 's/^([^(<]*(<.*>)?)\(.*\) (sm_[^ ]*) ([0-9]+) ([0-9]+) ([0-9]+) ([0-9]+)$/\3 \4 \5 \6 \7 \1/' |
  sort >"$object.resources"

[ "$list" != - ] || exit 0
awk '
  NR == FNR { if (!/^ *(#|$)/) { chips[++n] = $1; allowed[n] = $2; kernel[n] = $3 }; next }
  {
    most = 0
    name = substr($0, length($1 $2 $3 $4 $5) + 6)
    for (x = 1; x <= n; ++x) {
      if ($1 ~ "^(" chips[x] ")$" && name ~ kernel[x] && allowed[x] > most) most = allowed[x]
    }
    if ($4 > most) {
      printf "%s spills %d bytes on %s, allowed are %d: %s\n", name, $4, $1, most, list
      bad = 1
    }
  }
  END { exit bad }' list="$list" "$list" "$object.resources" >&2 || { rm -f "$object"; exit 1; }
