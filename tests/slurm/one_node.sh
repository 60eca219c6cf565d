#!/usr/bin/env bash
# A study on a SLURM of one node, started for it: through dask-jobqueue, and as an array of shards.
# Both must make the table that one process makes. Opt-in, since it needs root and Debian's slurm-wlm:
#
#   apt-get install slurm-wlm munge && pip install -e '.[dask]' && tests/slurm/one_node.sh [PYTHON]
#
# The daemons run in a temporary folder and end with the script; a SLURM that is installed and
# running is left alone, and the script refuses.
set -euo pipefail

python=$(realpath -s "${1:-.venv/bin/python}")
softlab=("$python" -c "from softlab.cli import app; app()")
if pgrep -x slurmctld > /dev/null; then
  echo "a slurmctld runs here already; this script starts its own." >&2
  exit 2
fi
work=$(mktemp -d)
host=$(hostname -s)
daemons=()
trap 'kill "${daemons[@]}" 2> /dev/null || true; wait 2> /dev/null || true; rm -rf "$work"' EXIT

mkdir -p /run/munge && chown munge: /run/munge
runuser -u munge -- munged --foreground --socket /run/munge/munge.socket.2 &
daemons+=($!)
cat > "$work/slurm.conf" << CONF
ClusterName=softlab
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
StateSaveLocation=$work
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
NodeName=$host CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
mkdir -p "$work/spool"
slurmctld -D &
daemons+=($!)
slurmd -D &
daemons+=($!)
for _ in $(seq 60); do
  sinfo --noheader --states=idle 2> /dev/null | grep -q idle && break
  sleep 1
done
sinfo

cat > "$work/own.py" << 'STUDY'
import os
import time

from softlab.study import Study


def measure(a, x, *, dtype, device):
    time.sleep(0.1)
    return {"y": a * x / 7}


STUDY = Study("own", "Is it one table?", {"a": [1, 2, 3], "x": range(8)}, measure)
STUDY
cd "$work"
common=(run "$work/own.py" --threads 1)
"${softlab[@]}" "${common[@]}" --out here

export DASK_JOBQUEUE__SLURM__CORES=1 DASK_JOBQUEUE__SLURM__MEMORY=1GB
export DASK_JOBQUEUE__SLURM__PROCESSES=1 DASK_JOBQUEUE__SLURM__QUEUE=all
export DASK_JOBQUEUE__SLURM__WALLTIME=00:05:00 DASK_JOBQUEUE__SLURM__INTERFACE=lo
"${softlab[@]}" "${common[@]}" --out dask --dask slurm --workers 2

sbatch --wait --array=1-3 --cpus-per-task=1 --output="$work/shard-%a.log" << JOB
#!/bin/bash
exec "$python" -c "from softlab.cli import app; app()" ${common[@]} --out "$work/shards" \
  --shard \$SLURM_ARRAY_TASK_ID/3
JOB
cat "$work"/shard-*.log

"$python" - << 'COMPARE'
import pandas as pd

tables = [pd.read_csv(f"{x}/own/table.csv").drop(columns="case_seconds") for x in ("here", "dask", "shards")]
for table in tables[1:]:
    pd.testing.assert_frame_equal(tables[0], table, check_exact=True)
print(f"three tables of {len(tables[0])} rows, all equal")
COMPARE
