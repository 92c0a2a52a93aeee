#!/usr/bin/env bash
# Installs the libraries that alkernels.integrations has adapters for, as far as they run beside this torch, and tests the
# adapters with their real classes. Not anomalib: its torchvision has to fit torch (tests/integrations/test_anomalib.py
# runs in an environment that has both).
#   PYTHON=path/to/python tests/integrations/hosts.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
PIP="$PYTHON -m pip --disable-pip-version-check"

$PIP install -q --no-compile 'baal==2.1.0' 'small-text==1.4.1' 'scikit-activeml==1.0.1' 'modAL-python==0.4.2.1' psutil
# it asks for torchvision, which it does not need here
$PIP install -q --no-compile --no-deps 'batchbald_redux==2.0.5' 'toma<2' blackhc.project
# the suite that scikit-activeml tests its query strategies with: in this wheel, not in later ones
suite=build/hosts/scikit-activeml-0.6.1
if [ ! -d "$suite/skactiveml" ]; then
  mkdir -p build/hosts
  $PIP download -q --no-deps -d build/hosts 'scikit-activeml==0.6.1'
  "$PYTHON" -m zipfile -e build/hosts/scikit_activeml-0.6.1-py3-none-any.whl "$suite"
fi
"$PYTHON" -m pytest tests/integrations "$@"
