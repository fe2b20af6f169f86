#!/bin/sh
# links.sh SOURCE: fails if a document links to a file, or to a heading of a document, that does not
# exist.
set -eu
cd "$1"

# The anchors of a document's headings: lower case, punctuation dropped, spaces to hyphens.
anchors() {
  sed -n 's/^##* //p' "$1" | tr '[:upper:]' '[:lower:]' | sed 's/[^a-z0-9 _-]//g; s/ /-/g'
}

status=0
wrong() {
  echo "$1: link $2, expected $3"
  status=1
}

for document in *.md docs/*.md bench/*.md data/*.md; do
  [ -e "$document" ] || continue
  links=$(grep -o '](\([^)]*\))' "$document" | sed 's/^](//; s/)$//' || true)
  for link in $links; do
    path=${link%%#*}
    case $link in
      *:*) continue ;;
      *#*) anchor=${link#*#} ;;
      *) anchor= ;;
    esac
    target=$document
    [ -z "$path" ] || target=$(dirname "$document")/$path
    if [ ! -e "$target" ]; then
      wrong "$document" "$link" "an existing file"
    elif [ -n "$anchor" ] && ! anchors "$target" | grep -qx -e "$anchor"; then
      wrong "$document" "$link" "a heading of $target"
    fi
  done
done
exit "$status"
