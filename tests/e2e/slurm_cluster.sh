#!/bin/sh
# A SLURM cluster of one node on this machine, for tests: munge, slurmctld, slurmd. Needs root and Debian's slurm-wlm.
# usage: slurm_cluster.sh start|stop FOLDER
set -eu
action=$1
folder=$2
mkdir -p "$folder"
conf="$folder/slurm.conf"
case "$action" in
start)
    cores=$(nproc)
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
    host=$(hostname -s)
    cat > "$conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=200000,batch_sched_delay=0,defer_batch
SchedulerType=sched/backfill
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=5
MinJobAge=30
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
    mkdir -p "$folder/state" "$folder/spool" /run/munge
    if ! munge -n > /dev/null 2>&1; then
        [ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 2> /dev/null
        chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
        chmod 0400 /etc/munge/munge.key
        setpriv --reuid=munge --regid=munge --clear-groups munged --force
    fi
    export SLURM_CONF="$conf"
    slurmctld -f "$conf"
    slurmd -f "$conf"
    tries=0
    until sinfo --noheader --format=%t 2> /dev/null | grep -q idle; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { tail -n 20 "$folder"/*.log >&2; exit 1; }
        sleep 0.5
    done
    ;;
stop)
    for daemon in slurmd slurmctld; do
        [ ! -s "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" 2> /dev/null || true
    done
    ;;
*)
    echo "usage: $0 start|stop FOLDER" >&2
    exit 2
    ;;
esac
