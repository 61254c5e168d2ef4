#!/bin/sh
# Makes certificates for the servers of a cluster, for ten years, signed by an authority of their own:
#
#   certificates.sh FOLDER nats-1 nats-2 nats-3     each is a DNS name, or an IP address
#
# FOLDER gets ca.pem and ca.key, and for each server NAME.pem and NAME.key; the authority that is there already signs
# for names that are added later. The servers get their own pair and ca.pem, the gateways ca.pem (cluster.tls_ca); keep
# ca.key elsewhere. Needs openssl 1.1.1 or newer.
set -eu
umask 077

if [ "$#" -lt 2 ]; then
    echo "usage: certificates.sh FOLDER NAME..." >&2
    exit 2
fi
folder=$1
shift
mkdir -p "$folder"
days=3650

if [ ! -e "$folder/ca.key" ]; then
    openssl ecparam -name prime256v1 -genkey -noout -out "$folder/ca.key"
    openssl req -x509 -new -key "$folder/ca.key" -sha256 -days "$days" -subj "/CN=plex cluster" -out "$folder/ca.pem" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
fi

for name in "$@"; do
    case $name in
        *:*) kind=IP ;;
        *[!0-9.]*) kind=DNS ;;
        *) kind=IP ;;
    esac
    openssl ecparam -name prime256v1 -genkey -noout -out "$folder/$name.key"
    # Servers are clients of each other, too.
    printf '%s\n' "subjectAltName=$kind:$name" "extendedKeyUsage=serverAuth,clientAuth" \
        "basicConstraints=CA:FALSE" > "$folder/$name.ext"
    openssl req -new -key "$folder/$name.key" -subj "/CN=$name" |
        openssl x509 -req -sha256 -days "$days" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -CAcreateserial \
            -extfile "$folder/$name.ext" -out "$folder/$name.pem"
    rm "$folder/$name.ext"
    echo "$folder/$name.pem"
done
