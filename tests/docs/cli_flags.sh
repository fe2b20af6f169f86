#!/bin/sh
# cli_flags.sh TESSERA SOURCE: fails unless docs/cli.md names exactly the flags that --help shows.
set -eu
tessera=$1
document=$2/docs/cli.md

flags() { grep -oE -e '--[a-z][a-z-]*' | grep -vx -e --help | sort -u; }
shown=$(for command in "" info run check explain bench calibrate; do "$tessera" $command --help; done | flags)
named=$(flags <"$document")

status=0
for flag in $shown; do
  printf '%s\n' "$named" | grep -qx -e "$flag" && continue
  echo "$document: no $flag, expected every flag of $tessera"
  status=1
done
for flag in $named; do
  printf '%s\n' "$shown" | grep -qx -e "$flag" && continue
  echo "$document: $flag, expected a flag of $tessera"
  status=1
done
exit "$status"
