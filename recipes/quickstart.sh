#!/usr/bin/env bash
# From nothing to a distilled student: installs into .venv, distils on the embedded images, evaluates, publishes to a
# folder, loads it with timm and draws what it answers. About 5 minutes on two idle cores, plus the download of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-output/quickstart}
rm -rf "$out"

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[plot]'

.venv/bin/lgd-timm distill recipes/quickstart.yaml --output "$out"
.venv/bin/lgd-timm evaluate zero-shot "$out/published" --data recipes/cifar10_small
.venv/bin/python recipes/show_predictions.py "$out/published" "$out/predictions.png"
echo "the student:      $out/published   (timm.create_model('local-dir:$out/published', pretrained=True))"
echo "what it answers:  $out/predictions.png"
