#!/bin/bash
# An authority of this stack's own and what it signs, for compose.tls.yaml:  certificates.sh FOLDER [DAYS]
# The authority's key is not kept: for new certificates remove FOLDER and run this again.
set -eu
folder=$1 days=${2:-825}
mkdir -m 700 "$folder"
cd "$folder"
umask 077
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc)
openssl req -x509 "${key[@]}" -days "$days" -subj "/CN=Atlas Loop authority" \
    -addext keyUsage=critical,keyCertSign -keyout authority.key -out authority.crt 2>/dev/null
# Servers by the names they have in the compose file; the others are clients of Triton.
for name in postgresql triton attention flows; do
    openssl req "${key[@]}" -subj "/CN=$name" -keyout "$name.key" -out "$name.csr" 2>/dev/null
    openssl x509 -req -in "$name.csr" -days "$days" -CA authority.crt -CAkey authority.key -CAcreateserial \
        -extfile <(echo "subjectAltName=DNS:$name,DNS:localhost,IP:127.0.0.1") -out "$name.crt" 2>/dev/null
done
rm -- *.csr *.srl authority.key
chmod 400 -- *
