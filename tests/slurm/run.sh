#!/usr/bin/env bash
# Installs Slurm where it is missing and may be, starts one, runs the tests in this folder on it, stops it.
# run.sh PYTHON [pytest arguments]. Without Slurm and without the right to install it: says so, and ends with 0.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=$1
shift
PATH=$PATH:/usr/sbin:/sbin

if ! "$here/../install_packages.sh" slurmctld,slurmd,sbatch,munged slurm-wlm munge; then
    echo "SKIPPED: the tests of hydra/launcher=slurm did NOT run: there is no Slurm here" >&2
    exit 0
fi
place=$(mktemp -d "${TMPDIR:-/tmp}/golf-slurm-XXXXXX")
trap '"$here/cluster.sh" stop "$place"; rm -rf "$place"' EXIT
"$here/cluster.sh" start "$place"
cd "$place"
SLURM_CONF=$place/slurm.conf OMP_NUM_THREADS=1 "$python" -m pytest -c "$here/../../pyproject.toml" \
    --rootdir "$here/../.." -p no:cacheprovider -m slurm "$here" "$@"
