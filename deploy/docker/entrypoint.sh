#!/bin/sh
# Puts secrets that are files into the environment, then becomes the program: for every variable
# NAME__FILE=/path the content of that file becomes NAME. So no secret stands in a compose file, a
# pod or `docker inspect`, and a missing one stops the container at once with its name.
set -eu

fail() {
    echo "error: $1" >&2
    exit 2
}

for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)__FILE=.*/\1/p'); do
    file=$(printenv "${name}__FILE")
    [ -e "$file" ] || fail "the secret $name is missing (expected the file $file); mount it"
    [ -r "$file" ] || fail "the secret $name cannot be read (file $file); give user $(id -u) access"
    value=$(cat "$file")
    [ -n "$value" ] || fail "the secret $name is empty (file $file)"
    export "$name=$value"
    unset "${name}__FILE"
done

exec "$@"
