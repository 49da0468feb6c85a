#!/usr/bin/env bash
# A Slurm of two nodes with two GPUs in name each, on this one machine, without systemd: cluster.sh start DIR, cluster.sh stop DIR.
# Its daemons run as the caller, listen on free ports, and keep everything in DIR.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
do=$1 dir=$(mkdir -p "$2" && cd "$2" && pwd)
export SLURM_CONF=$dir/slurm.conf

start() {
    mkdir -p "$dir"/{state,spool/one,spool/two,run,log}
    # shellcheck disable=SC2046
    set -- $(python3 - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(3)]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
PYTHON
    )
    cat >"$SLURM_CONF" <<CONF
ClusterName=golf
SlurmctldHost=localhost
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CryptoType=crypto/munge
SlurmctldPort=$1
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=5
MinJobAge=10
MaxArraySize=4
GresTypes=gpu
NodeName=one NodeHostname=localhost NodeAddr=127.0.0.1 Port=$2 CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
NodeName=two NodeHostname=localhost NodeAddr=127.0.0.1 Port=$3 CPUs=4 RealMemory=1000 Gres=gpu:2 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=one,two Default=YES MaxTime=120 State=UP PriorityTier=1 GraceTime=4
PartitionName=urgent Nodes=one,two MaxTime=120 State=UP PriorityTier=9
CONF
    # GPUs in name only: enough for jobs that ask for them to be scheduled
    touch "$dir/nvidia0" "$dir/nvidia1"
    echo "NodeName=one,two Name=gpu File=$dir/nvidia[0-1]" >"$dir/gres.conf"
    # a key and a socket of its own: munge wants a folder that none but its user may write to
    mkdir -p "$dir/munge"
    chmod 755 "$dir/munge"
    head -c 128 /dev/urandom >"$dir/munge/key"
    chmod 600 "$dir/munge/key"
    munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" --num-threads=2
    slurmctld
    slurmd -N one
    slurmd -N two
    for _ in $(seq 600); do
        [ "$(sinfo --noheader --Node --partition=main --format=%T 2>/dev/null | grep -c idle)" = 2 ] && return 0
        sleep 0.1
    done
    echo "Slurm's nodes did not come up:" >&2
    tail -n 5 "$dir"/log/*.log >&2
    return 1
}

stop() {
    local file pid pids=()
    for file in "$dir"/run/*.pid "$dir/munge/pid"; do
        [ -s "$file" ] && pids+=("$(cat "$file")")
    done
    [ ${#pids[@]} = 0 ] && return 0
    kill "${pids[@]}" 2>/dev/null || true
    for pid in "${pids[@]}"; do
        for _ in $(seq 50); do
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null || true
    done
}

"$do"
