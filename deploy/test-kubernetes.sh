#!/bin/sh
# Builds the real Kubernetes that tests/acceptance/test_real_kubernetes.py runs: etcd, API server, controllers and
# kubectl, out of Debian's packages and Debian's copy of the Kubernetes source (no published build of the servers is in
# a package registry). Five to ten minutes on two cores, 2 GB while it builds and 280 MB to keep. Needs no root: nothing
# is installed, everything lands in one folder. A second call does nothing.
set -eu

version=1.20.2
folder=${CREDITS_TEST_KUBERNETES:-${XDG_CACHE_HOME:-$HOME/.cache}/apolo-credits/kubernetes}
programs="etcd kube-apiserver kube-controller-manager kubectl"
# What is fetched from Debian's pool: SHA256 and path. Go is the version that this Kubernetes was written for.
fetched="\
b83c0780efb182d928dc63d46488a847f161f04e40a94b96bf5247dd671ecdfc k/kubernetes/kubernetes_1.20.5+really1.20.2.orig.tar.gz
33f6680406698b60370322aa5710be199006b3d66fbb0974b44da012de3aa82a g/golang-1.15/golang-1.15-go_1.15.15-1~deb11u4_amd64.deb
e580f570f706d801191f9a17e55156736fc5979a6a878bab9304ca007ae29941 g/golang-1.15/golang-1.15-src_1.15.15-1~deb11u4_amd64.deb
0875921bb0d023f2af9b8e15cdfbe417a03e65731345fb832c40f9c2dd72967b e/etcd/etcd-server_3.5.16-4_amd64.deb"
mirrors="http://deb.debian.org/debian http://archive.debian.org/debian"

for program in $programs; do
    [ -x "$folder/$program" ] || missing=yes
done
[ -n "${missing:-}" ] || exit 0
if [ "$(uname -sm)" != "Linux x86_64" ] || ! command -v dpkg-deb >/dev/null || ! command -v curl >/dev/null; then
    echo "!!! NOT BUILT: this takes Linux on x86_64 with dpkg and curl" >&2
    exit 1
fi

mkdir -p "$folder"
work=$(mktemp -d "$folder/build.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/debs" "$work/source" "$work/root" "$work/bin" "$work/tmp" "$work/go"

fetch() {
    for mirror in $mirrors; do
        curl -fsS --retry 2 --max-time 600 -o "$2" "$mirror/pool/main/$1" && return 0
    done
    echo "!!! NOT BUILT: $1 is on none of $mirrors" >&2
    return 1
}

echo "Building Kubernetes $version in $folder: some minutes"
echo "$fetched" | while read -r sum path; do
    file=$work/debs/$(basename "$path")
    fetch "$path" "$file"
    echo "$sum  $file" | sha256sum --check --quiet
done
tar -C "$work/source" --strip-components=1 -xzf "$work"/debs/kubernetes_*.tar.gz
for package in "$work"/debs/*.deb; do
    dpkg-deb -x "$package" "$work/root"
done

export GOROOT="$work/root/usr/lib/go-1.15" GOPATH="$work/go" GOCACHE="$work/tmp" GOTMPDIR="$work/tmp" \
    GOFLAGS=-mod=vendor GO111MODULE=on GOPROXY=off CGO_ENABLED=0
go="nice -n 10 $GOROOT/bin/go"

# The release leaves out what is generated of the API's description; without it the API server does not start.
cd "$work/source"
$go build -p 2 -o "$work/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
described=$(grep -rl --include='*.go' '+k8s:openapi-gen=' staging/src/k8s.io pkg cmd |
    grep -v -e '_test\.go$' -e /testdata/ -e /code-generator/ -e /sample-apiserver/ -e zz_generated |
    xargs -n1 dirname | LC_ALL=C sort -u | sed -e 's,^staging/src/,vendor/,' -e 's,^,k8s.io/kubernetes/,' | paste -sd,)
mkdir -p "$GOPATH/src/k8s.io"
ln -s "$work/source" "$GOPATH/src/k8s.io/kubernetes"
cd "$GOPATH/src/k8s.io/kubernetes"
PATH="$GOROOT/bin:$PATH" GO111MODULE=off GOFLAGS='' nice -n 10 "$work/openapi-gen" --logtostderr \
    -i "$described" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$work/violations"
cmp "$work/violations" api/api-rules/violation_exceptions.list

cd "$work/source"
said=
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    said="$said -X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=20"
    said="$said -X $package.gitTreeState=archive"
done
$go build -p 2 -ldflags "-s -w $said" -o "$work/bin/" ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kubectl
for program in kube-apiserver kube-controller-manager kubectl; do
    mv "$work/bin/$program" "$folder/$program"
done
mv "$work/root/usr/bin/etcd" "$folder/etcd"
echo "Built: $programs in $folder"
