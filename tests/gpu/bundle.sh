#!/usr/bin/env bash
# Builds, where there is a network, what `make gpu` needs on a bare machine that has none: build/gpu with wheels for
# Python 3.12 of the packages that a machine with torch, torchvision and lightning may lack, and the commit.
# Carry the tree and build/gpu there, and run `make gpu PYTHON=python3`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
folder=build/gpu
limit=60 # MiB, with the tree
packages=(
	jsonargparse docstring_parser typeshed_client typing_extensions
	pydantic pydantic_core annotated-types typing-inspection
	segmentation_models_pytorch timm importlib_resources
)

rm -rf "$folder"
mkdir -p "$folder/wheels"
pinned=()
for package in "${packages[@]}"; do
	line=$(grep -i -m 1 "^${package//_/[-_]}==" constraints.txt || true)
	pinned+=("${line:-$package}")
done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
	--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	--dest "$folder/wheels" "${pinned[@]}"
git rev-parse HEAD >"$folder/commit"

tree=$(git ls-files -z | du --files0-from=- -c -k 2>/dev/null | tail -n 1 | cut -f 1)
wheels=$(du -sk "$folder" | cut -f 1)
echo "$folder: $((wheels / 1024)) MiB, with the tree $(((wheels + tree) / 1024)) MiB of at most $limit"
((wheels + tree <= limit * 1024))
