#!/usr/bin/env bash
# Installs the libraries that alkernels.integrations has adapters for, tests the adapters with their real classes, where
# no test may be skipped, and runs the benchmark of both sides in a small size.
#   PYTHON=path/to/python tests/integrations/hosts.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
PIP="$PYTHON -m pip --disable-pip-version-check"

$PIP install -q --no-compile 'baal==2.1.0' 'small-text==1.4.1' 'scikit-activeml==1.0.1' 'modAL-python==0.4.2.1' psutil
# with a torchvision for the torch that is here, which pip would replace by a newer one
torch=$("$PYTHON" -c 'import torch; print(torch.__version__)')
$PIP install -q --no-compile 'anomalib==2.7.0' "torch==$torch"
# it asks for torchvision, which it does not need here
$PIP install -q --no-compile --no-deps 'batchbald_redux==2.0.5' 'toma<2' blackhc.project
# the suite that scikit-activeml tests its query strategies with: in this wheel, not in later ones
suite=build/hosts/scikit-activeml-0.6.1
if [ ! -d "$suite/skactiveml" ]; then
  mkdir -p build/hosts
  $PIP download -q --no-deps -d build/hosts 'scikit-activeml==0.6.1'
  "$PYTHON" -m zipfile -e build/hosts/scikit_activeml-0.6.1-py3-none-any.whl "$suite"
fi
ALKERNELS_HOSTS=1 OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto tests/integrations "$@"
ALKERNELS_BENCH_SMALL=1 "$PYTHON" benchmarks/side_by_side --out build/hosts/side_by_side.json --plot build/hosts/side_by_side.png
